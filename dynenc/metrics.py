"""Image quality metrics: PSNR and MS-SSIM."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003
MS_SSIM_SIDE = 161  # px; below this the coarsest of the five scales is smaller than the window
WINDOW, SIGMA = 11, 1.5  # px, of the Gaussian window (Wang, Bovik, Sheikh, Simoncelli 2004)


def psnr_db(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over RGB; two [1, 3, H, W] in [-1, 1]; inf if equal."""
    error = F.mse_loss(image.double(), reference.double()).item()
    return 10 * math.log10(4 / error) if error else math.inf


def ms_ssim(image: Tensor, reference: Tensor) -> float | None:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003), mean of the RGB channels.

    Two [1, 3, H, W] in [-1, 1] -> at most 1; None if a side is below 161 px.
    """
    if min(image.shape[-2:]) < MS_SSIM_SIDE:
        return None
    one, two = ((t.double() + 1) / 2 for t in (image, reference))
    product = torch.ones(3, dtype=torch.float64)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            odd = [side % 2 for side in one.shape[-2:]]
            one, two = (
                F.avg_pool2d(t, 2, padding=odd, count_include_pad=False) for t in (one, two)
            )
        luminance, contrast = _ssim_terms(one, two)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = luminance * contrast if last else contrast
        product *= term.mean(dim=(0, 2, 3)).clamp(min=0) ** weight
    return product.mean().item()


def _ssim_terms(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of the luminance and the contrast-structure term of SSIM, for images in [0, 1]."""
    offsets = torch.arange(WINDOW, dtype=one.dtype) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).expand(3, 1, 1, -1)

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, window, groups=3), window.transpose(2, 3), groups=3)

    mean_one, mean_two = blur(one), blur(two)
    variances = blur(one * one) - mean_one**2 + blur(two * two) - mean_two**2
    covariance = blur(one * two) - mean_one * mean_two
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_one * mean_two + c1) / (mean_one**2 + mean_two**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)

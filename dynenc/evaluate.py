"""Mean figures of merit over the pictures of a folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dynenc import image, metrics
from dynenc.data import iter_images


@torch.inference_mode()
def evaluate(
    reconstruct: Callable[[Tensor], Tensor], folder: Path, perceptual: nn.Module
) -> dict[str, float]:
    """Mean PSNR and LPIPS of reconstructed pictures.

    Args:
        reconstruct: [1, 3, H, W] in [-1, 1] -> the same shape; H and W multiples of 8.
        folder: pictures, or a tar shard of them.
        perceptual: `lpips.LPIPS`.
    Returns: `pictures`, `psnr_db` and `lpips`. The rebuilt picture is rounded to 8 bits first.
    """
    psnr, distance = [], []
    for _, picture in iter_images(folder):
        original = image.to_tensor(picture)
        height, width = original.shape[-2:]
        rebuilt = reconstruct(image.pad(original))[..., :height, :width]
        rebuilt = image.to_tensor(image.to_picture(rebuilt))
        psnr.append(metrics.psnr_db(rebuilt, original))
        distance.append(perceptual(rebuilt, original).item())
    count = len(psnr)
    return {"pictures": count, "psnr_db": sum(psnr) / count, "lpips": sum(distance) / count}

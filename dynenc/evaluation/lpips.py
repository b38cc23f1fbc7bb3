"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018, version 0.1, AlexNet)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dynenc.errors import WeightsError

SHIFT = (-0.030, -0.088, -0.188)  # the scaling layer of LPIPS
SCALE = (0.458, 0.448, 0.450)
STRIDES = (4, 1, 1, 1, 1)  # of AlexNet's five convolutions
PADDINGS = (2, 2, 1, 1, 1)
POOLED = (1, 2)  # convolutions that a 3x3 max pool of stride 2 precedes


class LPIPS(nn.Module):
    """Perceptual distance of two images; 0 for equal ones, lower is better.

    Args:
        path: safetensors with `AlexNet_0.Conv_{i}.kernel`, `AlexNet_0.Conv_{i}.bias` (torchvision's
            AlexNet features) and `NetLinLayer_{i}.Conv_0.kernel` (the published linear heads).
    Raises: WeightsError if the file is missing or holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            state = load_file(path)
            for i in range(len(STRIDES)):
                self.register_buffer(f"kernel_{i}", state[f"AlexNet_0.Conv_{i}.kernel"])
                self.register_buffer(f"bias_{i}", state[f"AlexNet_0.Conv_{i}.bias"])
                self.register_buffer(f"head_{i}", state[f"NetLinLayer_{i}.Conv_0.kernel"])
        except (OSError, SafetensorError, KeyError) as exc:
            raise WeightsError(f"{path} does not hold the weights of LPIPS: {exc}") from exc
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def _features(self, image: Tensor) -> list[Tensor]:
        features = (image - self.get_buffer("shift")) / self.get_buffer("scale")
        taps = []
        for i, (stride, padding) in enumerate(zip(STRIDES, PADDINGS, strict=True)):
            if i in POOLED:
                features = F.max_pool2d(features, 3, 2)
            kernel, bias = self.get_buffer(f"kernel_{i}"), self.get_buffer(f"bias_{i}")
            features = F.relu(F.conv2d(features, kernel, bias, stride, padding))
            taps.append(features)
        return taps

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair: two [B, 3, H, W] in [-1, 1] with sides >= 32 -> [B]."""
        total = image.new_zeros(len(image))
        pairs = zip(self._features(image), self._features(reference), strict=True)
        for i, (one, two) in enumerate(pairs):
            difference = (F.normalize(one, eps=1e-10) - F.normalize(two, eps=1e-10)) ** 2
            weighted = F.conv2d(difference, self.get_buffer(f"head_{i}"))
            total = total + weighted.mean(dim=(1, 2, 3))
        return total

"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018, version 0.1), on AlexNet."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.evaluation.perceptual import LinearHeads, load_tensors

INPUT_MEAN = (-0.030, -0.088, -0.188)  # of RGB in [-1, 1]: the scaling layer of LPIPS
INPUT_STD = (0.458, 0.448, 0.450)
STRIDES = (4, 1, 1, 1, 1)  # of AlexNet's five convolutions
PADDINGS = (2, 2, 1, 1, 1)
POOLED = (1, 2)  # convolutions that follow a 3x3 max pool of stride 2


class LPIPS(LinearHeads):
    """LPIPS on AlexNet, the version reported in papers.

    Args:
        path: safetensors with `AlexNet_0.Conv_{i}.kernel`, `AlexNet_0.Conv_{i}.bias` (torchvision's
            AlexNet features) and `NetLinLayer_{i}.Conv_0.kernel` (the published linear heads).
    Raises: WeightsError if the file is missing or has other contents.
    """

    def __init__(self, path: Path) -> None:
        layers = range(len(STRIDES))
        heads = [f"NetLinLayer_{i}.Conv_0.kernel" for i in layers]
        super().__init__(load_tensors(path, heads, "LPIPS"))
        for i in layers:
            names = f"AlexNet_0.Conv_{i}.kernel", f"AlexNet_0.Conv_{i}.bias"
            kernel, bias = load_tensors(path, names, "LPIPS")
            self.register_buffer(f"kernel_{i}", kernel)
            self.register_buffer(f"bias_{i}", bias)
        self.register_buffer("mean", torch.tensor(INPUT_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(INPUT_STD).view(1, 3, 1, 1))
        self.check(path)

    def features(self, image: Tensor) -> Iterator[Tensor]:
        features = (image - self.get_buffer("mean")) / self.get_buffer("std")
        for i, (stride, padding) in enumerate(zip(STRIDES, PADDINGS, strict=True)):
            if i in POOLED:
                features = F.max_pool2d(features, 3, 2)
            kernel, bias = self.get_buffer(f"kernel_{i}"), self.get_buffer(f"bias_{i}")
            features = F.relu(F.conv2d(features, kernel, bias, stride, padding))
            yield features.float()

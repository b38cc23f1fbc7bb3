"""LPIPS and DISTS on VGG-16, from one file of weights.

The file is a safetensors with `conv.{i}.weight` and `conv.{i}.bias`, i from 0 to 12 (the features
of torchvision's VGG-16), `head.{i}`, i from 0 to 4 (the linear heads of LPIPS), `alpha` and `beta`
(the channel weights of DISTS), in any float type.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.evaluation.lpips import INPUT_MEAN, INPUT_STD
from dynenc.evaluation.perceptual import LinearHeads, PerceptualDistance, load_tensors

CONVOLUTIONS = 13
LAYER_ENDS = (1, 3, 6, 9, 12)  # convolutions whose outputs are compared, each before a pooling
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
STABILITY = 1e-6  # c1 and c2 of DISTS


class VGG16(nn.Module):
    """The convolutions of VGG-16; LPIPS and DISTS differ in pooling and normalisation.

    Args:
        path: see the module.
    Raises: WeightsError if the file is missing or has other contents.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        for i in range(CONVOLUTIONS):
            names = f"conv.{i}.weight", f"conv.{i}.bias"
            weight, bias = load_tensors(path, names, "VGG-16")
            weight = weight.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", bias)

    def forward(self, image: Tensor, pool: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yield five layers [B, C, h, w] float32 of a normalised image [B, 3, H, W]."""
        dtype = self.get_buffer("weight_0").dtype
        features = image.to(dtype, memory_format=torch.channels_last)
        for i in range(CONVOLUTIONS):
            if i - 1 in LAYER_ENDS:
                features = pool(features)
            weight, bias = self.get_buffer(f"weight_{i}"), self.get_buffer(f"bias_{i}")
            features = F.relu(F.conv2d(features, weight, bias, padding=1))
            if i in LAYER_ENDS:
                yield features.float()


class LPIPSVGG(LinearHeads):
    """LPIPS on VGG-16, the version that its authors recommend as a loss.

    Args:
        network: `VGG16(path)`; its file also has the linear heads.
    Raises: WeightsError if the file has no heads, or heads that do not fit.
    """

    def __init__(self, network: VGG16) -> None:
        names = [f"head.{i}" for i in range(len(LAYER_ENDS))]
        super().__init__(load_tensors(network.path, names, "LPIPS-VGG"))
        self.network = network
        self.register_buffer("mean", torch.tensor(INPUT_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(INPUT_STD).view(1, 3, 1, 1))
        self.check(network.path)

    def features(self, image: Tensor) -> Iterator[Tensor]:
        normalised = (image.float() - self.get_buffer("mean")) / self.get_buffer("std")
        layers: Iterator[Tensor] = self.network(normalised, lambda x: F.max_pool2d(x, 2))
        return layers


class DISTS(PerceptualDistance):
    """DISTS (Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity).

    One minus the weighted similarity of the means (texture) and of the covariance (structure) of
    each channel of the image and of five layers, pooled by the L2 norm in a Hann window. Images
    keep their size; the authors' tables scale them down to 256 px first.

    Args:
        network: `VGG16(path)`; its file also has `alpha` and `beta`.
    Raises: WeightsError if the file has no channel weights, or too few of them.
    """

    def __init__(self, network: VGG16) -> None:
        super().__init__()
        self.network = network
        alpha, beta = load_tensors(network.path, ("alpha", "beta"), "DISTS")
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha.flatten() / total)
        self.register_buffer("beta", beta.flatten() / total)
        window = torch.outer(*2 * [torch.tensor([0.25, 0.5, 0.25])])  # Hann of 5 without its zeros
        self.register_buffer("window", window[None, None])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.check(network.path)

    def features(self, image: Tensor) -> Iterator[Tensor]:
        unit = (image.float() + 1) / 2
        yield unit
        normalised = (unit - self.get_buffer("mean")) / self.get_buffer("std")
        yield from self.network(normalised, self._l2_pool)

    def compare(self, image: Iterable[Tensor], reference: Iterable[Tensor]) -> Tensor:
        texture, structure = [], []
        for pair in zip(image, reference, strict=True):
            one, two = (each.movedim(1, -1).flatten(1, 2) for each in pair)
            mean_one, mean_two = one.mean(1), two.mean(1)
            centred_one, centred_two = one - mean_one[:, None], two - mean_two[:, None]
            variances = (centred_one.square() + centred_two.square()).mean(1)
            covariance = (centred_one * centred_two).mean(1)
            means = mean_one**2 + mean_two**2
            texture.append((2 * mean_one * mean_two + STABILITY) / (means + STABILITY))
            structure.append((2 * covariance + STABILITY) / (variances + STABILITY))
        distances = [
            (self.get_buffer(name) * (1 - torch.cat(similarity, 1))).sum(1)
            for name, similarity in (("alpha", texture), ("beta", structure))
        ]
        return distances[0] + distances[1]

    def _l2_pool(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        window = self.get_buffer("window").expand(channels, 1, 3, 3)
        squares = F.conv2d(features.square(), window, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt()

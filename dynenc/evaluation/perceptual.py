"""Base classes of the perceptual distances: features of two images, compared layer by layer."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dynenc.errors import WeightsError

MIN_SIDE = 32  # px; AlexNet has no features of a smaller image


class PerceptualDistance(nn.Module):
    """A distance between the features of two images; 0 for equal ones, lower is better.

    Differentiable in both images; the weights are buffers, not parameters. To compare many images
    with one reference, compute `list(distance.features(reference))` once and pass it to `compare`.
    """

    @abstractmethod
    def features(self, image: Tensor) -> Iterator[Tensor]:
        """Features of [B, 3, H, W] in [-1, 1], sides >= 32 px: [B, C, h, w] float32 for each layer.

        Layers are computed lazily, so that `forward` compares large images without holding the
        features of all layers in memory.
        """

    @abstractmethod
    def compare(self, image: Iterable[Tensor], reference: Iterable[Tensor]) -> Tensor:
        """Distance of each pair, [B] float32, from the features of both batches."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair: two [B, 3, H, W] in [-1, 1] with sides >= 32 px -> [B] float32."""
        return self.compare(self.features(image), self.features(reference))

    def check(self, path: Path) -> None:
        """Raise WeightsError if the shapes of tensors read from `path` do not fit together."""
        try:
            with torch.inference_mode():
                self(*torch.zeros(2, 1, 3, MIN_SIDE, MIN_SIDE))
        except RuntimeError as exc:
            name = type(self).__name__
            raise WeightsError(f"{path} does not hold the weights of {name}: {exc}") from exc


class LinearHeads(PerceptualDistance):
    """LPIPS (Zhang et al., CVPR 2018, version 0.1) on any network.

    The squared difference of unit-length features, weighted by channel, averaged over positions and
    summed over layers.
    """

    def __init__(self, heads: list[Tensor]) -> None:
        """Take one head [1, C, 1, 1] per layer."""
        super().__init__()
        for i, head in enumerate(heads):
            self.register_buffer(f"head_{i}", head)

    def compare(self, image: Iterable[Tensor], reference: Iterable[Tensor]) -> Tensor:
        distances = []
        for i, pair in enumerate(zip(image, reference, strict=True)):
            # channels last: the gradients of sums over channels are several times faster
            one, two = (
                nn.functional.normalize(each.movedim(1, -1), dim=-1, eps=1e-10) for each in pair
            )
            head = self.get_buffer(f"head_{i}").flatten()
            distances.append(((one - two).square() * head).sum(-1).mean((1, 2)))
        return torch.stack(distances).sum(0)


def load_tensors(path: Path, names: Iterable[str], metric: str) -> list[Tensor]:
    """Read tensors of a safetensors file as float32; other tensors in it are ignored.

    Args:
        metric: name of the metric they belong to, for the message.
    Raises: WeightsError if the file cannot be read or lacks one of them.
    """
    try:
        with safe_open(path, "pt") as file:
            return [file.get_tensor(name).float() for name in names]
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{path} does not hold the weights of {metric}: {exc}") from exc

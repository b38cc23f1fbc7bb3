"""The small decoder of SD latents that travels with dynenc."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.networks.layers import DynamicBlock

Cut = tuple[int, int, int, int]  # latents to leave off at the left, right, top and bottom


class EmbeddedDecoder(nn.Module):
    """Latents -> image: residual blocks at 1/8, 1/4 and 1/2 of the image's size.

    Between the blocks stand layers that `conv` makes, of the arguments of `nn.Conv2d`.
    Shapes: [B, 4, h, w] in SD scale -> [B, 3, 8h, 8w], about [-1, 1], not clamped; smaller by what
    is to be cut off.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        conv: Callable[..., nn.Module] = nn.Conv2d,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(4, widths[0], 3, padding=1)]
        for width, following, count in zip(widths, (*widths[1:], 3), blocks, strict=True):
            layers += [DynamicBlock(width) for _ in range(count)]
            last = following == 3
            layers.append(conv(width, 4 * following, 3 if last else 1, padding=int(last)))
            layers.append(nn.PixelShuffle(2))
        self.layers = nn.Sequential(*layers)
        self.reaches = [0]  # after each PixelShuffle: positions around a pixel that it depends on
        for count in reversed(blocks[1:]):
            last = len(self.reaches) == 1
            self.reaches.insert(0, -(-self.reaches[0] // 2) + count + int(last))

    def forward(self, latents: Tensor, cut: Cut = (0, 0, 0, 0)) -> Tensor:
        """Decode: [B, 4, h, w] in SD scale -> [B, 3, 8h, 8w], about [-1, 1].

        Args:
            cut: latents at each side of a tile whose pixels nobody needs. They are cut off as soon
                as no other pixel depends on them, which changes no pixel that is left.
        """
        features, excess, reaches = latents, list(cut), iter(self.reaches)
        for layer in self.layers:
            features = layer(features)
            if isinstance(layer, nn.PixelShuffle):
                reach = next(reaches)
                spare = [max(0, 2 * count - reach) for count in excess]
                excess = [2 * count - gone for count, gone in zip(excess, spare, strict=True)]
                features = F.pad(features, [-count for count in spare])
        return features

"""The small decoder of SD latents that travels with dynenc."""

from collections.abc import Callable

from torch import Tensor, nn

from dynenc.layers import DynamicBlock


class EmbeddedDecoder(nn.Module):
    """Latents -> image: residual blocks at 1/8, 1/4 and 1/2 of the image's size.

    Between the blocks stand layers that `conv` makes, of the arguments of `nn.Conv2d`.
    Shapes: [B, 4, h, w] in SD scale -> [B, 3, 8h, 8w], about [-1, 1], not clamped.
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

    def forward(self, latents: Tensor) -> Tensor:
        """Decode: [B, 4, h, w] in SD scale -> [B, 3, 8h, 8w], about [-1, 1]."""
        image: Tensor = self.layers(latents)
        return image

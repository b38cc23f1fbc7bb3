"""The small decoder of latents that ships with dynenc."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.latent_space import SD1, ceil_div
from dynenc.networks.integer_tensors import BOUND, GATE_BOUND, LARGEST_STEP, Sizes

Step = Tensor | float
Cut = tuple[int, int, int, int]  # latents to cut off at the left, right, top and bottom
EdgeConv = partial(nn.Conv2d, padding_mode="replicate")  # a flat image stays flat at its borders


class DecoderBlock(nn.Module):
    """Residual block: bounded activations, a 3x3 convolution, a gated 1x1 convolution, a 1x1 mix.

    There is no normalisation. Activations before a product are clamped to a constant range, like
    saturating 8-bit integers, which also bounds the products of the gates.
    Shapes: [B, channels, h, w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))
        self.spatial = EdgeConv(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, 2 * channels, 1)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.mix.weight, std=0.1 * channels**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Add the block's output to its input: [B, channels, h, w] -> the same."""
        return features + self.steps(features)[-1]

    def steps(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The intermediate results of the block: bounded, spatial, gated, mixed."""
        bounded = (features * self.scale + self.offset).clamp(-BOUND, BOUND)
        spatial = self.spatial(bounded)
        gates, values = self.gate(spatial).chunk(2, 1)
        gated = gates.clamp(0, GATE_BOUND) * values.clamp(-GATE_BOUND, GATE_BOUND)
        return bounded, spatial, gated, self.mix(gated)


class StepBias(nn.Module):
    """A term of each channel proportional to the quantiser step, which tells how exact latents are.

    Shapes: [B, channels, h, w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor, step: Step) -> Tensor:
        """Add the term; see `EmbeddedDecoder.forward` for the step."""
        steps = torch.as_tensor(step, dtype=self.slope.dtype, device=self.slope.device)
        term = self.slope * steps.clamp(max=LARGEST_STEP).view(-1, 1, 1, 1)
        return features + term.to(features.dtype)


class EmbeddedDecoder(nn.Module):
    """Latents -> image: residual blocks at 1/8, 1/4 and 1/2 of the image size.

    `block` is called with the number of channels to make a block; `conv` makes the layers between
    blocks, with the arguments of `nn.Conv2d`.
    Shapes: [B, channels, h, w], as the diffusion model takes them, -> [B, 3, 8h, 8w], about
    [-1, 1], not clamped; smaller by what is to be cut off.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        conv: Callable[..., nn.Module] = EdgeConv,
        block: Callable[[int], nn.Module] = DecoderBlock,
        channels: int = SD1.channels,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(channels, widths[0], 3, padding=1)]
        for width, following, count in zip(widths, (*widths[1:], 3), blocks, strict=True):
            layers += [block(width) for _ in range(count)]
            last = following == 3
            layers.append(conv(width, 4 * following, 3 if last else 1, padding=int(last)))
            layers.append(nn.PixelShuffle(2))
        self.layers = nn.Sequential(*layers)
        self.step_bias = StepBias(widths[0])
        self.sizes = Sizes(widths, blocks, channels)
        self.reaches = [0]  # after each PixelShuffle: positions around a pixel that it depends on
        for count in reversed(blocks[1:]):
            last = len(self.reaches) == 1
            self.reaches.insert(0, ceil_div(self.reaches[0], 2) + count + int(last))

    def forward(self, latents: Tensor, step: Step = 0.0, cut: Cut = (0, 0, 0, 0)) -> Tensor:
        """Decode: [B, channels, h, w] -> [B, 3, 8h, 8w], about [-1, 1].

        Args:
            step: quantiser step of the latents, or of each image [B]; 0: they were not quantised.
            cut: latents at each side of a tile whose pixels are not needed. They are cut off as
                soon as no other pixel depends on them, which does not change the other pixels.
        """
        features, excess, reaches = latents, list(cut), iter(self.reaches)
        for index, layer in enumerate(self.layers):
            features = layer(features) if index else self.step_bias(layer(features), step)
            if isinstance(layer, nn.PixelShuffle):
                reach = next(reaches)
                spare = [max(0, 2 * count - reach) for count in excess]
                excess = [2 * count - gone for count, gone in zip(excess, spare, strict=True)]
                features = F.pad(features, [-count for count in spare])
        return features

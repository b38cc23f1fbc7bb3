"""A larger decoder that computes what a smaller one does, from which its training can start.

Channels are doubled as in Net2Net (Chen et al. 2016): two copies of a channel share the weights
that its consumers had for it, in random proportions, so that the copies learn different things.
Blocks that the smaller decoder lacks add 0.
"""

import torch
from torch import Tensor, nn

from dynenc.networks.embedded_decoder import DecoderBlock, EmbeddedDecoder

LEAST_SHARE = 0.2  # of a weight for one of two copies


@torch.no_grad()
def widen(small: EmbeddedDecoder, large: EmbeddedDecoder) -> None:
    """Fill a decoder of twice the channels and at least as many blocks with what `small` does."""
    large.step_bias.slope.copy_(_doubled(small.step_bias.slope))
    stages = zip(_stages(small), _stages(large), strict=True)
    for (blocks, layer), (wide_blocks, wide_layer) in stages:
        for number, wide in enumerate(wide_blocks):
            _widen_block(blocks[min(number, len(blocks) - 1)], wide)
            if number >= len(blocks):
                nn.init.zeros_(wide.mix.weight)
                nn.init.zeros_(wide.get_parameter("mix.bias"))
        _widen_layer(layer, wide_layer)


def _stages(network: EmbeddedDecoder) -> list[tuple[list[DecoderBlock], nn.Conv2d]]:
    """Each convolution between blocks, with the blocks before it; the first has none."""
    stages, blocks = [], list[DecoderBlock]()
    for layer in network.layers:
        if isinstance(layer, DecoderBlock):
            blocks.append(layer)
        elif isinstance(layer, nn.Conv2d):
            stages.append((blocks, layer))
            blocks = []
    return stages


def _widen_block(block: DecoderBlock, wide: DecoderBlock) -> None:
    for name in ("scale", "offset"):
        wide.get_parameter(name).copy_(_doubled(block.get_parameter(name)))
    for name in ("spatial", "mix"):
        layer, target = block.get_submodule(name), wide.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert isinstance(target, nn.Conv2d)
        _widen_layer(layer, target)
    gates, values = (_copies(part) for part in block.gate.weight.chunk(2))
    wide.gate.weight.copy_(torch.cat([gates, values]))
    biases = block.get_parameter("gate.bias").chunk(2)
    wide.get_parameter("gate.bias").copy_(torch.cat([_doubled(part) for part in biases]))


def _widen_layer(layer: nn.Conv2d, wide: nn.Conv2d) -> None:
    """Fill a layer of twice the outputs and inputs, but for image and latents, which stay as many.

    Before a PixelShuffle, the copies of an output follow all outputs, as those of a channel do.
    """
    weight, bias = layer.weight, layer.get_parameter("bias")
    is_last = len(wide.weight) == len(weight)
    if wide.in_channels == layer.in_channels:
        weight = _doubled(weight)
    else:
        weight = _shared(weight) if is_last else _copies(weight)
    wide.weight.copy_(weight)
    wide.get_parameter("bias").copy_(bias if is_last else _doubled(bias))


def _doubled(outputs: Tensor) -> Tensor:
    return torch.cat([outputs, outputs])


def _copies(weight: Tensor) -> Tensor:
    """Weights [2 O, 2 I, ...] of doubled outputs and inputs from [O, I, ...]."""
    return torch.cat([_shared(weight), _shared(weight)])


def _shared(weight: Tensor) -> Tensor:
    """Weights [O, 2 I, ...] of doubled inputs from [O, I, ...]: each pair shares one weight."""
    share = torch.empty(weight.shape[:2], device="cpu").uniform_(LEAST_SHARE, 1 - LEAST_SHARE)
    share = share.view(*weight.shape[:2], *[1] * (weight.dim() - 2))
    return torch.cat([weight * share, weight * (1 - share)], 1)

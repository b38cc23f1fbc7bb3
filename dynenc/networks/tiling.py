"""Tiled decoding: large latents are decoded in parts and blended without seams."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.latent_space import PATCH, SD1, LatentSpace, ceil_div
from dynenc.networks.checks import check_batch, check_step
from dynenc.networks.compat import maybe_bfloat16
from dynenc.networks.embedded_decoder import Cut, EmbeddedDecoder, Step
from dynenc.view import Region

LIMIT = 16.0  # magnitude at which latents are clamped; encoders write up to 3.2 of photographs,
# 6.2 of synthetic patterns (the autoencoder 6.7 and 8.3), and TAESD 6.3
# bfloat16 keeps pixels 50 dB from those in float32 for at least so many positions of latents (one
# level of one pixel weighs too much in fewer), of at most this root mean square and magnitude
BFLOAT16_LEAST, BFLOAT16_RMS, BFLOAT16_MOST = 64, 1.2, 8.0


class Tiles(NamedTuple):
    """How latents are split for a decoder; all lengths are in latents.

    The result equals that without tiles if no pixel depends on latents farther away than `margin`.
    """

    side: int  # of a tile, more than 2 * margin + 1
    margin: int = 4  # at a tile's inner edges, not used, as padding affects them
    overlap: int = 24  # of neighbouring tiles, more than 2 * margin; blended linearly over the rest


LARGE_TILES, SMALL_TILES = Tiles(256), Tiles(96)  # of a small and of a big external decoder
# Without seams: the reach is 13 latents, of which the outer 7 change no 8-bit value. Larger tiles
# are slower: glibc maps tensors of over 32 MB anew every time.
EMBEDDED_TILES = Tiles(116, margin=6, overlap=13)
FINE_TILES = Tiles(88, margin=7, overlap=15)  # the reach is 15 latents


class TiledDecoder(nn.Module):
    """A decoder of scaled latents, whatever its own scale, in tiles if the latents are large.

    Latents are first clamped to -LIMIT..LIMIT, far beyond what encoders produce: for larger ones
    the output of networks depends on the last bit of the arithmetic, hence on the machine.

    Shapes: [B, C, h, w] as the space's diffusion model takes them, any device and dtype ->
    [B, 3, 8h, 8w] float32, about [-1, 1], on the network's device. Gradient flows through it.

    Args:
        name: for messages and reports.
        network: what decodes a tile, [B, C, h, w] -> [B, 3, 8h, 8w].
        space: of the latents.
        scale, shift: the network takes latents / scale + shift.
        tiles: how large latents are split.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        space: LatentSpace = SD1,
        scale: float = 1.0,
        shift: float = 0.0,
        tiles: Tiles = LARGE_TILES,
    ) -> None:
        super().__init__()
        self.name, self.network, self.space = name, network, space
        self.scale, self.shift, self.tiles = scale, shift, tiles
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor, step: Step = 0.0) -> Tensor:
        """Decode: scaled latents [B, C, h, w] -> [B, 3, 8h, 8w], about [-1, 1].

        Args:
            step: quantiser step of the latents, or of each image [B]; 0: they were not quantised.
                It tells dynenc's decoders how exact the latents are, and others nothing.
        """
        bands = list(self.bands(latents, step))
        return bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    def bands(
        self, latents: Tensor, step: Step = 0.0, region: Region | None = None
    ) -> Iterator[Tensor]:
        """As `forward`, but bands [B, 3, rows, 8w] from top to bottom, one in memory at a time.

        Tiles have equal size, overlap, and are blended linearly; in diffusers' tiling the last tile
        is a narrow strip with different statistics.

        Args:
            region: in px of the image; None: all of it. Only the tiles that overlap it are decoded,
                and the bands cover exactly the region.
        """
        check_batch("latents", latents, self.space.channels)
        check_step(step, len(latents))
        latents = latents.clamp(-LIMIT, LIMIT)
        precise = not _suit_bfloat16(latents)
        rows, columns = (spans(length, self.tiles) for length in latents.shape[-2:])
        if len(rows) == len(columns) == 1:
            image = self._decode(latents, step, precise)
            yield image if region is None else image[(..., *region.slices)]
            return
        whole = Region(0, 0, latents.shape[3] * PATCH, latents.shape[2] * PATCH)
        down, right = (region or whole).slices
        rows, columns = _touched(rows, down), _touched(columns, right)
        like = next(self.network.parameters())
        start, width = columns[0].pixels.start, columns[-1].pixels.stop - columns[0].pixels.start
        begun = torch.zeros(len(latents), 3, 0, width, dtype=torch.float32, device=like.device)
        for row, below in itertools.zip_longest(rows, rows[1:]):
            top = row.pixels.start
            weight_y = row.weight.to(like.device)[:, None]
            band = F.pad(begun, (0, 0, 0, len(weight_y) - begun.shape[2]))
            for column in columns:
                tile = latents[..., row.latents, column.latents]
                part = self._decode(tile, step, precise, (*column.cut, *row.cut))
                pixels = slice(column.pixels.start - start, column.pixels.stop - start)
                band[..., pixels] += part * weight_y * column.weight.to(like.device)
            done = below.pixels.start - top if below else band.shape[2]
            begun = band[:, :, done:].clone()
            wanted = slice(max(down.start - top, 0), min(down.stop - top, done))
            yield band[:, :, wanted, right.start - start : right.stop - start]

    def _decode(
        self, latents: Tensor, step: Step, precise: bool, cut: Cut = (0, 0, 0, 0)
    ) -> Tensor:
        """Decode one tile, and cut off the pixels of some latents at its edges.

        With `precise`, decoders of dynenc compute in float32 on a CPU.
        If the result is not finite in half precision, though the latents are, a copy of the network
        in float32 takes its place.
        """
        network = self.network  # which another thread may replace
        like = next(network.parameters())
        inputs = latents.to(like.device, torch.float32) / self.scale + self.shift
        inputs = inputs.to(like.dtype, memory_format=torch.channels_last)
        image: Tensor
        if isinstance(network, EmbeddedDecoder):
            with nullcontext() if precise else maybe_bfloat16(inputs):
                image = network(inputs, step, cut).float()
        else:
            image = F.pad(network(inputs).float(), [-PATCH * count for count in cut])
        if like.dtype != torch.float32 and not image.isfinite().all() and latents.isfinite().all():
            with torch.inference_mode(False):  # otherwise it could never propagate gradients again
                self.network = copy.deepcopy(network).float()
            return self._decode(latents, step, precise, cut)
        return image


def _suit_bfloat16(latents: Tensor) -> bool:
    """Whether pixels stay 50 dB from those in float32 if [B, 4, h, w] are decoded in bfloat16."""
    if latents.device.type != "cpu" or torch.compiler.is_compiling() or not len(latents):
        return True  # not decided here
    images = latents.detach().float().flatten(1)
    largest, rms = images.abs().amax(), images.square().mean(1).sqrt().amax()
    few = latents.shape[-2] * latents.shape[-1] < BFLOAT16_LEAST
    return not few and bool(largest <= BFLOAT16_MOST) and bool(rms <= BFLOAT16_RMS)


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one side of the latents."""

    latents: slice  # input of the network
    cut: tuple[int, int]  # number of these at both ends that are not used
    pixels: slice  # part of the image that the rest covers
    weight: Tensor  # of each of these pixels; the weights of all tiles sum to 1


def _touched(spans: Sequence[Span], side: slice) -> list[Span]:
    """The tiles along one side that some pixels of it need."""
    ends = side.start, side.stop
    return [s for s in spans if s.pixels.start < ends[1] and s.pixels.stop > ends[0]]


def spans(length: int, tiles: Tiles) -> list[Span]:
    """Tiles along a side of some length in latents, of equal length of at most `tiles.side`.

    The weight of a tile is its own ramp minus that of the next tile.
    """
    tile, margin, overlap = tiles
    count = max(1, ceil_div(length - overlap, tile - overlap))
    size = ceil_div(length + (count - 1) * overlap, count)
    starts = [i * (length - size) // max(1, count - 1) for i in range(count)]
    pixel = torch.arange(length * PATCH, dtype=torch.float32, device="cpu") + 0.5
    ramp = (overlap - 2 * margin) * PATCH
    rises = [((pixel - (start + margin) * PATCH) / ramp).clamp(0, 1) for start in starts]
    rises = [torch.ones_like(pixel), *rises[1:], torch.zeros_like(pixel)]
    spans = []
    for i, start in enumerate(starts):
        cut = (margin if i > 0 else 0, margin if i + 1 < count else 0)
        pixels = slice((start + cut[0]) * PATCH, (start + size - cut[1]) * PATCH)
        weight = (rises[i] - rises[i + 1])[pixels]
        spans.append(Span(slice(start, start + size), cut, pixels, weight))
    return spans

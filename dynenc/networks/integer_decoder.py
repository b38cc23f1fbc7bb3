"""The embedded decoders in integer arithmetic: their tensors, and their float equivalents.

Weights are int8, and what else the arithmetic of docs/decoder.md needs is int16 or int32. Never
imports torch.
"""

import logging
from collections.abc import Collection, Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from dynenc import registry, runtime
from dynenc.coding.lat_file import LatFile
from dynenc.errors import WeightsError
from dynenc.latent_space import PATCH, SD1, LatentSpace
from dynenc.native.decoder import UNIT, Packed, PixelDecoder
from dynenc.native.kernel import Bytes
from dynenc.registry import Model
from dynenc.view import WHOLE, Region, View

logger = logging.getLogger(__name__)

Tensors = dict[str, npt.NDArray[np.integer]]
Doubles = npt.NDArray[np.float64]
FloatTensors = dict[str, npt.NDArray[np.float32]]
Sizes = tuple[int, ...]

BOUND = 2.0  # largest magnitude of the activations that a 3x3 convolution reads
GATE_BOUND = 4.0  # largest gate, and largest magnitude of the value that it multiplies
ACTIVATION_UNIT = 127 / BOUND  # integers of such an activation of 1.0
ONE = 1 << 15  # integers of a multiplier of 1.0
SIZES = 3  # at which a decoder of images has blocks
RESIDUAL_UNIT = 2048.0  # integers of a residual of 1.0, in the float equivalent


def plan(widths: Sizes, blocks: Sizes) -> Iterator[tuple[str, str, int, int]]:
    """The layers after the first convolution, as those of `EmbeddedDecoder`.

    Yields: name, kind ("block", "enlarge" or "pixels"), channels, outputs.
    """
    index = 1
    for width, following, count in zip(widths, (*widths[1:], 3), blocks, strict=True):
        for _ in range(count):
            yield f"layers.{index}", "block", width, width
            index += 1
        yield f"layers.{index}", "pixels" if following == 3 else "enlarge", width, 4 * following
        index += 2


def shapes(
    widths: Sizes, blocks: Sizes, latents: int = SD1.channels
) -> dict[str, tuple[str, Sizes]]:
    """Type and shape of every tensor of a decoder, in the order of the layers.

    Args:
        latents: their number of channels.
    """
    found: dict[str, tuple[str, Sizes]] = {}

    def inputs(name: str, channels: int) -> None:
        found[f"{name}.input.scale"] = "int16", (channels,)
        found[f"{name}.input.offset"] = "int16", (channels,)
        found[f"{name}.input.shift"] = "int32", (1,)

    def product(name: str, outputs: int, channels: int, side: int) -> None:
        found[f"{name}.weight"] = "int8", (outputs, channels, side, side)
        found[f"{name}.bias"] = "int32", (outputs,)
        found[f"{name}.multiplier"] = "int16", (outputs,)
        found[f"{name}.shift"] = "int32", (1,)

    product("layers.0", widths[0], latents, 3)
    for name, kind, channels, outputs in plan(widths, blocks):
        inputs(name, channels)
        if kind == "block":
            product(f"{name}.spatial", channels, channels, 3)
            product(f"{name}.gate", 2 * channels, channels, 1)
            found[f"{name}.limit"] = "int16", (channels,)
            product(f"{name}.mix", channels, channels, 1)
        else:
            product(name, outputs, channels, 3 if kind == "pixels" else 1)
    return found


def are_integers(tensors: Collection[str]) -> bool:
    """Whether the tensors of a decoder, by name, are integers rather than floats."""
    return "layers.0.multiplier" in tensors


def check(tensors: Tensors, widths: Sizes, blocks: Sizes, latents: int = SD1.channels) -> None:
    """Raise WeightsError unless the tensors are those of a decoder, by name, type and shape."""
    expected = shapes(widths, blocks, latents)
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "lack" if name in expected else "have besides"
        raise WeightsError(f"the decoder's tensors {problem} {name}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise WeightsError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}"
            )


def load(
    tensors: Tensors, widths: Sizes, blocks: Sizes, latents: int = SD1.channels
) -> PixelDecoder:
    """The decoder with these integer tensors; raises WeightsError."""
    return PixelDecoder(packed(tensors, widths, blocks, latents), 2 ** len(widths))


def packed(tensors: Tensors, widths: Sizes, blocks: Sizes, latents: int = SD1.channels) -> Packed:
    """The tensors of a decoder as the native kernel takes them; raises WeightsError."""
    check(tensors, widths, blocks, latents)
    shuffled = {name for name, kind, _, _ in plan(widths, blocks) if kind != "block"}
    numbers, weights = [], []
    for name in shapes(widths, blocks, latents):
        tensor = tensors[name]
        layer, _, part = name.rpartition(".")
        if layer in shuffled and part != "shift":  # [channel, down, right] -> the kernel's order
            tensor = tensor.reshape(-1, 4, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
        if part == "weight":
            weights.append(tensor.transpose(0, 2, 3, 1))
        else:
            numbers.append(tensor)
    left_out = (0,) * (SIZES - len(widths))
    return Packed.of((latents, *widths, *left_out, *blocks, *left_out), numbers, weights)


@cache
def embedded(kind: registry.Kind = "decoder", space: LatentSpace = SD1) -> PixelDecoder:
    """A decoder that is shipped with dynenc: of images or thumbnails; raises WeightsError."""
    if kind == "decoder":
        model = registry.for_space("embedded", kind, space)
    else:
        model = registry.named(kind, kind)
    logger.debug("%s: %s, in integers on the CPU", kind, model.name)
    sizes = model.arguments["widths"], model.arguments["blocks"]
    return load(read(model), *sizes, model.space.channels)


def read(model: Model) -> Tensors:
    """The tensors of a decoder that travels with dynenc; raises WeightsError."""
    try:
        return load_tensors(registry.read_file(model))
    except SafetensorError as exc:
        raise WeightsError(f"{model.file} cannot be read as safetensors: {exc}") from exc


def image(file: LatFile, view: View = WHOLE, needed: Region | None = None) -> Image.Image:
    """The colours of a file, decoded by the embedded decoder of its latents' space: RGB.

    At 1/4 and 1/8 of the size, the decoder of thumbnails makes the pixels of SD latents. Those at
    1/2 are means of the whole image's, and those at 1/8 means of those at 1/4.

    Args:
        needed: the part of the whole image that is decoded; the rest is black. None: all of it.
    """
    size, divisor = file.size, view.divisor
    wanted = view.scaled(size)
    found = Image.new("RGB", wanted[2:])
    part = wanted.common(View(needed, divisor).scaled(size)) if needed else wanted
    if part.is_empty:
        return found
    space = file.model.space
    is_small = divisor >= 4 and space is SD1
    decoder = embedded("thumbnail") if is_small else embedded("decoder", space)
    means = View(divisor=divisor * decoder.side // PATCH)  # of the decoder's pixels
    whole = View(divisor=divisor // means.divisor).scaled(size)
    region = Region(*(means.divisor * side for side in part)).common(whole)

    def paste(strip: Bytes, left: int, top: int) -> None:
        pixels = means.reduced(Image.fromarray(strip))
        corner = part.left - wanted.left, part.top - wanted.top
        place = corner[0] + left // means.divisor, corner[1] + top // means.divisor
        found.paste(pixels, place)

    threads = runtime.native_threads(region.width * region.height * (PATCH // decoder.side))
    decoder.decode_strips(file.fixed_point_latents(), region, paste, threads)
    return found


def to_floats(
    tensors: Tensors, widths: Sizes, blocks: Sizes, latents: int = SD1.channels
) -> FloatTensors:
    """The state dict of the `EmbeddedDecoder` that computes the same, except for rounding.

    Raises: WeightsError for tensors that `load` refuses.
    """
    load(tensors, widths, blocks, latents)
    found: FloatTensors = {}

    def product(
        name: str, inputs: Doubles, outputs: Doubles | None, shift: Doubles | float = 0.0
    ) -> Doubles:
        """Float layer from integers of an input and of an output of 1.0; inputs are shifted.

        Without those of an output, each output's weights are scaled to a norm of 1, so that
        training can go on from them. Returns: integers of an output of 1.0.
        """
        bits = int(tensors[f"{name}.shift"][0])
        factor = tensors[f"{name}.multiplier"] / (ONE * 2.0**bits)
        weight = tensors[f"{name}.weight"] * factor[:, None, None, None]
        bias = (tensors[f"{name}.bias"] - (1 << bits >> 1)) * factor
        bias = bias + (weight.sum((2, 3)) * shift).sum(1)
        weight *= inputs[:, None, None]
        if outputs is None:
            outputs = np.sqrt(np.square(weight).sum((1, 2, 3)))
        outputs = np.where(outputs == 0, 1, outputs)
        found[f"{name}.weight"] = (weight / outputs[:, None, None, None]).astype(np.float32)
        found[f"{name}.bias"] = (bias / outputs).astype(np.float32)
        return outputs

    product("layers.0", np.full(latents, float(UNIT)), np.full(widths[0], RESIDUAL_UNIT))
    for name, kind, channels, outputs in plan(widths, blocks):
        bits = int(tensors[f"{name}.input.shift"][0])
        scale = tensors[f"{name}.input.scale"].astype(np.float64)
        scale *= RESIDUAL_UNIT / ONE / 2.0**bits
        offset = (tensors[f"{name}.input.offset"] - (1 << bits >> 1)) / 2.0**bits
        if kind == "block":
            column = (channels, 1, 1)
            found[f"{name}.scale"] = np.float32(scale / ACTIVATION_UNIT).reshape(column)
            found[f"{name}.offset"] = np.float32(offset / ACTIVATION_UNIT).reshape(column)
            ones = np.ones(channels)
            limit = tensors[f"{name}.limit"].astype(np.float64)
            spatial = product(f"{name}.spatial", ones * ACTIVATION_UNIT, None)
            product(f"{name}.gate", spatial, np.tile(limit / GATE_BOUND, 2))
            product(f"{name}.mix", (limit / GATE_BOUND) ** 2 / ONE, ones * RESIDUAL_UNIT)
        else:
            unit = 127.5 if kind == "pixels" else RESIDUAL_UNIT
            product(name, scale, np.full(outputs, unit), offset)
            if kind == "pixels":
                found[f"{name}.bias"] -= 1  # 0..255 -> -1..1
    return found

"""The embedded decoder in integer arithmetic: its tensors, and its float equivalent.

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
from dynenc.latent_space import SD1
from dynenc.native.decoder import UNIT, Packed, PixelDecoder, to_integers
from dynenc.registry import Model
from dynenc.view import WHOLE, Region, View

logger = logging.getLogger(__name__)

Tensors = dict[str, npt.NDArray[np.integer]]
Doubles = npt.NDArray[np.float64]
Floats = dict[str, npt.NDArray[np.float32]]
Sizes = tuple[int, ...]

BOUND = 2.0  # largest magnitude of the activations that a 3x3 convolution reads
GATE_BOUND = 4.0  # largest gate, and largest magnitude of the value that it multiplies
HEAD_BLOCKS = 2  # of a size, before a head reads the residuals
ACTIVATION_UNIT = 127 / BOUND  # integers of such an activation of 1.0
ONE = 1 << 15  # integers of a multiplier of 1.0
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


def heads(widths: Sizes, blocks: Sizes) -> Iterator[tuple[str, int, int, int]]:
    """The heads for pictures at 1/8, 1/4 and 1/2 of the size, each a layer of kind "pixels".

    Yields: name, the number of the layer in `plan` whose input it reads, channels, outputs.
    """
    early, late = (min(HEAD_BLOCKS, count) for count in blocks[:2])
    late += blocks[0] + 1
    yield "heads.8", early, widths[0], 3
    yield "heads.4", early, widths[0], 4 * 3
    yield "heads.2", late, widths[1], 4 * 3


def shapes(widths: Sizes, blocks: Sizes) -> dict[str, tuple[str, Sizes]]:
    """Type and shape of every tensor of a decoder, in the order of the layers."""
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

    product("layers.0", widths[0], 4, 3)
    for name, kind, channels, outputs in plan(widths, blocks):
        inputs(name, channels)
        if kind == "block":
            product(f"{name}.spatial", channels, channels, 3)
            product(f"{name}.gate", 2 * channels, channels, 1)
            found[f"{name}.limit"] = "int16", (channels,)
            product(f"{name}.mix", channels, channels, 1)
        else:
            product(name, outputs, channels, 3 if kind == "pixels" else 1)
    for name, _, channels, outputs in heads(widths, blocks):
        inputs(name, channels)
        product(name, outputs, channels, 3)
    return found


def are_integers(tensors: Collection[str]) -> bool:
    """Whether the tensors of a decoder, by name, are integers rather than floats."""
    return "layers.0.multiplier" in tensors


def check(tensors: Tensors, widths: Sizes, blocks: Sizes) -> None:
    """Raise WeightsError unless the tensors are those of a decoder, by name, type and shape."""
    expected = shapes(widths, blocks)
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "lack" if name in expected else "have besides"
        raise WeightsError(f"the decoder's tensors {problem} {name}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise WeightsError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}"
            )


def load(tensors: Tensors, widths: Sizes, blocks: Sizes) -> PixelDecoder:
    """The decoder with these integer tensors; raises WeightsError."""
    return PixelDecoder(packed(tensors, widths, blocks))


def packed(tensors: Tensors, widths: Sizes, blocks: Sizes) -> Packed:
    """The tensors of a decoder as the native kernel takes them; raises WeightsError."""
    check(tensors, widths, blocks)
    shuffled = {name for name, kind, _, _ in plan(widths, blocks) if kind != "block"}
    shuffled |= {name for name, _, _, outputs in heads(widths, blocks) if outputs > 3}
    exits = [exit for _, exit, _, _ in heads(widths, blocks)]
    numbers, weights = [], []
    for name in shapes(widths, blocks):
        tensor = tensors[name]
        layer, _, part = name.rpartition(".")
        if layer in shuffled and part != "shift":  # [channel, down, right] -> the kernel's order
            tensor = tensor.reshape(-1, 4, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
        if part == "weight":
            weights.append(tensor.transpose(0, 2, 3, 1))
        else:
            numbers.append(tensor)
    return Packed.of((*widths, *blocks, *exits), numbers, weights)


def decodes(model: Model, decoder: str, device: object) -> bool:
    """Whether a decoder of that name on a device decodes latents of a model in integers."""
    if model.space is not SD1 or decoder != "embedded":
        return False
    return str(device) == "cpu" or (str(device) == "auto" and not runtime.has_gpu())


@cache
def embedded() -> PixelDecoder:
    """The decoder that is shipped with dynenc; raises WeightsError."""
    model = registry.named("embedded", "decoder")
    logger.debug("decoder: embedded, in integers on the CPU")
    return load(read(model), model.arguments["widths"], model.arguments["blocks"])


def read(model: Model) -> Tensors:
    """The tensors of a decoder that travels with dynenc; raises WeightsError."""
    try:
        return load_tensors(registry.read_file(model))
    except SafetensorError as exc:
        raise WeightsError(f"{model.file} cannot be read as safetensors: {exc}") from exc


def picture(file: LatFile, view: View = WHOLE, needed: Region | None = None) -> Image.Image:
    """The colours of a file of SD latents, decoded by the embedded decoder: RGB.

    Args:
        needed: the part of the whole picture that is decoded; the rest is black. None: all of it.
    """
    size, divisor = (file.header.width, file.header.height), view.divisor
    wanted = view.scaled(size)
    left, top, right, bottom = View(needed, divisor).scaled(size).box if needed else wanted.box
    left, top = max(left, wanted.left), max(top, wanted.top)
    right = min(right, wanted.left + wanted.width)
    bottom = min(bottom, wanted.top + wanted.height)
    part = Region(left, top, right - left, bottom - top)
    if part.width <= 0 or part.height <= 0:
        return Image.new("RGB", wanted[2:])
    threads = runtime.native_threads(part.width * part.height * divisor**2)
    pixels = embedded().decode(to_integers(file.latents), part, threads, divisor)
    decoded = Image.fromarray(pixels)
    if part == wanted:
        return decoded
    whole = Image.new("RGB", wanted[2:])
    whole.paste(decoded, (left - wanted.left, top - wanted.top))
    return whole


def to_floats(tensors: Tensors, widths: Sizes, blocks: Sizes) -> Floats:
    """The state dict of the `EmbeddedDecoder` that computes the same, except for rounding.

    It has no heads.
    """
    check(tensors, widths, blocks)
    found: Floats = {}

    def product(name: str, inputs: Doubles, outputs: Doubles, shift: Doubles | float = 0.0) -> None:
        """Float layer from integers of an input and of an output of 1.0; inputs are shifted."""
        bits = int(tensors[f"{name}.shift"][0])
        factor = tensors[f"{name}.multiplier"] / (ONE * 2.0**bits) / outputs
        weight = tensors[f"{name}.weight"] * factor[:, None, None, None]
        bias = (tensors[f"{name}.bias"] - (1 << bits >> 1)) * factor
        bias = bias + (weight.sum((2, 3)) * shift).sum(1)
        found[f"{name}.weight"] = (weight * inputs[:, None, None]).astype(np.float32)
        found[f"{name}.bias"] = bias.astype(np.float32)

    product("layers.0", np.full(4, float(UNIT)), np.full(widths[0], RESIDUAL_UNIT))
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
            product(f"{name}.spatial", ones * ACTIVATION_UNIT, ones)
            product(f"{name}.gate", ones, np.tile(limit / GATE_BOUND, 2))
            product(f"{name}.mix", (limit / GATE_BOUND) ** 2 / ONE, ones * RESIDUAL_UNIT)
        else:
            unit = 127.5 if kind == "pixels" else RESIDUAL_UNIT
            product(name, scale, np.full(outputs, unit), offset)
            if kind == "pixels":
                found[f"{name}.bias"] -= 1  # 0..255 -> -1..1
    return found

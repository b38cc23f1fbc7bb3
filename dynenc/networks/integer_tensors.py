"""The tensors of decoders in integer arithmetic, and their float equivalents.

Weights are int8; all other numbers are int16 or int32. docs/decoder.md specifies the arithmetic.
Never imports torch.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from dynenc import registry
from dynenc.coding.quantize import STEP_UNIT
from dynenc.errors import WeightsError
from dynenc.latent_space import SD1
from dynenc.native.decoder import UNIT, Packed, PixelDecoder
from dynenc.registry import Model

Tensors = dict[str, npt.NDArray[np.integer]]
Doubles = npt.NDArray[np.float64]
FloatTensors = dict[str, npt.NDArray[np.float32]]
Shape = tuple[int, ...]

BOUND = 2.0  # largest magnitude of the activations that a 3x3 convolution reads
LARGEST_STEP = 1.25  # of the quantiser; larger ones count as this one
GATE_BOUND = 4.0  # largest gate, and largest magnitude of the value that it multiplies
ACTIVATION_UNIT = 127 / BOUND  # integers of such an activation of 1.0
ONE = 1 << 15  # integers of a multiplier of 1.0
FIRST = "layers.0"  # the product of latents
MAX_RESOLUTIONS = 3  # at which a decoder has blocks
RESIDUAL_UNIT = 2048.0  # integers of a residual of 1.0, in the float equivalent


class Sizes(NamedTuple):
    """The sizes of an `EmbeddedDecoder`."""

    widths: tuple[int, ...]  # channels at each resolution, from that of the latents on
    blocks: tuple[int, ...]  # number of blocks at each
    channels: int = SD1.channels  # of the latents

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        """The sizes of a model that is a decoder."""
        arguments = model.arguments
        return cls(arguments["widths"], arguments["blocks"], model.space.channels)


class LayerPlan(NamedTuple):
    """A layer after the first convolution."""

    name: str
    kind: Literal["block", "enlarge", "pixels"]
    channels: int
    outputs: int


def plan(sizes: Sizes) -> Iterator[LayerPlan]:
    """The layers after the first convolution, as those of `EmbeddedDecoder`."""
    index = 1
    widths = sizes.widths
    for width, following, count in zip(widths, (*widths[1:], 3), sizes.blocks, strict=True):
        for _ in range(count):
            yield LayerPlan(f"layers.{index}", "block", width, width)
            index += 1
        kind: Literal["enlarge", "pixels"] = "pixels" if following == 3 else "enlarge"
        yield LayerPlan(f"layers.{index}", kind, width, 4 * following)
        index += 2


def shapes(sizes: Sizes) -> dict[str, tuple[str, Shape]]:
    """Type and shape of every tensor of a decoder, in the order of the layers."""
    expected: dict[str, tuple[str, Shape]] = {}

    def inputs(name: str, channels: int) -> None:
        expected[f"{name}.input.scale"] = "int16", (channels,)
        expected[f"{name}.input.offset"] = "int16", (channels,)
        expected[f"{name}.input.shift"] = "int32", (1,)

    def product(name: str, outputs: int, channels: int, side: int) -> None:
        expected[f"{name}.weight"] = "int8", (outputs, channels, side, side)
        expected[f"{name}.bias"] = "int32", (outputs,)
        if name == FIRST:
            expected[f"{name}.slope"] = "int16", (outputs,)
        expected[f"{name}.multiplier"] = "int16", (outputs,)
        expected[f"{name}.shift"] = "int32", (1,)

    product(FIRST, sizes.widths[0], sizes.channels, 3)
    for name, kind, channels, outputs in plan(sizes):
        inputs(name, channels)
        if kind == "block":
            product(f"{name}.spatial", channels, channels, 3)
            product(f"{name}.gate", 2 * channels, channels, 1)
            expected[f"{name}.limit"] = "int16", (channels,)
            product(f"{name}.mix", channels, channels, 1)
        else:
            product(name, outputs, channels, 3 if kind == "pixels" else 1)
    return expected


def are_integers(tensors: Collection[str]) -> bool:
    """Whether the tensors of a decoder, by name, are integers rather than floats."""
    return "layers.0.multiplier" in tensors


def read(model: Model) -> Tensors:
    """The tensors of a decoder that is part of dynenc; raises WeightsError."""
    try:
        return load_tensors(registry.read_file(model))
    except SafetensorError as exc:
        raise WeightsError(f"{model.file} cannot be read as safetensors: {exc}") from exc


def check(tensors: Tensors, sizes: Sizes) -> None:
    """Raise WeightsError unless the tensors are those of a decoder, by name, type and shape."""
    expected = shapes(sizes)
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "lack" if name in expected else "unexpectedly include"
        raise WeightsError(f"the decoder's tensors {problem} {name}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise WeightsError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}"
            )


def load(tensors: Tensors, sizes: Sizes) -> PixelDecoder:
    """The decoder with these integer tensors; raises WeightsError."""
    return PixelDecoder(packed(tensors, sizes), 2 ** len(sizes.widths))


def packed(tensors: Tensors, sizes: Sizes) -> Packed:
    """The tensors of a decoder as the native kernel takes them; raises WeightsError."""
    check(tensors, sizes)
    shuffled = {layer.name for layer in plan(sizes) if layer.kind != "block"}
    numbers, weights = [], []
    for name in shapes(sizes):
        tensor = tensors[name]
        layer, _, part = name.rpartition(".")
        if layer in shuffled and part != "shift":  # [channel, down, right] -> the kernel's order
            tensor = tensor.reshape(-1, 4, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
        if part == "weight":
            weights.append(tensor.transpose(0, 2, 3, 1))
        else:
            numbers.append(tensor)
    left_out = (0,) * (MAX_RESOLUTIONS - len(sizes.widths))
    head = sizes.channels, *sizes.widths, *left_out, *sizes.blocks, *left_out
    return Packed.of(head, numbers, weights)


def to_floats(tensors: Tensors, sizes: Sizes) -> FloatTensors:
    """The state dict of the `EmbeddedDecoder` that computes the same, except for rounding.

    Raises: WeightsError for tensors that `load` refuses.
    """
    load(tensors, sizes)
    floats = _FloatTensors(tensors)
    units = np.full(sizes.channels, float(UNIT))
    floats.add_product(FIRST, units, np.full(sizes.widths[0], RESIDUAL_UNIT))
    floats.add_slope(RESIDUAL_UNIT)
    for layer in plan(sizes):
        if layer.kind == "block":
            floats.add_block(layer)
        else:
            floats.add_convolution(layer)
    return floats.tensors


def factor(tensors: Tensors, name: str) -> Doubles:
    """[N], what a product multiplies the sum for each output by."""
    bits = int(tensors[f"{name}.shift"][0])
    found: Doubles = tensors[f"{name}.multiplier"] / (ONE * 2.0**bits)
    return found


class _FloatTensors:
    """The float tensors made so far of integer tensors."""

    def __init__(self, integers: Tensors) -> None:
        self.integers = integers
        self.tensors: FloatTensors = {}

    def add_block(self, layer: LayerPlan) -> None:
        """Add a residual block."""
        name, column = layer.name, (layer.channels, 1, 1)
        scale, offset = self._input(name)
        self.tensors[f"{name}.scale"] = np.float32(scale / ACTIVATION_UNIT).reshape(column)
        self.tensors[f"{name}.offset"] = np.float32(offset / ACTIVATION_UNIT).reshape(column)
        ones = np.ones(layer.channels)
        limit = self.integers[f"{name}.limit"].astype(np.float64)
        spatial = self.add_product(f"{name}.spatial", ones * ACTIVATION_UNIT)
        self.add_product(f"{name}.gate", spatial, np.tile(limit / GATE_BOUND, 2))
        self.add_product(f"{name}.mix", (limit / GATE_BOUND) ** 2 / ONE, ones * RESIDUAL_UNIT)

    def add_convolution(self, layer: LayerPlan) -> None:
        """Add a convolution before a shuffle."""
        scale, offset = self._input(layer.name)
        unit = 127.5 if layer.kind == "pixels" else RESIDUAL_UNIT
        self.add_product(layer.name, scale, np.full(layer.outputs, unit), offset)
        if layer.kind == "pixels":
            self.tensors[f"{layer.name}.bias"] -= 1  # 0..255 -> -1..1

    def add_product(
        self,
        name: str,
        inputs: Doubles,
        outputs: Doubles | None = None,
        shift: Doubles | float = 0.0,
    ) -> Doubles:
        """Add a product.

        Args:
            inputs: [C], the integers of an input of 1.0.
            outputs: [N], the integers of an output of 1.0; None: those with which the weights of
                each output have a norm of 1, so that training can go on from them.
            shift: [C], added to the input integers.
        Returns: [N], the integers of an output of 1.0.
        """
        bits, scale = int(self.integers[f"{name}.shift"][0]), factor(self.integers, name)
        weight = self.integers[f"{name}.weight"] * scale[:, None, None, None]
        bias = (self.integers[f"{name}.bias"] - (1 << bits >> 1)) * scale
        bias = bias + (weight.sum((2, 3)) * shift).sum(1)
        weight *= inputs[:, None, None]
        if outputs is None:
            outputs = np.sqrt(np.square(weight).sum((1, 2, 3)))
        outputs = np.where(outputs == 0, 1, outputs)
        self.tensors[f"{name}.weight"] = (weight / outputs[:, None, None, None]).astype(np.float32)
        self.tensors[f"{name}.bias"] = (bias / outputs).astype(np.float32)
        return outputs

    def add_slope(self, output: float) -> None:
        """Add the term for the quantiser step; `output` is the integer of an output of 1.0."""
        slope = self.integers[f"{FIRST}.slope"] * factor(self.integers, FIRST) * STEP_UNIT / output
        self.tensors["step_bias.slope"] = slope.astype(np.float32).reshape(-1, 1, 1)

    def _input(self, name: str) -> tuple[Doubles, Doubles]:
        """The scale and offset from residuals in the float equivalent to input integers."""
        bits = int(self.integers[f"{name}.input.shift"][0])
        scale = self.integers[f"{name}.input.scale"].astype(np.float64)
        scale *= RESIDUAL_UNIT / ONE / 2.0**bits
        offset = (self.integers[f"{name}.input.offset"] - (1 << bits >> 1)) / 2.0**bits
        return scale, offset

"""Quantisation of a trained decoder: float weights -> the tensors of integer_tensors.py.

The ranges of activations, and the cost of an error in a weight, are measured while the float
network decodes latents of training images. The weights of each output have their own scale, and so
has each channel of the activations: the weights absorb the differences between channels.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from dynenc import registry
from dynenc.coding.quantize import STEP_UNIT
from dynenc.errors import WeightsError
from dynenc.io.writing import writing
from dynenc.native.decoder import UNIT, to_integers
from dynenc.networks import loading
from dynenc.networks.embedded_decoder import DecoderBlock, EmbeddedDecoder
from dynenc.networks.encoder import to_floats
from dynenc.networks.integer_tensors import (
    ACTIVATION_UNIT,
    FIRST,
    GATE_BOUND,
    ONE,
    Doubles,
    Sizes,
    Tensors,
    check,
    factor,
    load,
    plan,
)
from dynenc.training.crops import open_crops
from dynenc.training.file_latents import Quantised, rounded
from dynenc.training.synthetic import Synthetic, flats
from dynenc.view import Region

CROPS, CROP = 64, 256  # number of images for calibration, and their side in px
DRAWN, FLATS = 16, 256  # drawn crops, and small images of one colour: photos lack pure colours
STEPS = (0.1, 0.3, 0.5, 0.2, 1.0)  # quantiser steps of their latents, in turn
QUAD = 128  # largest sum of the magnitudes of four weights: times 255 it fits into 16 bits
FINEST_RESIDUAL = 11  # most fractional bits of the residuals
RESIDUAL_ROOM = 3.0  # range of the residuals, relative to the largest magnitude measured
MIX_ROOM = 4.0  # the same for the terms added to them
TAIL = 1e-4  # share of the activations that may saturate
LEAST = {"spatial": 1e-3, "product": 0.05, "in": 0.05}  # least channel range / largest one
LEAST_MULTIPLIER = 1 / 64  # least multiplier of an output / largest one
CLIPS = np.arange(1.0, 0.3, -0.04)  # scales to try, relative to the one that clips no weight


class Ranges:
    """Statistics of the tensors of the float network, by channel."""

    def __init__(self) -> None:
        self.most: dict[str, Doubles] = {}  # magnitude exceeded by TAIL of the values
        self.peak: dict[str, Doubles] = {}  # largest magnitude
        self.power: dict[str, Doubles] = {}  # sum of mean squares

    def see(self, name: str, values: Tensor) -> None:
        """Add values [B, C, h, w] to the statistics."""
        rows = values.abs().movedim(1, 0).flatten(1)
        count = max(1, round(rows.shape[1] * TAIL))
        largest = rows.topk(count, 1).values.double().numpy()
        none = np.zeros(len(rows))
        self.most[name] = np.maximum(largest[:, -1], self.most.get(name, none))
        self.peak[name] = np.maximum(largest[:, 0], self.peak.get(name, none))
        power = rows.double().square().mean(1).numpy()
        self.power[name] = self.power.get(name, none) + power

    def range(self, name: str, kind: str) -> Doubles:
        """The range of each channel."""
        most = self.most[name]
        range: Doubles = np.maximum(most, max(1e-6, most.max() * LEAST[kind]))
        return range


@torch.no_grad()
def calibrate(network: EmbeddedDecoder, samples: Iterable[Quantised]) -> Ranges:
    """Decode latents in floats, and record the ranges in all layers."""
    ranges = Ranges()
    for x, step in samples:
        for index, layer in enumerate(network.layers):
            name = f"layers.{index}"
            ranges.see(f"{name}.in", x)
            if isinstance(layer, DecoderBlock):
                bounded, spatial, product, mixed = layer.steps(x)
                ranges.see(f"{name}.bounded", bounded)
                ranges.see(f"{name}.spatial", spatial)
                ranges.see(f"{name}.product", product)
                ranges.see(f"{name}.mixed", mixed)
                x = x + mixed
            else:
                x = layer(x) if index else network.step_bias(layer(x), step)
                ranges.see(f"{name}.out", x)
    return ranges


def quantize(network: EmbeddedDecoder, ranges: Ranges) -> Tensors:
    """The integer tensors of a float decoder."""
    layers = _Layers(network, ranges)
    units = [2.0**bits for bits in _residual_bits(ranges, network.sizes)]
    first = np.tile(ranges.power["layers.0.in"], 9) * UNIT**2
    layers.add(
        FIRST,
        1 / np.full(network.sizes.channels, UNIT),
        units[0],
        power=first,
        are_bytes=False,
    )
    layers.add_slope(units[0])
    stage = 0
    for layer in plan(network.sizes):
        if layer.kind == "block":
            layers.add_block(layer.name, units[stage])
            continue
        stage += 1
        layers.add_conv(layer.name, units[stage - 1], units[stage] if stage < len(units) else None)
    check(layers.tensors, network.sizes)
    return layers.tensors


def _residual_bits(ranges: Ranges, sizes: Sizes) -> list[int]:
    """Fractional bits of the residuals at each resolution."""
    peaks, peak = [], 0.0
    for layer in plan(sizes):
        peak = max(peak, float(ranges.peak[f"{layer.name}.in"].max()))
        if layer.kind != "block":
            peaks.append(peak)
            peak = 0.0
    room = [int(np.log2(32767 / (RESIDUAL_ROOM * max(peak, 1e-3)))) for peak in peaks]
    return [min(FINEST_RESIDUAL, bits) for bits in room]


class _Layers:
    """The integer tensors made so far."""

    def __init__(self, network: EmbeddedDecoder, ranges: Ranges) -> None:
        state = network.state_dict().items()
        self.floats = {name: tensor.double().numpy() for name, tensor in state}
        self.ranges = ranges
        self.tensors: Tensors = {}

    def add_block(self, name: str, unit: float) -> None:
        """Add a residual block; `unit` is the integer for 1.0 in its residuals."""
        scale, offset = self.floats[f"{name}.scale"].ravel(), self.floats[f"{name}.offset"].ravel()
        self.add_input(name, scale * ACTIVATION_UNIT / unit, offset * ACTIVATION_UNIT)
        hidden = 127 / self.ranges.range(f"{name}.spatial", "spatial")
        largest = self.ranges.range(f"{name}.product", "product")
        limit = np.rint(GATE_BOUND * np.sqrt(127.0 * ONE / largest)).clip(1, 32767)
        gated = (limit / GATE_BOUND) ** 2 / ONE  # integer for a product of 1.0
        seen, one = self.ranges, np.ones(len(scale))
        self.add(
            f"{name}.spatial",
            one / ACTIVATION_UNIT,
            hidden,
            power=np.tile(seen.power[f"{name}.bounded"] * ACTIVATION_UNIT**2, 9),
            most=one * 128,
        )
        self.add(
            f"{name}.gate",
            1 / hidden,
            np.tile(limit / GATE_BOUND, 2),
            power=seen.power[f"{name}.spatial"] * hidden**2,
            most=np.tile(limit, 2),
        )
        self.tensors[f"{name}.limit"] = limit.astype(np.int16)
        self.add(
            f"{name}.mix",
            1 / gated,
            unit,
            power=seen.power[f"{name}.product"] * gated**2,
            most=seen.peak[f"{name}.mixed"] * MIX_ROOM * unit,
        )

    def add_conv(self, name: str, unit: float, following: float | None) -> None:
        """Add a convolution before a shuffle; `following` is the unit of its outputs, None: px."""
        inputs = 127 / self.ranges.range(f"{name}.in", "in")
        self.add_input(name, inputs / unit, np.zeros(len(inputs)))
        power = self.ranges.power[f"{name}.in"] * inputs**2
        if following is None:
            self.floats[f"{name}.bias"] = self.floats[f"{name}.bias"] + 1  # -1..1 -> 0..255
            most = np.full(len(self.floats[f"{name}.bias"]), 300.0)
            self.add(name, 1 / inputs, 127.5, power=np.tile(power, 9), most=most)
        else:
            self.add(name, 1 / inputs, following, power=power)

    def add_slope(self, unit: float) -> None:
        """Add the term for the quantiser step; `unit` is the output integer that stands for 1.0."""
        scale = factor(self.tensors, FIRST)
        slope = np.rint(self.floats["step_bias.slope"].ravel() * unit / scale / STEP_UNIT)
        self.tensors[f"{FIRST}.slope"] = slope.clip(-32767, 32767).astype(np.int16)

    def add_input(self, name: str, scale: Doubles, offset: Doubles) -> None:
        """Add the conversion of residuals to 8-bit activations."""
        bits = 7
        while bits and np.abs(scale).max() * 2.0**bits * ONE > 32767:
            bits -= 1
        whole = np.rint(offset * 2.0**bits) + (1 << bits >> 1)
        tensors: Tensors = {
            "scale": np.rint(scale * 2.0**bits * ONE).clip(-32767, 32767).astype(np.int16),
            "offset": whole.clip(-32767, 32767).astype(np.int16),
            "shift": np.array([bits], np.int32),
        }
        self.tensors |= {f"{name}.input.{part}": tensor for part, tensor in tensors.items()}

    def add(
        self,
        name: str,
        inputs: Doubles,
        unit: Doubles | float,
        *,
        power: Doubles,
        most: Doubles | None = None,
        are_bytes: bool = True,
    ) -> None:
        """Add a product.

        Args:
            inputs: [C], the real value that an input integer of 1 stands for.
            unit: the output integer that stands for 1.0.
            power: [K], mean squares of the input integers.
            most: [N], magnitudes that the outputs must be able to reach; by default those measured.
            are_bytes: whether the inputs are bytes, not latents; only then QUAD limits the sums.
        """
        weight, bias = self.floats[f"{name}.weight"], self.floats[f"{name}.bias"]
        if most is None:
            most = self.ranges.peak[f"{name}.out"] * MIX_ROOM * unit
        unit = np.broadcast_to(unit, bias.shape)
        rows = weight.transpose(0, 2, 3, 1) * inputs  # [N, side, side, C]
        rows = rows.reshape(len(rows), -1) * unit[:, None]
        scale = _scales(rows, power, are_bytes)
        most = np.clip(most, 1, 32767)
        bits = max(0, int(np.ceil(np.log2(most / scale).max())) - 15)
        while bits and scale.max() * ONE * 2.0**bits > 32767:
            bits -= 1
        multiplier = np.rint(scale * ONE * 2.0**bits).clip(1, 32767)
        scale = multiplier / (ONE * 2.0**bits)
        side = weight.shape[2]
        whole = _limited(rows / scale[:, None], are_bytes).reshape(len(rows), side, side, -1)
        constant = np.rint(bias * unit / scale) + (1 << bits >> 1)
        self.tensors |= {
            f"{name}.weight": whole.transpose(0, 3, 1, 2).astype(np.int8, "C"),
            f"{name}.bias": constant.clip(-(1 << 30), 1 << 30).astype(np.int32),
            f"{name}.multiplier": multiplier.astype(np.int16),
            f"{name}.shift": np.array([bits], np.int32),
        }


def _scales(rows: Doubles, power: Doubles, are_bytes: bool) -> Doubles:
    """The scale with the least error for each row of weights [N, K]."""
    widest = np.abs(rows).max(1) / 127
    if are_bytes:
        widest = np.maximum(widest, np.abs(_fours(rows)).sum(-1).max(1) / QUAD)
    widest = np.maximum(widest, 1e-12)
    best, least = widest.copy(), np.full(len(rows), np.inf)
    for clip in CLIPS:
        scale = widest * clip
        error = (
            (_limited(rows / scale[:, None], are_bytes) * scale[:, None] - rows) ** 2 * power
        ).sum(1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    scales: Doubles = np.maximum(best, best.max() * LEAST_MULTIPLIER)
    return scales


def _limited(rows: Doubles, are_bytes: bool) -> Doubles:
    """Integer weights near [N, K], within 127 and, of inputs that are bytes, QUAD."""
    whole: Doubles = np.rint(rows).clip(-127, 127)
    if not are_bytes:
        return whole
    fours, real = _fours(whole), _fours(rows)
    total = np.abs(real).sum(-1, keepdims=True)
    shrunk = np.trunc(real * (QUAD / np.maximum(total, 1e-12))).clip(-127, 127)
    kept = np.where(np.abs(fours).sum(-1, keepdims=True) > QUAD, shrunk, fours)
    return kept.reshape(len(rows), -1, 2, 2, 2).swapaxes(2, 3).reshape(rows.shape)


def _fours(rows: npt.NDArray[np.float64]) -> Doubles:
    """Weights [N, K] in groups whose products share a 16-bit sum: k, k+1, k+4, k+5 of eight."""
    return rows.reshape(len(rows), -1, 2, 2, 2).swapaxes(2, 3).reshape(len(rows), -1, 4)


@torch.no_grad()
def centre(tensors: Tensors, network: EmbeddedDecoder, samples: Sequence[Quantised]) -> None:
    """Adjust the last biases so that the mean pixels equal those of the float decoder."""
    name = list(plan(network.sizes))[-1].name
    decoder = load(tensors, network.sizes)
    errors = []
    for z, step in samples:
        region = Region(0, 0, *(decoder.side * side for side in z.shape[:1:-1]))
        step_q = round(float(step) * STEP_UNIT)
        pixels = decoder.decode(to_integers(z[0].numpy()), region, step_q=step_q)
        floats = (network(z, step)[0].numpy() + 1) * 127.5
        error = pixels.transpose(2, 0, 1) - floats.clip(0, 255)
        parts = error.reshape(3, region.height // 2, 2, region.width // 2, 2)
        errors.append(parts.mean((1, 3)).ravel())  # by channel, row and column of the shuffle
    shift = np.rint(np.mean(errors, 0) / factor(tensors, name))
    tensors[f"{name}.bias"] -= shift.astype(np.int32)


def of_network(
    network: EmbeddedDecoder, samples: Sequence[Quantised], extremes: Sequence[Quantised] = ()
) -> Tensors:
    """The integer tensors of a float decoder, calibrated on latents [1, C, h, w].

    Args:
        extremes: count for the ranges only; [B, C, h, w].
    """
    tensors = quantize(network, calibrate(network, [*samples, *extremes]))
    centre(tensors, network, samples)
    return tensors


def convert(start: Path, paths: Sequence[Path], run: Path, export: Path, encoder: str) -> int:
    """Quantise the float decoder in a file and write the integers; return the size in bytes.

    Args:
        paths: folders or tar shards of images for calibration, decoded once to the folder `run`.
        encoder: name or file of the encoder for their latents.
    The same arguments give the same integers. Raises: WeightsError.
    """
    network = loading.load_path(start)
    if not isinstance(network, EmbeddedDecoder):
        raise WeightsError(f"{start} has no decoder with an integer form: use another file")
    space = registry.MODELS[loading.model_name(start)].space
    encode = loading.load_encoder(encoder, space)
    crops = open_crops(paths, run, CROP)
    random = np.random.default_rng(0)
    images = crops.sample(CROPS, random)
    drawn = [*Synthetic(CROP).sample(DRAWN, random)[:, None], flats(FLATS, random)]
    with torch.inference_mode():
        latents = [encode(to_floats(image[None])) for image in images]
        extremes = [rounded(encode(to_floats(image)), 0.0) for image in drawn]
    steps = [STEPS[i % len(STEPS)] for i in range(CROPS)]
    samples = [rounded(z, step) for z, step in zip(latents, steps, strict=True)]
    tensors = of_network(network, samples, extremes)
    with safe_open(start, "np") as file:
        metadata = dict(file.metadata())
    metadata["calibration"] = json.dumps(
        {"data": [path.name for path in paths], "tiles": len(crops), "encoder": Path(encoder).name}
    )
    data = save(tensors, metadata)
    with writing(str(export), overwrite=True) as output:
        output.write(data)
    return len(data)

"""The integer decoder of images equals the one in numpy, pixel for pixel, on every path."""

import numpy as np
import pytest
from oracles import decoder as decoder_oracle

from dynenc.errors import WeightsError
from dynenc.native import kernel
from dynenc.native.decoder import LIMIT, UNIT, to_integers
from dynenc.networks import integer_tensors
from dynenc.networks.integer_tensors import Sizes
from dynenc.view import Region

HERE = [
    name for name, path in kernel.INSTRUCTION_SETS.items() if kernel.library().dynenc_has_path(path)
]
SIZES = [
    Sizes((32, 32, 32), (1, 1, 1)),
    Sizes((128, 64, 32), (1, 0, 2)),
    Sizes((64, 128, 64), (0, 2, 1)),
    Sizes((256, 128, 64), (1, 1, 1)),
]
SMALLER = [
    Sizes((64,), (2,)),
    Sizes((32, 64), (0, 1)),
    Sizes((32,), (1,)),
]  # to images at 1/4 and 1/2
SIXTEEN = [Sizes((64, 32, 32), (1, 0, 1), 16), Sizes((32,), (1,), 16)]  # channels of latents
SHAPES = [(1, 1), (1, 7), (5, 1), (3, 4), (9, 26)]


def made_up(sizes, seed=0):
    """Tensors of a decoder with weights of every size that is allowed, and pixels that vary."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (dtype, shape) in integer_tensors.shapes(sizes).items():
        part = name.rpartition(".")[2]
        if part == "weight":
            values = random.integers(-32, 33, shape)
            values[:, ::16] = 0
            values[:, :1] *= 4  # -128 is among them; the other three of its sum are zeros
            values[:, 1::8] = values[:, 4::8] = values[:, 5::8] = 0
        elif part == "bias":
            values = random.integers(-3000, 3000, shape)
        elif part == "slope":
            values = random.integers(-9, 10, shape)
        elif part == "multiplier":
            values = random.integers(3000, 32768, shape)
        elif part == "scale":
            values = random.integers(-32767, 32768, shape)
        elif part == "offset":
            values = random.integers(-90, 90, shape)
        elif part == "limit":
            values = random.integers(0, 32768, shape)
        else:
            values = random.integers(0, 4, shape)
        tensors[name] = values.astype(dtype)
    return tensors


def some_latents(shape, scale, channels=4, seed=0):
    values = np.random.default_rng(seed).standard_normal((channels, *shape)) * scale
    return to_integers(values.astype(np.float32))


def whole(latents, side=8):
    height, width = (side * length for length in latents.shape[1:])
    return Region(0, 0, width, height)


@pytest.fixture(params=HERE)
def path(request, monkeypatch):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, request.param)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("sizes", SIZES + SMALLER + SIXTEEN, ids=str)
@pytest.mark.parametrize("scale", [1, 1000])
def test_pixels_are_those_of_the_numpy_decoder(sizes, scale):
    tensors = made_up(sizes)
    decoder = integer_tensors.load(tensors, sizes)
    for shape in SHAPES:
        latents = some_latents(shape, scale, decoder.channels)
        expected = decoder_oracle.decode(tensors, *sizes[:2], latents)
        assert np.array_equal(decoder.decode(latents, whole(latents, decoder.side)), expected)
    assert len(np.unique(expected)) > (20 if scale == 1 else 2)


@pytest.mark.usefixtures("path")
def test_the_step_moves_the_biases_of_the_first_layer():
    sizes = SIZES[1]
    tensors = made_up(sizes)
    decoder = integer_tensors.load(tensors, sizes)
    latents, found = some_latents((9, 7), 1), []
    for step_q in (0, 1, 900, 1279, 1280, 1281, 65535):
        expected = decoder_oracle.decode(tensors, *sizes[:2], latents, step_q)
        found.append(decoder.decode(latents, whole(latents), step_q=step_q))
        assert np.array_equal(found[-1], expected)
    assert len({pixels.tobytes() for pixels in found}) == 5  # the last three are the same
    with pytest.raises(ValueError, match="refuses"):
        decoder.decode(latents, whole(latents), step_q=-1)


@pytest.mark.parametrize("strip", [1, 500, 10**6])
@pytest.mark.parametrize("sizes", [SIZES[1], SMALLER[1], SIXTEEN[0]], ids=str)
def test_parts_strips_and_threads_give_the_pixels_of_the_whole(sizes, strip, monkeypatch):
    decoder = integer_tensors.load(made_up(sizes), sizes)
    latents = some_latents((40, 21), 1, decoder.channels)
    random = np.random.default_rng(0)
    everything = whole(latents, decoder.side)
    expected = decoder_oracle.decode(made_up(sizes), *sizes[:2], latents, 900)
    monkeypatch.setattr("dynenc.native.decoder.STRIP", strip)
    for threads in (1, 2, 3, 9):
        assert np.array_equal(decoder.decode(latents, everything, threads, 900), expected)
    for _ in range(15):
        left, top = random.integers(0, everything[2:])
        width, height = random.integers(1, np.array(everything[2:]) - (left, top) + 1)
        region = Region(*map(int, (left, top, width, height)))
        found = decoder.decode(latents, region, random.integers(1, 4), 900)
        assert np.array_equal(found, expected[region.slices])


def test_strips_begin_at_whole_latents(monkeypatch):
    decoder = integer_tensors.load(made_up(SIZES[0]), SIZES[0])
    latents = some_latents((9, 3), 1)
    tops = []
    monkeypatch.setattr("dynenc.native.decoder.STRIP", 500)
    decoder.decode_strips(latents, whole(latents), lambda _, left, top: tops.append(top))
    assert len(tops) > 3
    assert not any(top % 8 for top in tops)


def test_wide_images_are_decoded_in_parts(monkeypatch):
    decoder = integer_tensors.load(made_up(SIZES[0]), SIZES[0])
    latents = some_latents((2, 50), 1)
    expected = decoder.decode(latents, whole(latents))
    monkeypatch.setattr("dynenc.native.decoder.LARGEST_WIDTH", 104)
    assert np.array_equal(decoder.decode(latents, whole(latents), 2), expected)


def test_a_region_outside_the_image_is_refused():
    decoder = integer_tensors.load(made_up(SIZES[0]), SIZES[0])
    latents = some_latents((2, 3), 1)
    for region in (
        Region(0, 0, 24, 17),
        Region(0, 8, 24, 9),
        Region(0, -1, 4, 4),
        Region(2**31 - 8, 0, 16, 1),
        Region(0, 0, 4, 0),
    ):
        with pytest.raises(ValueError, match="refuses"):
            decoder.decode(latents, region)


def test_latents_of_other_channels_are_refused():
    decoder = integer_tensors.load(made_up(SIXTEEN[0]), SIXTEEN[0])
    latents = some_latents((2, 3), 1)
    with pytest.raises(ValueError, match="have 4 channels, not 16"):
        decoder.decode(latents, whole(latents))
    with pytest.raises(WeightsError, match=r"layers.0.weight is int8 \[64, 16, 3, 3\], not"):
        integer_tensors.load(made_up(SIXTEEN[0]), SIXTEEN[0]._replace(channels=4))
    for channels in (0, 2, 20):
        sizes = SIZES[0]._replace(channels=channels)
        with pytest.raises(WeightsError, match="do not fit"):
            integer_tensors.load(made_up(sizes), sizes)


def test_latents_are_rounded_and_saturated():
    values = np.array([0.25, 1 / UNIT, 1.5 / UNIT, -15.9999, 16.0, -4e9], np.float32)
    assert to_integers(values).tolist() == [512, 1, 2, -LIMIT, LIMIT, -LIMIT]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("layers.1.spatial.weight", lambda w: w + 17, "exceed exact arithmetic"),
        ("layers.1.gate.bias", lambda b: b + 2**30, "exceed exact arithmetic"),
        ("layers.0.slope", lambda s: s * 0 + np.int16(-32768), "exceed exact arithmetic"),
        ("layers.0.slope", lambda s: None, "lack layers.0.slope"),
        ("layers.1.mix.shift", lambda s: s * 0 - 1, "exceed exact arithmetic"),
        ("layers.1.input.shift", lambda s: s * 0 + 16, "exceed exact arithmetic"),
        ("layers.2.multiplier", lambda m: -m, "exceed exact arithmetic"),
        ("layers.1.limit", lambda m: m * 0 - 1, "exceed exact arithmetic"),
        ("layers.1.input.scale", lambda m: m * 0 + np.int16(-32768), "exceed exact arithmetic"),
        ("layers.1.gate.weight", lambda w: w[:, :-1], r"layers.1.gate.weight is int8 \[64, 31"),
        ("layers.1.limit", lambda m: m.astype(np.int32), "layers.1.limit is int32"),
        ("layers.1.limit", lambda m: None, "lack layers.1.limit"),
        ("layers.9.limit", lambda m: np.zeros(3, np.int16), "unexpectedly include layers.9.limit"),
    ],
)
def test_tensors_of_other_shapes_or_sizes_are_refused(name, change, reason):
    tensors = made_up(SIZES[0])
    changed = change(tensors.get(name))
    tensors = {key: tensor for key, tensor in tensors.items() if key != name}
    if changed is not None:
        dtype = integer_tensors.shapes(SIZES[0]).get(name, ("int16",))[0]
        keep = name.endswith("limit") and changed.dtype == np.int32
        tensors[name] = changed if keep else changed.astype(dtype)
    with pytest.raises(WeightsError, match=reason):
        integer_tensors.load(tensors, SIZES[0])


def test_memory_that_is_not_aligned_is_a_bad_argument():
    packed = integer_tensors.packed(made_up(SMALLER[2]), SMALLER[2])
    numbers, weights = packed.numbers, packed.weights
    tensors = kernel.pointer(numbers), len(numbers), kernel.pointer(weights), len(weights)
    size = kernel.library().dynenc_decoder_size(*tensors)
    memory, init = kernel.Memory(size + 8), kernel.library().dynenc_decoder_init
    assert init(memory.address, size, *tensors) == 0
    assert init(memory.address, size - 1, *tensors) == -2
    assert init(memory.address + 8, size, *tensors) == -1
    assert init(None, size, *tensors) == -1


def test_other_widths_are_refused():
    for sizes in (Sizes((48, 32, 32), (1, 1, 1)), Sizes((32, 32, 32), (60, 1, 1))):
        with pytest.raises(WeightsError, match="do not fit"):
            integer_tensors.load(made_up(sizes), sizes)

"""The encoders in the native kernel: equal to plain numpy with every instruction set."""

import copy
import importlib.util
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dynenc import registry
from dynenc.errors import WeightsError
from dynenc.native import compile, kernel
from dynenc.native import encoder as native
from dynenc.networks.encoder import Encoder
from dynenc.networks.loading import load_encoder

HERE = [
    name for name, path in kernel.INSTRUCTION_SETS.items() if kernel.library().dynenc_has_path(path)
]
ONE = np.float32(1)


def halves(x):
    """Sums over the last axis: 16 partial sums, then halves are added to halves."""
    sums = x[..., :16].copy()
    for i in range(16, x.shape[-1], 16):
        sums += x[..., i : i + 16]
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half : 2 * half]
    return sums


def to_integers(x):
    """Integers, the largest of a place 32767, and what 1 of them is."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    return np.rint(x * (np.float32(32767) / largest)).astype(np.int64), largest / np.float32(32767)


def layer(weight, bias, limit, unit=1.0):
    """Integer weights [outputs, inputs], scales and biases, float32; limit: of weights' factor."""
    factor = np.minimum(65000 / np.maximum(limit, 1e-20), 32767 / np.abs(weight).max(1))
    rounded = np.rint(weight * factor[:, None]).astype(np.int64)
    return rounded, (1 / (factor * unit)).astype(np.float32), bias.astype(np.float32)


def finished(inputs, packed, units=ONE):
    weight, scale, bias = packed
    sums = inputs @ weight.T
    assert np.abs(sums).max() < 2**31
    return sums.astype(np.float32) * (scale * units) + bias


def gated(outputs):
    gates, values = np.split(outputs, 2, axis=-1)
    return np.maximum(gates, 0) * values


def numpy_latents(tensors, width, blocks, pixels):
    """What dynenc.h and encoder.h say, in numpy: pixels [H, W, 3] -> [C, h, w]."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}
    missing = [-side % 8 for side in pixels.shape[:2]]
    padded = np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)], "edge")
    h, w = padded.shape[0] // 8, padded.shape[1] // 8
    patches = padded.reshape(h, 8, w, 8, 3).transpose(0, 2, 4, 1, 3).reshape(h, w, 192)

    def stem(name):
        weight, bias = tensors[f"{name}.weight"].reshape(-1, 192), t[f"{name}.bias"]
        step = np.abs(weight).max(1) / np.float32(127)
        rounded = np.rint(weight / step[:, None]).astype(np.int64)
        step = step.astype(np.float64)
        offset = bias - rounded.sum(1) * step
        scale = (step / 127.5).astype(np.float32)
        return finished(patches.astype(np.int64), (rounded, scale, offset.astype(np.float32)))

    one = np.float32(int(32766 / np.sqrt(width)))
    features = gated(stem("stem"))
    for i in range(blocks):
        part = {n.removeprefix(f"context.{i}."): v for n, v in t.items()}
        mean = halves(features) / np.float32(width)
        centred = features - mean
        variance = halves(centred * centred) / np.float32(width)
        factor = one / np.sqrt(variance + np.float32(1e-5))
        normal = np.rint(centred * factor).astype(np.int64)
        around = np.pad(normal, [(1, 1), (1, 1), (0, 0)], "edge")
        nine = [around[y : y + h, x : x + w] for y in range(3) for x in range(3)]
        spatial = part["spatial.weight"].transpose(0, 2, 3, 1) * part["norm.weight"]
        bias = part["spatial.bias"] + np.einsum(
            "oiyx,i->o", part["spatial.weight"], part["norm.bias"]
        )
        lengths = np.sqrt(np.square(spatial).sum(3)).sum((1, 2))
        packed = layer(spatial.reshape(width, -1), bias, lengths, one)
        x, units = to_integers(finished(np.concatenate(nine, -1), packed))
        for name in ("gate", "mix"):
            weight = part[f"{name}.weight"].reshape(-1, width)
            packed = layer(weight, part[f"{name}.bias"], np.abs(weight).sum(1))
            outputs = finished(x, packed, units)
            if name == "gate":
                x, units = to_integers(gated(outputs))
        features = features + outputs
    weight = t["head.weight"].reshape(-1, width)
    x, units = to_integers(features)
    head = finished(x, layer(weight, t["head.bias"], np.abs(weight).sum(1)), units)
    return (head + stem("linear")).transpose(2, 0, 1)


def made(width, blocks, channels=4, seed=0):
    """An encoder of random weights in torch, and its tensors."""
    torch.manual_seed(seed)
    encoder = Encoder(0, width, blocks, channels).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.mul_(1 + torch.rand(()))
    return encoder, {name: value.numpy() for name, value in encoder.state_dict().items()}


def loaded(name):
    """An encoder of the release."""
    return native.load(registry.named(name, "encoder"))


def image(height, width, seed=0):
    random = np.random.default_rng(seed)
    rough = random.integers(0, 256, (height, width, 3))
    smooth = np.cumsum(random.integers(-3, 4, (height, width, 3)), 1) + 128
    return np.where(random.random((height, width, 1)) < 0.1, rough, smooth).astype(np.uint8)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("sizes", [(16, 1), (64, 3), (48, 2), (32, 0), (64, 1, 16), (16, 1, 13)])
@pytest.mark.parametrize("size", [(1, 1), (8, 9), (60, 137), (17, 300)], ids=str)
def test_latents_are_those_of_plain_numpy(monkeypatch, path, sizes, size):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, path)
    width, blocks = sizes[:2]
    _, tensors = made(*sizes)
    encoder = native.Encoder(native.flattened(tensors, blocks), *sizes)
    pixels = image(*size)
    found = encoder.latents(pixels)
    expected = numpy_latents(tensors, width, blocks, pixels)
    # the sums of packed biases are in another order there, so the last bit of a float32 may differ
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert np.abs(found - expected).mean() < 1e-5


@pytest.mark.parametrize("name", ["nano", "light"])
def test_every_instruction_set_gives_the_same_latents(monkeypatch, name):
    encoder = loaded(name)
    for size in ((1, 1), (9, 140), (130, 257)):
        pixels, found = image(*size), []
        for path in HERE:
            monkeypatch.setenv(kernel.SIMD_VARIABLE, path)
            found.append(encoder.latents(pixels).tobytes())
        assert len(set(found)) == 1


@pytest.fixture(scope="module")
def on_big_endian(tmp_path_factory):
    """The command that runs latents.c on an emulated big-endian processor."""
    qemu = shutil.which("qemu-s390x") or shutil.which("qemu-s390x-static")
    compiler = [shutil.which("s390x-linux-gnu-gcc")]
    if importlib.util.find_spec("ziglang"):
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "s390x-linux-musl"]
    if not (qemu and compiler[0]):
        pytest.skip("needs qemu-s390x, and s390x-linux-gnu-gcc or ziglang")
    program = tmp_path_factory.mktemp("s390x") / "latents"
    flags = ["-static", "-std=c11", "-O2", "-ffp-contract=off", f"-I{compile.FOLDER}"]
    files = [Path(__file__).with_name("latents.c"), *compile.sources()]
    subprocess.run([*compiler, *flags, *files, "-lm", "-o", program], check=True)
    return [qemu, program]


@pytest.mark.parametrize("sizes", [(16, 1, 4), (64, 1, 16)])
def test_a_big_endian_processor_gives_the_same_latents(on_big_endian, sizes):
    _, tensors = made(*sizes)
    flat, pixels = native.flattened(tensors, sizes[1]), image(16, 152)
    header = np.array([*sizes, flat.size, *pixels.shape[:2]], ">i4")
    given = header.tobytes() + flat.astype(">f4").tobytes() + pixels.tobytes()
    found = subprocess.run(on_big_endian, input=given, stdout=subprocess.PIPE, check=True).stdout
    expected = native.Encoder(flat, *sizes).latents(pixels)
    assert np.array_equal(np.frombuffer(found, ">f4").reshape(expected.shape), expected)


@pytest.mark.parametrize("name", ["nano", "light"])
def test_latents_are_close_to_those_of_floats(name, monkeypatch):
    monkeypatch.setenv("DYNENC_CPU_DTYPE", "float32")
    encoder, pixels = load_encoder(name), image(64, 96)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        floats = encoder(tensor.float() / 127.5 - 1)
        assert (encoder(tensor) - floats).abs().max() < 4e-3
        assert (encoder(tensor) - floats).std() < 1e-3 * floats.std()
    assert np.array_equal(encoder(tensor)[0].numpy(), loaded(name).latents(pixels))


@pytest.mark.parametrize("value", [0, 255])
def test_extreme_pixels_and_weights_stay_exact(monkeypatch, value):
    _, tensors = made(16, 1)
    tensors = {name: np.sign(array) * np.float32(256) for name, array in tensors.items()}
    tensors["context.0.gate.weight"] *= 0
    pixels, found = np.full((24, 24, 3), value, np.uint8), []
    encoder = native.Encoder(native.flattened(tensors, 1), 16, 1)
    for path in HERE:
        monkeypatch.setenv(kernel.SIMD_VARIABLE, path)
        found.append(encoder.latents(pixels))
        assert np.isfinite(found[-1]).all()
        assert np.array_equal(found[-1], found[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -257])
def test_weights_without_sense_are_refused(value):
    _, tensors = made(16, 1)
    flat = native.flattened(tensors, 1)
    flat[7] = value
    with pytest.raises(WeightsError, match="not finite, or beyond 256"):
        native.Encoder(flat, 16, 1)


def test_rows_may_lie_apart_and_pixels_anywhere():
    encoder = loaded("nano")
    large = image(80, 90)
    for part in (large[3:60, 5:77], large[::2], large[:, ::-1], large[::-1], large[..., ::-1]):
        assert np.array_equal(encoder.latents(part), encoder.latents(part.copy()))


def test_copies_give_the_same_and_outlive_the_original():
    encoder, pixels = loaded("nano"), image(30, 40)
    expected = encoder.latents(pixels)
    copies = copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))
    del encoder
    for other in copies:
        assert np.array_equal(other.latents(pixels), expected)

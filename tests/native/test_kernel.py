"""The native kernel equals the numpy coder, byte for byte, with every instruction set."""

import ctypes
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import oracles.numpy_coder.bit_costs as numpy_bit_costs
import oracles.numpy_coder.entropy as numpy_entropy
import oracles.numpy_coder.quantize as numpy_quantize
import pytest

from dynenc import registry
from dynenc.coding import bit_costs, quantize
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, DynencError
from dynenc.native import compile, decoder, kernel
from dynenc.native.kernel import MAX_SYMBOL

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.lat"))
KINDS = [("fast", False), ("full", False), ("full", True)]
HERE = [
    name for name, path in kernel.INSTRUCTION_SETS.items() if kernel.library().dynenc_has_path(path)
]
SHAPES = [(1, 1), (1, 9), (7, 1), (5, 6), (33, 17), (40, 70)]
STEPS = [1, 2, 3, 77, 307, 1229, 5000, 65_535]


@pytest.fixture(params=HERE)
def path(request, monkeypatch):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, request.param)


@pytest.fixture(params=KINDS, ids=str)
def coders(request):
    """The product's and the one in numpy."""
    name, has_trellis = request.param
    data = registry.read_file(registry.named(name, "coder"))
    slow = numpy_entropy.EntropyCoder.load(data, has_trellis=has_trellis)
    return load_coder(name, has_trellis=has_trellis), slow


def smooth(height, width, seed=0):
    """Made-up latents whose neighbours resemble each other."""
    noise = np.random.default_rng(seed).normal(0, 1, (4, height + 2, width + 2))
    latents = (noise[:, 1:-1, 1:-1] + noise[:, :-2, 1:-1] + noise[:, 1:-1, :-2]) * 0.6
    return latents.astype(np.float32)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_payloads_and_symbols_are_those_of_the_numpy_coder(coders, shape):
    coder, slow = coders
    random = np.random.default_rng(shape)
    for step_q in (*STEPS, *random.integers(1, 65_536, 3).tolist()):
        latents = smooth(*shape)
        symbols = np.rint(latents * (1024 / step_q)).clip(-MAX_SYMBOL, MAX_SYMBOL).astype(np.int32)
        symbols.flat[random.integers(symbols.size)] = random.choice([-MAX_SYMBOL, 900, MAX_SYMBOL])
        payload = slow.encode(symbols, step_q)
        assert coder.encode(symbols, step_q) == payload
        assert np.array_equal(coder.decode(payload, *shape, step_q), symbols)
        for product, oracle in (
            (quantize.to_symbols, numpy_quantize.to_symbols),
            (quantize.to_nearest, numpy_quantize.to_nearest),
            (quantize.from_symbols, numpy_quantize.from_symbols),
        ):
            given = symbols if product is quantize.from_symbols else latents
            assert np.array_equal(product(given, step_q, coder), oracle(given, step_q, slow))


def test_latents_that_are_no_numbers_or_huge_are_quantised_the_same(coders):
    coder, slow = coders
    latents = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 40_000, -0.0, 1e-40], np.float32)
    latents = np.resize(latents, (4, 5, 7))
    for step_q in STEPS:
        found = quantize.to_symbols(latents, step_q, coder)
        assert np.array_equal(found, numpy_quantize.to_symbols(latents, step_q, slow))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("step_q", [77, 400, 3000])
def test_costs_and_gradients_are_those_of_the_numpy_coder(coders, step_q):
    coder, slow = coders
    symbols = np.rint(smooth(21, 14) * (1024 / step_q)).astype(np.int32)
    symbols[1, 2, 3] = 700  # escapes
    costs = numpy_bit_costs.bit_costs(slow, symbols, step_q)
    np.testing.assert_allclose(bit_costs.bit_costs(coder, symbols, step_q), costs, rtol=1e-6)
    expected = numpy_bit_costs.context_gradient(slow, symbols, step_q)
    found = bit_costs.context_gradient(coder, symbols, step_q)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_golden_files_are_read_and_written_the_same(file):
    blob = file.read_bytes()
    lat = LatFile.parse(blob)
    again = lat.coder.encode(lat.symbols, lat.header.step_q)
    assert again == lat.payload


def test_a_payload_of_a_real_file_cut_anywhere_is_corrupt():
    lat = LatFile.parse(GOLDEN[0].read_bytes())
    size, step_q = lat.symbols.shape[1:], lat.header.step_q
    for length in range(0, len(lat.payload), 4):
        with pytest.raises(Corrupt):
            lat.coder.decode(lat.payload[:length], *size, step_q)


def test_an_unknown_instruction_set_is_named(monkeypatch):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, "mmx")
    with pytest.raises(DynencError, match="DYNENC_SIMD is 'mmx'") as caught:
        kernel.quantize(smooth(2, 2), 300, has_trellis=False)
    assert "portable" in caught.value.hint


def test_a_chosen_compiler_that_does_not_work_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false -m64")
    with pytest.raises(compile.NoCompiler, match=r"CC is 'false -m64'.* unset it"):
        compile.build(tmp_path / "kernel.so")


def test_the_path_of_a_chosen_compiler_may_have_spaces(monkeypatch, tmp_path):
    compiler = tmp_path / "my cc"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert list(compile.candidates()) == [[str(compiler)]]


def test_symbols_out_of_range_are_refused(coders):
    symbols = np.full((4, 2, 2), MAX_SYMBOL + 1, np.int32)
    with pytest.raises(ValueError, match="native kernel"):
        coders[0].encode(symbols, 300)
    with pytest.raises(ValueError, match="native kernel"):
        kernel.reconstruction_points(symbols, has_trellis=True)


@pytest.mark.parametrize("shape", [(17, 2, 2), (4, 0, 2), (4, 2, 8193)], ids=str)
def test_roughness_of_latents_out_of_range_is_refused(shape):
    with pytest.raises(ValueError, match="native kernel"):
        kernel.roughness(np.zeros(shape, np.float32))


def ctype(declaration):
    """The type by which ctypes passes an argument, a result or a field of C."""
    if "*" in declaration:
        return ctypes.c_void_p
    return getattr(ctypes, f"c_{declaration.split()[0].removesuffix('_t')}")


def test_functions_and_structures_are_those_of_the_header():
    header = (compile.FOLDER / "dynenc.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/|\bconst\b", "", header, flags=re.DOTALL)
    found, declared = {}, {}
    for result, name, arguments in re.findall(
        r"DYNENC_API\s+(\w+) dynenc_(\w+)\((.*?)\);", header, re.DOTALL
    ):
        function = getattr(kernel.library(), f"dynenc_{name}")
        found[name] = function.restype, *function.argtypes
        declared[name] = ctype(result), *map(ctype, arguments.split(","))
    structures = {
        "dynenc_call": kernel.Call,
        "dynenc_image": kernel.InputImage,
        "dynenc_pixels_call": decoder.Call,
    }
    for fields, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", header, re.DOTALL):
        found[name] = structures.pop(name)._fields_
        declared[name] = tuple(
            (field.strip(" *"), ctype(line))
            for line in fields.split(";")[:-1]
            for field in line.split(maxsplit=1)[1].split(",")
        )
    assert found == declared
    assert found.keys() >= kernel.FUNCTIONS.keys()
    assert not structures


def test_the_header_is_one_of_cpp(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("needs c++")
    source = tmp_path / "a.cpp"
    source.write_text('#include "dynenc.h"\nint main() { return dynenc_has_path(-1); }\n')
    command = [compiler, f"-I{compile.FOLDER}", source, compile.LIBRARY, "-o", tmp_path / "a"]
    subprocess.run(command, check=True)


def test_flags_that_change_latents_are_refused_or_named(tmp_path, monkeypatch):
    header = (compile.FOLDER / "dynenc.h").read_text(encoding="utf-8")
    assert set(compile.FLAGS) - set(header.replace(",", " ").split()) <= {
        "-fvisibility=hidden",
        "-shared",
    }
    monkeypatch.setattr(compile, "FLAGS", [*compile.FLAGS, "-ffast-math"])
    with pytest.raises(compile.NoCompiler, match="compile without -ffast-math"):
        compile.build(tmp_path / "kernel.so")


def test_threads_share_a_coder():
    coder = load_coder("full", has_trellis=True)
    images = [smooth(24, 32, seed) for seed in range(8)]
    alone = [coder.encode(quantize.to_symbols(x, 344, coder), 344) for x in images]
    found = {}

    def work(first):
        for number in range(first, len(images), 2):
            symbols = quantize.to_symbols(images[number], 344, coder)
            found[number] = coder.encode(symbols, 344)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(images))] == alone

import numpy as np
import pytest
import torch
from helpers.lat_files import zero_order_bits
from oracles import entropy as entropy_oracle
from safetensors.numpy import load

from dynenc import registry
from dynenc.coding.encode_latents import encode_latents
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.errors import Corrupt, WeightsError
from dynenc.native.kernel import MAX_SYMBOL

TABLES = registry.read_file(registry.MODELS["fast"])
KINDS = {"fast": ("fast", False), "plain": ("full", False), "trellis": ("full", True)}
SPACE_KINDS = {
    f"{name}, {lattice}": (name, lattice == "trellis")
    for name in ("full-sdxl", "full-flux1", "encoders-flux1", "full-sd3")
    for lattice in ("plain", "trellis")
}
ALL_KINDS = KINDS | SPACE_KINDS


def coder_of(kind):
    name, has_trellis = ALL_KINDS[kind]
    return load_coder(name, has_trellis=has_trellis)


@pytest.fixture
def model():
    return coder_of("fast")


@pytest.fixture(params=ALL_KINDS)
def each_model(request):
    return coder_of(request.param)


def smooth(height, width, step_q, seed=0, channels=4):
    """Symbols of made-up latents whose neighbours resemble each other."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 1, (channels, height + 2, width + 2))
    latents = (noise[:, 1:-1, 1:-1] + noise[:, :-2, 1:-1] + noise[:, 1:-1, :-2]) * 0.6
    return np.rint(latents * 1024 / step_q).astype(np.int32)


@pytest.mark.parametrize("step_q", [1, 77, 307, 1229, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (5, 6), (32, 48)])
def test_symbols_survive(each_model, shape, step_q):
    symbols = np.clip(smooth(*shape, step_q, channels=each_model.channels), -MAX_SYMBOL, MAX_SYMBOL)
    payload = each_model.encode(symbols, step_q)
    decoded = each_model.decode(payload, *shape, step_q)
    assert decoded.dtype == np.int16
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("value", [-MAX_SYMBOL, MAX_SYMBOL, 255, 0])
def test_extreme_symbols_survive(each_model, value):
    symbols = np.full((each_model.channels, 6, 7), value, np.int32)
    symbols[-2, 3, 4] = -MAX_SYMBOL
    for step_q in (1, 307, 65535):
        payload = each_model.encode(symbols, step_q)
        assert np.array_equal(each_model.decode(payload, 6, 7, step_q), symbols)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("shape", "step_q"), [((1, 1), 307), ((9, 10), 102), ((6, 13), 1024)])
def test_a_program_written_from_the_specification_agrees(kind, shape, step_q):
    symbols = smooth(*shape, step_q, channels=coder_of(kind).channels)
    symbols.flat[3] = 900  # escapes
    symbols.flat[1] = -MAX_SYMBOL
    payload = coder_of(kind).encode(symbols, step_q)
    name, has_trellis = ALL_KINDS[kind]
    tensors = entropy_oracle.read_tensors(registry.read_file(registry.named(name, "coder")))
    decoded = entropy_oracle.decode(tensors, payload, *shape, step_q, has_trellis=has_trellis)
    assert decoded == symbols.tolist()


@pytest.mark.parametrize("encoder", ["nano", "light", "base", "autoencoder"])
@pytest.mark.parametrize(("step_q", "most"), [(77, 1200), (307, 600), (1229, 250)])
def test_a_flat_file_costs_little(encoder, step_q, most):
    latents, model = np.zeros((4, 64, 96), np.float32), registry.MODELS[encoder]
    assert len(encode_latents(latents, (768, 512), step_q, model).payload) < most


def test_contexts_save_bits(model):
    coarse = np.random.default_rng(0).normal(0, 3, (4, 16, 16))
    symbols = np.rint(np.kron(coarse, np.ones((1, 4, 4)))).astype(np.int32)
    assert 8 * len(model.encode(symbols, 307)) < 0.8 * zero_order_bits(symbols)


def test_known_payload(model):
    symbols = np.arange(-8, 8, dtype=np.int32).reshape(4, 2, 2)
    assert model.encode(symbols, 307).hex() == "16cfa3fe42aae7d300dac822"


def test_impossible_payloads_are_corrupt(model):
    symbols = smooth(8, 8, 307)
    payload = model.encode(symbols, 307)
    for damaged in (payload[:-1], payload + b"\0", payload + bytes(4), payload * 2, payload * 99):
        with pytest.raises(Corrupt):
            model.decode(damaged, 8, 8, 307)


def test_an_escape_for_what_has_a_place_in_the_table_is_corrupt(model):
    payload = bytes.fromhex(  # found by fuzzing; no encoder writes it
        "ffffffffff0000fec67f007f603b1c80ff1e7f64000050ff8a81e2ae7d5b7151ff1a461464fbffff"
        "ffffff13990ec5ff31e78605cdc12f1e8d1dd9bc5e78df6a637db9f9ff2d65347214cf2929010020"
        "31019601000201000f4946a5"
    )
    with pytest.raises(Corrupt):
        model.decode(payload, 5, 6, 307)


def test_a_symbol_beyond_the_largest_is_corrupt(model):
    largest = model.decode(bytes.fromhex("feffffff659d33da"), 1, 1, 307)
    assert largest.flatten().tolist() == [MAX_SYMBOL, 0, 0, 0]
    with pytest.raises(Corrupt):  # the same with 32,768
        model.decode(bytes.fromhex("ffffffff659c33da"), 1, 1, 307)


@pytest.mark.parametrize(("has_trellis", "channels"), [(False, 4), (True, 4), (True, 6)])
def test_fitting_is_repeatable_and_makes_working_coders(has_trellis, channels):
    from dynenc.training.fit_coder import fit
    from dynenc.training.samples import FitConfig

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = channels, 12, 13
    latents = [np.random.default_rng(n).normal(0, 0.7, shape) for n in range(3)]
    sizes = {"hidden": 4, "middle": 3, "neighbours": 5}
    config = FitConfig("full", has_trellis, **sizes, samples=300, batch=32, iterations=4)
    tensors, again = fit(latents, config), fit(iter(latents), config)
    torch.set_num_threads(threads)
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())
    for which in (False, has_trellis):
        fitted = EntropyCoder.of(tensors, has_trellis=which)
        symbols = smooth(9, 10, 307, channels=channels)
        assert np.array_equal(fitted.decode(fitted.encode(symbols, 307), 9, 10, 307), symbols)


def test_weights_too_large_for_exact_sums_are_refused():
    tensors = load(TABLES)
    tensors["plain.3.hidden"] = np.full_like(tensors["plain.3.hidden"], 9000)
    with pytest.raises(WeightsError):
        EntropyCoder.of(tensors, has_trellis=False)


@pytest.mark.parametrize("name", ["plain.0.bias", "plain.2.hidden", "plain.counts", "thresholds"])
def test_tensors_of_another_shape_or_type_are_refused(name):
    tensors = load(TABLES)
    whole = tensors[name]
    for wrong in (np.array(whole.flat[0]), whole[..., None], whole.astype(np.float32)):
        with pytest.raises(WeightsError):
            EntropyCoder.of(tensors | {name: wrong}, has_trellis=False)


@pytest.mark.parametrize("data", [b"", b"junk" * 9, TABLES[:99], TABLES[:-1]])
def test_wrong_tables_are_refused(data):
    with pytest.raises(WeightsError):
        EntropyCoder.load(data, has_trellis=False)

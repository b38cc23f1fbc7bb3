import numpy as np
import oracle_entropy
import pytest
import torch
from safetensors.numpy import load
from threadpoolctl import threadpool_limits

from dynenc import codec, registry
from dynenc.coding import bitstream, entropy, quantize
from dynenc.coding.entropy import LIMIT, EntropyModel, one_thread
from dynenc.errors import Corrupt, WeightsError

TABLES = registry.read_file(registry.MODELS["context"])
CODERS = registry.names("coder")


@pytest.fixture(scope="module")
def model():
    return EntropyModel.load(TABLES)


@pytest.fixture(scope="module", params=CODERS)
def each_model(request):
    return EntropyModel.load(registry.read_file(registry.named(request.param, "coder")))


def smooth(height, width, step_q, seed=0):
    """Symbols of made-up latents whose neighbours resemble each other."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 1, (4, height + 2, width + 2))
    latents = (noise[:, 1:-1, 1:-1] + noise[:, :-2, 1:-1] + noise[:, 1:-1, :-2]) * 0.6
    return np.rint(latents * 1024 / step_q).astype(np.int32)


@pytest.mark.parametrize("step_q", [1, 77, 307, 1229, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (5, 6), (32, 48)])
def test_symbols_survive(each_model, shape, step_q):
    symbols = np.clip(smooth(*shape, step_q), -LIMIT, LIMIT)
    payload = each_model.encode(symbols, step_q)
    decoded = each_model.decode(payload, *shape, step_q)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("value", [-LIMIT, LIMIT, 255, 0])
def test_extreme_symbols_survive(each_model, value):
    symbols = np.full((4, 6, 7), value, np.int32)
    symbols[2, 3, 4] = -LIMIT
    for step_q in (1, 307, 65535):
        payload = each_model.encode(symbols, step_q)
        assert np.array_equal(each_model.decode(payload, 6, 7, step_q), symbols)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("shape", "step_q"), [((1, 1), 307), ((9, 10), 102), ((6, 13), 1024)])
def test_a_program_written_from_the_specification_agrees(coder, shape, step_q):
    symbols = smooth(*shape, step_q)
    symbols.flat[3] = 900  # escapes
    symbols.flat[1] = -LIMIT
    tables = registry.read_file(registry.named(coder, "coder"))
    payload = EntropyModel.load(tables).encode(symbols, step_q)
    tensors = oracle_entropy.read_tensors(tables)
    assert oracle_entropy.decode(tensors, payload, *shape, step_q) == symbols.tolist()


@pytest.mark.parametrize("encoder", ["nano", "light", "base", "autoencoder"])
@pytest.mark.parametrize(("step_q", "most"), [(77, 1200), (307, 600), (1229, 250)])
def test_a_flat_file_costs_little(encoder, step_q, most):
    blob = codec.write_latents(
        torch.zeros(1, 4, 64, 96), 768, 512, step_q, registry.MODELS[encoder]
    )
    assert len(bitstream.read(blob)[1]) < most


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("step_q", "most"), [(77, 1200), (307, 600), (1229, 250)])
def test_a_flat_picture_costs_little(coder, step_q, most):
    # files take what is cheaper, which the test above sees
    most = {("wide", 307): 700, ("plain", 77): 1500}.get((coder, step_q), most)
    model = EntropyModel.load(registry.read_file(registry.named(coder, "coder")))
    flat = quantize.to_symbols(torch.zeros(1, 4, 64, 96), step_q, model)
    assert len(model.encode(flat, step_q)) < most


def test_contexts_save_bits(model):
    coarse = np.random.default_rng(0).normal(0, 3, (4, 16, 16))
    symbols = np.rint(np.kron(coarse, np.ones((1, 4, 4)))).astype(np.int32)
    ideal = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        ideal -= (counts * np.log2(counts / counts.sum())).sum()
    assert 8 * len(model.encode(symbols, 307)) < 0.8 * ideal


def test_large_latents_are_coded_as_small_ones(each_model, monkeypatch):
    symbols = smooth(33, 50, 307)
    symbols[2, 7, 9] = 3000  # escapes
    payload = each_model.encode(symbols, 307)
    monkeypatch.setattr(entropy, "MANY", 0)
    assert each_model.encode(symbols, 307) == payload
    assert np.array_equal(each_model.decode(payload, 33, 50, 307), symbols)


def test_known_payload(model):
    symbols = np.arange(-8, 8, dtype=np.int32).reshape(4, 2, 2)
    assert model.encode(symbols, 307).hex() == "6a39a7fe65cca7530011d9a8"


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
    with pytest.raises(Corrupt, match="escapes"):
        model.decode(payload, 5, 6, 307)


def blas_threads():
    return {pool["num_threads"] for pool in one_thread.pools.info()}


def test_threads_of_products_are_limited_while_anybody_is_at_it(model):
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with one_thread:
            model.encode(smooth(8, 8, 307), 307)
            with pytest.raises(Corrupt):
                model.decode(bytes(40), 8, 8, 307)
            assert blas_threads() == {1}
        assert blas_threads() == before


@pytest.mark.parametrize("states", [1, 8])
def test_fitting_is_repeatable_and_makes_a_working_model(states):
    from dynenc.training.fit_coder import FitConfig, fit

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    latents = [np.random.default_rng(n).normal(0, 0.7, (4, 12, 13)) for n in range(3)]
    sizes = {"hidden": 4, "middle": 3, "neighbours": 5}
    config = FitConfig("context", states, **sizes, samples=300, batch=32, iterations=4)
    tensors, again = fit(latents, config), fit(iter(latents), config)
    torch.set_num_threads(threads)
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())
    fitted = EntropyModel.of(tensors)
    symbols = smooth(9, 10, 307)
    assert np.array_equal(fitted.decode(fitted.encode(symbols, 307), 9, 10, 307), symbols)


@pytest.mark.parametrize("wrong", [[[0, 1]], [[0, 1], [0, 0]], [[0, 4], [1, 0]], [0, 0]])
def test_a_trellis_that_cannot_be_searched_is_refused(wrong):
    with pytest.raises(WeightsError, match="trellis"):
        EntropyModel.of(load(TABLES) | {"trellis": np.array(wrong, np.uint8)})


def test_weights_too_large_for_exact_sums_are_refused():
    tensors = load(TABLES)
    tensors["3.hidden"] = np.full_like(tensors["3.hidden"], 9000)
    with pytest.raises(WeightsError):
        EntropyModel.of(tensors)


@pytest.mark.parametrize("data", [b"", b"junk" * 9, TABLES[:99], TABLES[:-1]])
def test_wrong_tables_are_refused(data):
    with pytest.raises(WeightsError):
        EntropyModel.load(data)

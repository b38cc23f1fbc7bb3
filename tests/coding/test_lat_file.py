import numpy as np
import pytest

from dynenc import registry
from dynenc.coding import bitstream, quantize
from dynenc.coding.bitstream import Header
from dynenc.coding.encode_latents import (
    default_coder,
    encode_latents,
    encode_quantized,
    was_encoded_at,
)
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.errors import UnknownModel

ENCODERS = ["nano", "light", "autoencoder"]


def made(encoder, step_q=307):
    latents = np.random.default_rng(0).normal(0, 0.7, (4, 5, 6)).astype(np.float32)
    return encode_latents(latents, (43, 37), step_q, registry.MODELS[encoder], [("note", b"x")])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_parsing_undoes_writing(encoder):
    file = made(encoder)
    again = LatFile.parse(file.to_bytes())
    assert np.array_equal(again.symbols, file.symbols)
    assert np.array_equal(again.latents, file.latents)
    assert (again.payload, list(again.chunks)) == (file.payload, file.chunks)
    assert again.header.flags == file.header.flags | bitstream.HAS_CHUNKS
    assert again.model is file.model
    assert again.to_bytes() == file.to_bytes()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_quantised_latents_keep_their_values_on_either_lattice(encoder):
    model = registry.MODELS[encoder]
    for has_trellis in (False, True):
        coder = load_coder("full", has_trellis=has_trellis)
        symbols = quantize.to_symbols(made(encoder).latents, 99, coder)
        file = LatFile.from_symbols(symbols, coder, (43, 37), 99, model)
        again = encode_quantized(file.latents, (43, 37), 99, model)
        assert np.array_equal(again.latents, file.latents)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("quality", [0, 1, 49, 50, 83, 100])
def test_the_quality_of_a_file_is_the_one_asked_for(encoder, quality):
    has_trellis = registry.MODELS[encoder].has_trellis
    file = made(encoder, quantize.quality_to_step(quality, has_trellis=has_trellis))
    assert file.quality == quality
    assert made(encoder, 1).quality > 100
    assert made(encoder, 65_535).quality < 0


def test_the_fast_coder_has_no_trellis():
    flags = bitstream.HAS_TRELLIS
    blob = bitstream.write(Header(8, 8, 307, model_id=1, coder_id=1, flags=flags), bytes(4))
    with pytest.raises(UnknownModel, match="coder 1 with a trellis"):
        LatFile.parse(blob)


@pytest.mark.parametrize("encoder", ["light", "nano"])
@pytest.mark.parametrize("side", [1, 2, 16])
def test_flat_latents_keep_their_means(encoder, side):
    """A constant error is a colour cast: flat images get finer steps."""
    model = registry.named(encoder, "encoder")
    step_q = quantize.quality_to_step(50, has_trellis=default_coder(model).has_trellis)
    random = np.random.default_rng(3)
    for constant in random.normal(0, 0.7, (8, 4, 1, 1)).astype(np.float32):
        latents = np.broadcast_to(constant, (4, side, side)).copy()
        file = encode_latents(latents, (8 * side, 8 * side), step_q, model)
        error = np.abs((file.latents - latents).mean((1, 2)))
        assert error.max() < 0.03  # nearest symbols are off by up to 0.15
        assert len(file.payload) <= max(24, 2.6 * side**2)


def test_other_latents_keep_the_step_that_is_asked_for():
    latents = np.random.default_rng(0).normal(0, 0.5, (4, 16, 16)).astype(np.float32)
    model = registry.named("light", "encoder")
    assert encode_latents(latents, (128, 128), 344, model).header.step_q == 344


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("side", [1, 16])
def test_the_quality_of_a_flat_file_is_known_again(encoder, side):
    model = registry.MODELS[encoder]
    latents = np.full((4, side, side), 0.3137, np.float32)
    for quality in (50, 60):
        step_q = quantize.quality_to_step(quality, has_trellis=model.has_trellis)
        file = encode_latents(latents, (8 * side, 8 * side), step_q, model)
        assert was_encoded_at(file.header, quality, lambda: file)  # noqa: B023
        assert not was_encoded_at(file.header, 90, lambda: file)  # noqa: B023


@pytest.mark.parametrize("quality", [25, 50, 75, 100])
def test_faint_noise_is_known_again_as_flat(quality):
    """Its finer steps may take more bits than most images do."""
    model = registry.MODELS["nano"]
    step_q = quantize.quality_to_step(quality, has_trellis=False)
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0.3, 0.03, (4, 9, 9)).astype(np.float32)
        file = encode_latents(noise, (72, 72), step_q, model)
        assert was_encoded_at(file.header, quality, lambda: file)  # noqa: B023


def test_another_quality_is_told_by_the_step():
    file = made("light", quantize.quality_to_step(75, has_trellis=True))  # half that of 50
    assert not was_encoded_at(file.header, 50, lambda: file)
    assert was_encoded_at(file.header, 75, lambda: file)

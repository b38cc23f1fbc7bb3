"""What one half of the codec does, the other undoes; tests/coding has those of format and coder."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.lat_files import read_latents
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dynenc import registry
from dynenc.codec import Codec
from dynenc.coding import quantize
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import read_bytes
from dynenc.imaging import tensors
from dynenc.io.writing import writing
from dynenc.native.kernel import MAX_SYMBOL
from dynenc.networks import loading

NANO = Codec.from_pretrained("nano", decoder="embedded", device="cpu")
sides = st.integers(1, 20)


@st.composite
def images(draw):
    """RGB images of up to 20x20 px, of noise between two colours."""
    shape = (draw(sides), draw(sides), 3)
    low, high = sorted((draw(st.integers(0, 255)), draw(st.integers(0, 255))))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return Image.fromarray(random.integers(low, high + 1, shape, np.uint8))


@given(images())
def test_pixels_survive_the_tensor(image):
    assert tensors.to_image(tensors.to_tensor(image)).tobytes() == image.tobytes()


@given(images())
def test_padding_only_adds(image):
    tensor = tensors.to_tensor(image)
    padded = tensors.pad(tensor)
    assert padded[..., : image.height, : image.width].equal(tensor)
    assert not any(side % 8 for side in padded.shape[-2:])


@given(
    hnp.arrays(np.int32, (4, 3, 6), elements=st.integers(3 - MAX_SYMBOL, MAX_SYMBOL - 3)),
    st.integers(1, 65_535),
    st.booleans(),
)
def test_symbols_survive_dequantising(symbols, step_q, has_trellis):
    coder = load_coder("full", has_trellis=has_trellis)
    latents = quantize.from_symbols(symbols, step_q, coder)
    assert np.array_equal(quantize.to_nearest(latents, step_q, coder), symbols)


@settings(max_examples=40, deadline=None)
@given(images(), st.floats(0, 100))
def test_an_image_keeps_its_size_and_its_latents_their_values(image, quality):
    blob = NANO.encode(image, quality=quality)
    header, latents = read_latents(blob)
    assert header.size == image.size == NANO.decode(blob).size
    raw = torch.from_numpy(NANO.latents([image]))
    assert (raw - latents).abs().max() <= header.step_q / 2048 * (1 + 1e-4)
    assert NANO.encode(image, quality=quality) == blob


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_survive_the_disk(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.lat")
        with writing(str(path), overwrite=False) as file:
            file.write(b"\x89LAT" + data)
        assert read_bytes(str(path)) == b"\x89LAT" + data
        with writing(str(path), overwrite=True) as file:
            file.write(data)
        assert path.read_bytes() == data


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("model", ["nano", "embedded"])
def test_weights_survive_the_disk(model, seed):
    torch.manual_seed(seed)
    network = loading.build(registry.MODELS[model])
    state = {name: torch.randn_like(value).half() for name, value in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        loading.save_weights(state, path := Path(folder, "x.safetensors"), {"model": model})
        loaded = loading.load_path(path).state_dict()
    assert all(loaded[name].equal(value.float()) for name, value in state.items())

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dynenc import registry
from dynenc.errors import WeightsError
from dynenc.latent_space import FLUX1, SD1
from dynenc.networks import loading
from dynenc.networks.encoder import to_floats
from dynenc.training import start
from dynenc.training.crops import Crops, build_cache
from dynenc.training.start import Initializer


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    (photos := folder / "photos").mkdir()
    Image.open("tests/images/chelsea.png").convert("RGB").save(photos / "cat.png")
    build_cache(photos, folder / "cache")
    return Crops([folder / "cache"], 64)


@pytest.fixture
def mix():
    """SD latents -> those of a space that holds the same, in 16 channels."""
    torch.manual_seed(0)
    return nn.Conv2d(SD1.channels, FLUX1.channels, 1).requires_grad_(False)


def starts(crops, target, monkeypatch):
    monkeypatch.setattr(start, "BATCHES", 4)
    return Initializer(crops, target, np.random.default_rng(0))


def weights(name):
    return registry.folder() / registry.MODELS[name].file


def images(crops):
    return to_floats(crops.sample(4, np.random.default_rng(1)))


@pytest.mark.parametrize("name", ["light", "base"])
def test_an_encoder_starts_from_one_of_another_space(crops, mix, monkeypatch, name):
    """Also where the other space's `base` has fewer blocks."""
    encoder = loading.load_encoder(name)
    model = registry.MODELS[f"{name}-flux1"]
    found = starts(crops, lambda x: mix(encoder(x)), monkeypatch).network(model, weights(name))
    assert all(parameter.requires_grad for parameter in found.parameters())
    with torch.no_grad():
        x = images(crops)
        wanted = mix(encoder(x))
        assert (found(x) - wanted).square().mean() < 1e-3 * wanted.var()


def test_the_larger_decoder_starts_as_the_embedded_one(crops, monkeypatch):
    embedded = loading.load_named("embedded", "decoder")
    made = starts(crops, nn.Identity(), monkeypatch)
    fine = made.network(registry.MODELS["fine"], weights("embedded"))
    latents = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(fine(latents, 0.3), embedded(latents, 0.3), rtol=0, atol=1e-4)
    fine(latents, 0.3).square().sum().backward()
    gradient = fine.get_parameter("layers.1.mix.weight").grad
    one, two = gradient.view(2, 128, 256).unbind()  # of copies of outputs
    assert (one - two).abs().max() > 0.01 * gradient.abs().max()  # they learn different things


def test_a_decoder_starts_from_one_of_another_space(crops, mix, monkeypatch):
    base, embedded = loading.load_encoder("base"), loading.load_named("embedded", "decoder")
    model = registry.MODELS["embedded-flux1"]
    found = starts(crops, lambda x: mix(base(x)), monkeypatch).network(model, weights("embedded"))
    with torch.no_grad():
        latents = base(images(crops))
        wanted = embedded(latents)
        assert (found(mix(latents)) - wanted).square().mean() < 1e-3 * wanted.var()


def test_other_networks_are_no_start(crops, mix, monkeypatch):
    with pytest.raises(WeightsError, match="weights of nano, from which light-sdxl cannot start"):
        starts(crops, mix, monkeypatch).network(registry.MODELS["light-sdxl"], weights("nano"))
    with pytest.raises(WeightsError, match=r"is for SD 1\.x latents: use a network of FLUX"):
        loading.load_path(weights("light"), FLUX1)

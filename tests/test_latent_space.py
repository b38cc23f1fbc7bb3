import copy
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dynenc import Codec, registry
from dynenc.latent_space import DYNENC_SPACES, SPACES, LatentSpace, latent_size


@pytest.mark.parametrize("space", SPACES.values())
def test_scaling_and_its_inverse_agree(space):
    raw = torch.randn(1, space.channels, 3, 5)
    assert torch.allclose(space.raw(space.scaled(raw)), raw, atol=1e-6)


def test_images_are_padded_to_whole_patches():
    assert latent_size(1, 9) == (1, 2)
    assert latent_size(512, 768) == (64, 96)


@pytest.mark.parametrize("space", [*SPACES.values(), *DYNENC_SPACES.values()])
def test_a_copy_is_the_space_itself(space):
    assert pickle.loads(pickle.dumps(space)) is space
    assert copy.deepcopy(space) is space


def test_a_space_of_own_networks_is_added_in_one_place(monkeypatch):
    toy = LatentSpace("toy", "toys", channels=4, scale=1.0)
    model = replace(registry.MODELS["autoencoder"], name="toy", number=200, space=toy)
    monkeypatch.setitem(DYNENC_SPACES, "toy", toy)
    monkeypatch.setitem(registry.MODELS, "toy", model)
    monkeypatch.setattr(registry, "LATENT_MODELS", (*registry.LATENT_MODELS, model))
    assert pickle.loads(pickle.dumps(toy)) is toy
    image = Image.new("RGB", (24, 16), (90, 140, 60))
    codec = Codec.from_pretrained("toy", device="cpu")
    decoded = codec.decode(codec.encode(image))
    like = Codec.from_pretrained("autoencoder", device="cpu")
    assert decoded == like.decode(like.encode(image))

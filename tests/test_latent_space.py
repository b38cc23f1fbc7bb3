import copy
import pickle

import pytest
import torch

from dynenc import registry
from dynenc.latent_space import OWN_SPACES, SD1, SPACES, LatentSpace, latent_size


@pytest.mark.parametrize("space", SPACES.values())
def test_scaling_and_its_inverse_agree(space):
    raw = torch.randn(1, space.channels, 3, 5)
    assert torch.allclose(space.raw(space.scaled(raw)), raw, atol=1e-6)


def test_pictures_are_padded_to_whole_patches():
    assert latent_size(1, 9) == (1, 2)
    assert latent_size(512, 768) == (64, 96)


@pytest.mark.parametrize("space", [*SPACES.values(), *OWN_SPACES.values()])
def test_a_copy_is_the_space_itself(space):
    assert pickle.loads(pickle.dumps(space)) is space
    assert copy.deepcopy(space) is space


def test_a_space_of_own_networks_is_added_in_one_place(monkeypatch):
    toy = LatentSpace("toy", "toy", channels=4, scale=1.0)
    monkeypatch.setitem(OWN_SPACES, "toy", toy)
    assert toy.is_own
    assert pickle.loads(pickle.dumps(toy)) is toy
    assert registry.coders(toy) == registry.coders(SD1)

import copy
import pickle

import pytest
import torch

from dynenc.latent_space import AUTOENCODER, SD1, SPACES


@pytest.mark.parametrize("space", SPACES.values())
def test_scaling_and_its_inverse_agree(space):
    raw = torch.randn(1, space.channels, 3, 5)
    assert torch.allclose(space.raw(space.scaled(raw)), raw, atol=1e-6)


def test_pictures_are_padded_to_whole_patches():
    assert SD1.size(1, 9) == (1, 2)
    assert SD1.size(512, 768) == (64, 96)
    assert SD1.patch_values == 192


@pytest.mark.parametrize("space", [*SPACES.values(), AUTOENCODER])
def test_a_copy_is_the_space_itself(space):
    assert pickle.loads(pickle.dumps(space)) is space
    assert copy.deepcopy(space) is space

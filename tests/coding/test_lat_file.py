import numpy as np
import pytest

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.lat_file import LatFile, default_coder


@pytest.mark.parametrize("encoder", ["light", "nano"])
@pytest.mark.parametrize("side", [1, 2, 16])
def test_flat_latents_keep_their_means(encoder, side):
    """A constant error is a colour cast; finer steps cost a flat picture next to nothing."""
    model = registry.named(encoder, "encoder")
    step_q = quantize.quality_to_step(50, has_trellis=default_coder(model).has_trellis)
    random = np.random.default_rng(3)
    for constant in random.normal(0, 0.7, (8, 4, 1, 1)).astype(np.float32):
        latents = np.broadcast_to(constant, (4, side, side)).copy()
        file = LatFile.of_latents(latents, (8 * side, 8 * side), step_q, model)
        error = np.abs((file.latents - latents).mean((1, 2)))
        assert error.max() < 0.1  # nearest symbols are off by up to 0.15
        assert len(file.payload) <= max(12, 1.5 * side**2)


def test_other_latents_keep_the_step_that_is_asked_for():
    latents = np.random.default_rng(0).normal(0, 0.5, (4, 16, 16)).astype(np.float32)
    model = registry.named("light", "encoder")
    assert LatFile.of_latents(latents, (128, 128), 344, model).header.step_q == 344

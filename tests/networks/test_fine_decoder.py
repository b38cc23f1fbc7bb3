"""The larger decoder: where its training starts, borders, tiles, and when it is chosen."""

import diffusers
import pytest
import torch

from dynenc import runtime
from dynenc.errors import WeightsError
from dynenc.networks.decoder_choice import SD_VAE_VARIABLE, choose_decoder
from dynenc.networks.decoders import load_decoder
from dynenc.networks.fine_decoder import FineDecoder


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FineDecoder(64, (3, 3, 3, 1)).eval().requires_grad_(False)


def test_it_starts_as_the_teacher_s_decoder(network):
    teacher = diffusers.AutoencoderTiny().eval().decoder
    network.copy_weights_from(teacher)
    latents = torch.randn(1, 4, 44, 44, generator=torch.Generator().manual_seed(0))
    inner = (..., slice(150, 202), slice(150, 202))  # where no padding is seen
    with torch.no_grad():
        torch.testing.assert_close(network(latents)[inner], teacher(latents)[inner])


def test_another_teacher_is_refused(network):
    with pytest.raises(WeightsError, match="does not have the architecture"):
        network.copy_weights_from(
            diffusers.AutoencoderTiny(decoder_block_out_channels=(32,) * 4).decoder
        )


def test_a_flat_image_is_flat_up_to_its_border(network):
    latents = torch.tensor([0.3, -0.8, 1.1, 0.0])[None, :, None, None].expand(1, 4, 5, 7)
    image = network(latents)
    torch.testing.assert_close(image, image[..., :1, :1].expand_as(image), rtol=0, atol=1e-4)


def test_tiles_equal_the_whole(monkeypatch):
    monkeypatch.setenv("DYNENC_CPU_DTYPE", "float32")
    decoder = load_decoder("fine", "cpu")
    latents = torch.randn(1, 4, 60, 40, generator=torch.Generator().manual_seed(0)) * 0.8
    whole = decoder(latents)
    decoder.tiles = decoder.tiles._replace(side=48)
    assert (decoder(latents) - whole).abs().max() < 0.5 / 127.5


def test_it_is_the_default_on_a_gpu(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv(SD_VAE_VARIABLE, raising=False)
    chosen = {device: choose_decoder("auto", device=device).name for device in ("cpu", "cuda:1")}
    assert chosen == {"cpu": "embedded", "cuda:1": "fine"}
    for has_gpu, name in ((True, "fine"), (False, "embedded")):
        monkeypatch.setattr(runtime, "has_gpu", lambda found=has_gpu: found)
        assert choose_decoder().name == name

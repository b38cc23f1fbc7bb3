"""The larger decoder: tiles, and when it is chosen."""

import torch

from dynenc import runtime
from dynenc.networks.decoder_choice import SD_VAE_VARIABLE, choose_decoder
from dynenc.networks.decoders import load_decoder


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

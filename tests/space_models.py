"""Models for other latent spaces, with random weights, as if they were shipped.

The decoder for latents of 4 channels has those of SD 1.x, in integers.
"""

from dataclasses import replace

import torch
from safetensors.torch import save

from dynenc import registry
from dynenc.networks import loading


def ship(monkeypatch, *names):
    """Add trainable models to those of the package for the time of a test."""
    files, read = {}, registry.read_file
    for name in names:
        torch.manual_seed(0)
        model = replace(registry.TRAINABLE[name], sha256=name)
        state = {key: t.contiguous() for key, t in loading.build(model).state_dict().items()}
        is_integer = model.kind == "decoder" and model.space.channels == 4
        files[name] = read(registry.MODELS["embedded"]) if is_integer else save(state)
        monkeypatch.setitem(registry.MODELS, name, model)
    shipped = [registry.MODELS[name] for name in names]
    encoders = [model for model in shipped if model.kind == "encoder"]
    monkeypatch.setattr(registry, "LATENT_MODELS", (*registry.LATENT_MODELS, *encoders))
    monkeypatch.setattr(registry, "read_file", lambda m: files.get(m.name) or read(m))

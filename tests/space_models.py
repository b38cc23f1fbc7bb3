"""Models for other latent spaces, with random weights, as if they were shipped.

Decoders have those of SD 1.x, in integers, which read the first 4 channels of the latents.
"""

from dataclasses import replace

import torch
from safetensors.torch import load, save

from dynenc import registry
from dynenc.networks import loading

FIRST = "layers.0.weight"


def ship(monkeypatch, *names):
    """Add trainable models to those of the package for the time of a test."""
    files, read = {}, registry.read_file
    for name in names:
        torch.manual_seed(0)
        model = replace(registry.TRAINABLE[name], sha256=name)
        state = {key: t.contiguous() for key, t in loading.build(model).state_dict().items()}
        if model.kind == "decoder":
            state = load(read(registry.MODELS["embedded"]))
            more = torch.zeros(len(state[FIRST]), model.space.channels - 4, 3, 3, dtype=torch.int8)
            state[FIRST] = torch.cat([state[FIRST], more], 1)
        files[name] = save(state)
        monkeypatch.setitem(registry.MODELS, name, model)
    shipped = [registry.MODELS[name] for name in names]
    encoders = [model for model in shipped if model.kind == "encoder"]
    others = [model for model in registry.LATENT_MODELS if model.name not in names]
    monkeypatch.setattr(registry, "LATENT_MODELS", (*others, *encoders))
    monkeypatch.setattr(registry, "read_file", lambda m: files.get(m.name) or read(m))

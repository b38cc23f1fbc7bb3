"""Shared steps of training a small network: data, optimisation, metadata."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dynenc import registry
from dynenc.networks import loading
from dynenc.training.crops import Crops, open_crops
from dynenc.training.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """Settings of a descent by Adam."""

    learning_rate: float  # after warm-up; falls to 0 along a cosine
    warmup_steps: int
    clip: float  # maximum gradient norm


@dataclass(frozen=True, slots=True)
class SmallRun:
    """Data, length and output of the training of a small network."""

    data: tuple[Path, ...]  # folders or tar shards of images
    run: Path  # folder to which they are decoded once
    export: Path  # the .safetensors to write
    encoders: tuple[str, ...]  # names or files of encoders of SD latents
    steps: int
    report: Callable[[int], object]  # called with the number of each step

    def crops(self, side: int) -> Crops:
        """The images, in crops of `side` px."""
        return open_crops(self.data, self.run, side)

    def network(self, name: str) -> loading.AnyNetwork:
        """A new network of that name and kind; always the same."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return loading.build(registry.MODELS[name])

    def minimise(
        self, network: nn.Module, loss: Callable[[int], Tensor], settings: AdamSettings
    ) -> None:
        """Train a network on the loss of each step, counted from 0."""
        optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.98))
        for step in range(self.steps):
            [group] = optimizer.param_groups
            group["lr"] = learning_rate(
                settings.learning_rate, step, settings.warmup_steps, step / self.steps
            )
            optimizer.zero_grad()
            loss(step).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            self.report(step + 1)

    def metadata(self, model: str) -> dict[str, str]:
        """The metadata of the exported file."""
        described = {"data": [path.name for path in self.data], "encoders": list(self.encoders)}
        return {"model": model, "steps": str(self.steps), "training": json.dumps(described)}

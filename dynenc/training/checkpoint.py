"""Checkpoints of a training run: a run that is resumed continues exactly as without a stop."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dynenc.errors import OutputExists
from dynenc.networks.vae_files import sha256_of, weights_of
from dynenc.training.batches import Batches
from dynenc.training.config import TrainConfig, TrainPaths

WRONG = (RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError)


def write(path: Path, state: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Write the state of a run and of its modules and optimisers; complete or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state | {name: part.state_dict() for name, part in parts.items()}, partial)
    partial.replace(path)


def read(
    path: Path, device: torch.device, inputs: dict[str, Any], parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Undo `write` for a run with these `inputs`; fill the modules and return the state.

    Raises: OutputExists if the file is damaged, or from another run.
    """
    try:
        state: dict[str, Any] = torch.load(path, device, weights_only=True)
        others = [name for name, value in inputs.items() if state["inputs"][name] != value]
        if not others:
            for name, part in parts.items():
                part.load_state_dict(state[name])
    except WRONG as exc:
        raise OutputExists(
            f"{path} is damaged, or from a run with other networks", hint="choose another --run"
        ) from exc
    if others:
        raise OutputExists(
            f"{path} is from a run with other {', '.join(others)}", hint="choose another --run"
        )
    return state


def inputs(
    config: TrainConfig, paths: TrainPaths, batches: Batches, exports: list[Path]
) -> dict[str, Any]:
    """What the weights of a run depend on, by the names that `read` reports.

    Files are known by their contents, so they may be moved. A start that the run itself overwrites
    at its end is known by its name.
    """
    overwritten = {path.resolve() for path in exports}

    def known(path: Path | None) -> str:
        if path is None:
            return "none"
        return path.name if path.resolve() in overwritten else sha256_of(path)

    uses_vgg = config.lpips_vgg or config.dists
    return {
        "settings": asdict(config),
        "images": batches.crops.digests,
        "fonts": [font.name for font in batches.synthetic.fonts],
        "teacher": weights_of(str(paths.teacher)),
        "LPIPS weights": known(paths.lpips if config.lpips else None),
        "VGG-16 weights": known(paths.vgg if uses_vgg else None),
        "starting weights": known(paths.start),
        "embedded decoder": known(paths.embedded),
        "encoders": [known(path) for path in paths.encoders],
    }

"""Checkpoints of a training run: a run that is resumed continues exactly as without a stop."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dynenc.errors import OutputExists

WRONG = (RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError)


def write(path: Path, state: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Write the state of a run and of its modules and optimisers; complete or not at all."""
    beside = path.with_suffix(".partial")
    torch.save(state | {name: part.state_dict() for name, part in parts.items()}, beside)
    beside.replace(path)


def read(
    path: Path, device: torch.device, config: dict[str, Any], parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Undo `write` for a run of this configuration; fill the modules and return the state.

    Raises: OutputExists if the file is damaged, or from another run.
    """
    try:
        state: dict[str, Any] = torch.load(path, device, weights_only=True)
        is_same = state["config"] == config
        if is_same:
            for name, part in parts.items():
                part.load_state_dict(state[name])
    except WRONG as exc:
        raise OutputExists(
            f"{path} is damaged, or from a run with other networks", hint="choose another --run"
        ) from exc
    if not is_same:
        raise OutputExists(f"{path} is from a run with other settings", hint="choose another --run")
    return state

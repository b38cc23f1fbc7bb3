"""Provenance of weights, for the metadata of their files."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from dynenc.training.config import TrainConfig, TrainPaths
from dynenc.training.samples import FitConfig


def origin(
    config: TrainConfig | FitConfig, paths: TrainPaths, tiles: int, figures: dict[str, float]
) -> dict[str, str]:
    """Settings, data, teacher, commit and figures of a run."""
    return {
        "config": json.dumps(asdict(config)),
        "data": ", ".join(source.name for source in paths.data),
        "tiles": str(tiles),
        "teacher": paths.teacher.name,
        "commit": commit(),
        "test": paths.test.name if paths.test else "none",
        "figures": json.dumps(figures),
    }


def commit() -> str:
    """The commit of the source tree, or 'unknown' outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(here), "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        top, found = ran.stdout.splitlines()
        return found if Path(top).resolve() == here else "unknown"  # else that of another project
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""`python -m dynenc` is the `dynenc` command."""

import sys
from pathlib import Path

# `python -m` puts the current folder first, and a stray torch.py in it would be run
sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]

from dynenc.cli import run  # noqa: E402

run()

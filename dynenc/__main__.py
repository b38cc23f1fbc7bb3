"""`python -m dynenc` is the `dynenc` command."""

import os
import sys
from contextlib import suppress

# `python -m` puts the current folder first, and a stray torch.py in it would be run
here = {""}
with suppress(OSError):  # the folder has been removed
    here.add(os.getcwd())  # noqa: PTH109  # pathlib is slow to import
sys.path[:] = [path for path in sys.path if path not in here]

from dynenc.cli import run  # noqa: E402

run()

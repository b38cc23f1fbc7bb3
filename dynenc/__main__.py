"""`python -m dynenc` is the `dynenc` command."""

from dynenc.cli import app

app(prog_name="dynenc")

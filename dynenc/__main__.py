"""`python -m dynenc` is the `dynenc` command."""

from dynenc.cli.main import app

app(prog_name="dynenc")

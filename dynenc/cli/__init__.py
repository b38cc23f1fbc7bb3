"""The `dynenc` command."""

from dynenc.cli.main import app

__all__ = ["app"]

"""The `dynenc` command."""

import sys


def run() -> None:
    """Run the command; Ctrl-C while it starts, which takes a moment, is no traceback either."""
    try:
        from dynenc.cli.main import app

        app(prog_name="dynenc")
    except KeyboardInterrupt:
        sys.stderr.write("dynenc: interrupted\n")
        sys.exit(130)

"""The `dynenc` command."""

import sys


def run() -> None:
    """Run the command; Ctrl-C during start-up also ends without a traceback."""
    try:
        from dynenc.cli.main import app

        app(prog_name="dynenc")
    except KeyboardInterrupt:
        sys.stderr.write("dynenc: interrupted\n")
        sys.exit(130)

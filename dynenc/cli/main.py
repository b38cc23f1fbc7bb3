"""The `dynenc` command: parse, call the library, print."""

import sys
from typing import Annotated, Any

import typer

from dynenc import __version__, registry
from dynenc.cli import caching, conversion, development, inspection
from dynenc.cli.commands import Program, examples
from dynenc.coding.bitstream import VERSION
from dynenc.latent_space import DYNENC_SPACES, SPACES

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
    epilog=examples(
        "dynenc encode photo.jpg              writes photo.lat",
        "dynenc decode photo.lat -o back.png  writes the decoded image",
        "dynenc COMMAND --help                shows the options of a command, with examples",
        "dynenc --install-completion          sets up Tab completion",
    ),
)
for section in (conversion.SECTION, caching.SECTION, inspection.SECTION, development.SECTION):
    section.add_to(app)


def print_version(wanted: bool) -> None:
    """Print the versions and model numbers used in .lat files, and exit."""
    if wanted:
        typer.echo(f"dynenc {__version__}")
        typer.echo(f"format   reads {VERSION}, writes {VERSION}")
        for space in (*SPACES.values(), *DYNENC_SPACES.values()):
            models = sorted(
                (m for m in registry.LATENT_MODELS if m.space is space), key=lambda m: m.number
            )
            named = [f"{each.name} {each.number}" for each in models]
            coders = [f"{each.name} {each.number}" for each in registry.coders(space)]
            typer.echo(f"space    {space.name}: {', '.join(named)}; coded by {', '.join(coders)}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_version,
            is_eager=True,
            help="Print the versions of dynenc and of the format, and the numbers of its models.",
        ),
    ] = False,
) -> None:
    """Compress images to .lat files of Stable Diffusion latents, and decode them."""


if __name__ == "__main__":
    sys.exit(app())

"""Progress bars and images on a terminal; rich is imported only for these."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def bars() -> Progress:
    """Progress bars on stderr, each with a text."""
    return Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on stderr, if that is a terminal.

    Yields: a function to call with what is done and the total.
    """
    if quiet or not (sys.stderr and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def shows_colours() -> bool:
    """Whether stdout is a terminal with 256 colours or more."""
    return Console().is_terminal and Console().color_system in ("256", "truecolor", "windows")


def show_image(image: Image.Image) -> None:
    """Print an RGB image of even height."""
    Console().print(half_blocks(image), end="", no_wrap=True, crop=True)


def half_blocks(image: Image.Image) -> Text:
    """An RGB image of even height as text: each character shows two pixels, one above the other."""
    text = Text()
    for y in range(0, image.height, 2):
        for x in range(image.width):
            upper = image.getpixel((x, y))
            lower = image.getpixel((x, y + 1))
            text.append("\u2580", f"rgb{upper} on rgb{lower}".replace(", ", ","))
        text.append("\n")
    return text

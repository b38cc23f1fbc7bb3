"""Notes on what is lost or changed in an image without an error.

For a caller of the library, a note is an `ImageWarning`. Within `collected()` it is added to a
list instead. The list belongs to the running thread or task, so the warning filters, which all
threads of the host process share, are not changed.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dynenc.errors import ImageWarning

ILLEGIBLE = "of it is text or graphics, which will not be legible"  # after a percentage

_current: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(message: str) -> None:
    """Note that something in an image is lost or changed."""
    notes = _current.get()
    if notes is None:
        warnings.warn(message, ImageWarning, stacklevel=2)
    elif message not in notes:
        notes.append(message)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes of this thread in a list, each once, instead of warning."""
    notes: list[str] = []
    token = _current.set(notes)
    try:
        yield notes
    finally:
        _current.reset(token)


@contextmanager
def logged(logger: logging.Logger, name: object) -> Iterator[None]:
    """Log the notes of this thread on an image of that name, each once, instead of warning."""
    with collected() as notes:
        yield
    for message in notes:
        logger.warning("%s: %s", name, message)


def joined(*notes: str) -> str:
    """Join notes to one; empty ones are skipped."""
    return "; ".join(filter(None, notes))

"""Notes: what of a picture is lost or changed without failing.

A note is a `PictureWarning` to a caller of the library. Within `collected()` it goes into a list
instead. The list belongs to the running thread or task, so the filters of `warnings`, which are
shared by all threads of the host process, stay as they are.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dynenc.errors import PictureWarning

ILLEGIBLE = "of it is text or graphics, which will not be legible"  # after a percentage

_current: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(message: str) -> None:
    """Tell that something of a picture is lost or changed; the rest is done."""
    notes = _current.get()
    if notes is None:
        warnings.warn(message, PictureWarning, stacklevel=2)
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


def joined(*notes: str) -> str:
    """Several notes as one; empty ones are left out."""
    return "; ".join(filter(None, notes))

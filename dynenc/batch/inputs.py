"""Reading whole inputs: images and files of latents, by path, URL or from stdin.

No more is read than the largest valid file could hold, however long the source is.
"""

import os

from dynenc.errors import ImageError, LatentsError
from dynenc.interop import containers
from dynenc.io import storage

MAX_IMAGE_BYTES = 2**30  # of an image file that is not seekable


def read_image(source: str) -> bytes:
    """The bytes of an image file; raises ImageError."""
    try:
        with storage.reading(source) as file:
            return storage.read_at_most(file, MAX_IMAGE_BYTES, source, ImageError)
    except OSError as exc:
        raise ImageError(f"{source} cannot be read: {exc.strerror}") from exc


def read_foreign(source: str) -> bytes:
    """The bytes of another program's file of latents; raises LatentsError."""
    try:
        with storage.reading(source) as file:
            return storage.read_at_most(file, containers.MAX_BYTES, source, LatentsError)
    except OSError as exc:
        raise LatentsError(f"{source} cannot be read: {exc.strerror}") from exc


def size_of(source: str) -> int:
    """The size of a local file in bytes."""
    return os.stat(source).st_size  # noqa: PTH116

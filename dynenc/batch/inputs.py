"""Read whole inputs: images and files of latents, by path, URL or from stdin.

No more is read than the largest valid file could hold, however long the source is.
"""

import os

from dynenc.errors import ImageError, LatentsError
from dynenc.interop import containers
from dynenc.io import storage

MAX_IMAGE_BYTES = 2**30  # of an image file that is not seekable


def read_image(source: str) -> bytes:
    """The bytes of an image file; raises ImageError."""
    return storage.read_all(source, MAX_IMAGE_BYTES, ImageError)


def read_latent_file(source: str) -> bytes:
    """The bytes of another program's file of latents; raises LatentsError."""
    return storage.read_all(source, containers.MAX_CONTAINER_BYTES, LatentsError)


def size_of(source: str) -> int:
    """The size of a local file in bytes."""
    return os.stat(source).st_size  # noqa: PTH116

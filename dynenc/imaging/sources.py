"""Images from files, folders and tar shards, for measurements and training."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from dynenc.errors import ImageError
from dynenc.imaging import formats, pixels
from dynenc.imaging.read import open_image


def open_rgb(source: Path | bytes | BinaryIO, name: str = "") -> Image.Image:
    """Read an image as upright sRGB pixels without metadata, over white where it is transparent.

    Raises: ImageError like `read.open_image`.
    """
    image = pixels.to_rgb(open_image(source, name=name))
    image.info.clear()
    return image


def iter_images(source: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, RGB image) of every image in a folder or a tar shard, sorted by name.

    Raises: ImageError if the source is neither, or has an image that cannot be read.
    """
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if _is_image(p.name)):
            yield path.name, open_rgb(path)
        return
    try:
        with tarfile.open(source) as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                file = tar.extractfile(member)
                if file is not None and _is_image(member.name):
                    yield member.name, open_rgb(file.read(), f"{source}/{member.name}")
    except (OSError, tarfile.TarError) as exc:
        raise ImageError(f"{source} is neither a folder nor a tar of images: {exc}") from exc


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in formats.suffixes()

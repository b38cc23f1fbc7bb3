"""Pictures from files, folders and tar shards, as every measurement and training run sees them."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from dynenc.errors import ImageError
from dynenc.imaging import image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".jxl", ".tif", ".tiff", ".bmp", ".ppm"}


def open_rgb(source: Path | BinaryIO) -> Image.Image:
    """Read a picture as upright sRGB pixels without metadata, over white where it is transparent.

    Raises: ImageError as `image.open_image`.
    """
    picture = image.to_rgb(image.open_image(source))
    picture.info.clear()
    return picture


def iter_images(source: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, RGB picture) of every picture in a folder or a tar shard, sorted by name.

    Raises: ImageError if the source is neither, or holds a picture that cannot be read.
    """
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield path.name, open_rgb(path)
        return
    try:
        with tarfile.open(source) as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                file = tar.extractfile(member)
                if file is not None and Path(member.name).suffix.lower() in SUFFIXES:
                    try:
                        picture = open_rgb(io.BytesIO(file.read()))
                    except ImageError as exc:
                        raise ImageError(f"{member.name} in {source}: {exc}") from exc
                    yield member.name, picture
    except (OSError, tarfile.TarError) as exc:
        raise ImageError(f"{source} is neither a folder nor a tar of pictures: {exc}") from exc

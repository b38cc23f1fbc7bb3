"""Training images: folders or tar shards, decoded once -> random crops.

A source is decoded once to a flat memory map with an index, because decoding the images for every
batch would cost as much as a training step. The cache belongs to the files as they are: a source
with other files, or with newer ones, is decoded again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dynenc.errors import ImageError
from dynenc.imaging import formats
from dynenc.imaging.arrays import Pixels
from dynenc.imaging.sources import iter_images


@dataclass(frozen=True, slots=True)
class CachedImage:
    """The position of one image in the memory map."""

    name: str
    start: int  # index of its first pixel, in pixels
    height: int
    width: int


def build_cache(source: Path, cache: Path) -> None:
    """Decode one source to `cache`: pixels.u8 (HWC) and index.json.

    Args:
        source: folder or tar shard of images.
        cache: folder to create; it appears only when complete.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache.parent) as temporary:
        partial = Path(temporary) / cache.name
        partial.mkdir()
        _decode(source, partial)
        try:
            partial.rename(cache)
        except OSError:
            if not cache.exists():  # another run was faster
                raise


def _decode(source: Path, partial: Path) -> None:
    images: list[CachedImage] = []
    start, digest = 0, hashlib.sha256()
    with (partial / "pixels.u8").open("wb") as pixels:
        for name, image in iter_images(source):
            width, height = image.size
            data = np.asarray(image).tobytes()
            pixels.write(data)
            digest.update(data)
            images.append(CachedImage(name, start, height, width))
            start += height * width
    entries = [[t.name, t.start, t.height, t.width] for t in images]
    digest.update(json.dumps(entries).encode())
    index = {"sha256": digest.hexdigest(), "tiles": entries}
    (partial / "index.json").write_text(json.dumps(index))


class Crops:
    """Random crops of the images in some caches, drawn by area, half of them mirrored."""

    def __init__(self, caches: list[Path], size: int) -> None:
        """Open caches; raises ImageError if no image is as large as `size` px."""
        self.size = size
        self._pixels: list[Pixels] = []
        self._images: list[tuple[int, CachedImage]] = []
        self.digests: list[str] = []  # of the images, one per cache
        for number, cache in enumerate(caches):
            file = cache / "pixels.u8"
            self._pixels.append(
                np.memmap(file, np.uint8, "r").reshape(-1, 3)
                if file.stat().st_size
                else np.zeros((0, 3), np.uint8)
            )
            index = json.loads((cache / "index.json").read_text())
            self._images += [(number, CachedImage(*entry)) for entry in index["tiles"]]
            self.digests.append(index["sha256"])
        self._images = [(n, t) for n, t in self._images if min(t.height, t.width) >= size]
        if not self._images:
            raise ImageError(
                f"no training image has sides of {size} px: use other data, or set crop"
            )
        area = np.array([image.height * image.width for _, image in self._images], np.float64)
        self._chance = area / area.sum()

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def sample(self, count: int, random: np.random.Generator) -> Tensor:
        """Draw crops [count, 3, size, size] uint8."""
        crops = []
        for pick in random.choice(len(self._images), count, p=self._chance):
            number, image = self._images[pick]
            top = int(random.integers(image.height - self.size + 1))
            left = int(random.integers(image.width - self.size + 1))
            crop = self._whole(number, image)[top : top + self.size, left : left + self.size]
            crops.append(crop[:, ::-1] if random.random() < 0.5 else crop)
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def whole(self) -> list[Pixels]:
        """Every image, [H, W, 3] uint8, as views of the memory maps."""
        return [self._whole(number, image) for number, image in self._images]

    def _whole(self, number: int, image: CachedImage) -> Pixels:
        pixels = self._pixels[number][image.start : image.start + image.height * image.width]
        return pixels.reshape(image.height, image.width, 3)


def open_crops(sources: Sequence[Path], run: Path, size: int) -> Crops:
    """The training images of folders or tar shards, decoded once and cached in the run's folder."""
    caches = []
    for source in sources:
        place = source.resolve()
        cache = run / "cache" / f"{place.stem}-{_state(place)}"
        if not cache.exists():
            build_cache(source, cache)
        caches.append(cache)
    return Crops(caches, size)


def _state(source: Path) -> str:
    """A digest of a source's path and of the names, sizes and times of its files."""
    digest, suffixes = hashlib.sha256(os.fsencode(source)), formats.suffixes()
    for file in [source, *sorted(source.rglob("*"))]:
        if file.is_file() and (file == source or file.suffix.lower() in suffixes):
            state = file.stat()
            digest.update(os.fsencode(file) + b"\0%d %d\0" % (state.st_size, state.st_mtime_ns))
    return digest.hexdigest()[:8]

"""Training pictures: folders or tar shards -> aligned random crops with their teacher latents.

A source is decoded once and kept as two flat memory maps beside an index, because decoding
pictures and running the teacher would otherwise cost more than the training step itself.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dynenc.errors import ImageError
from dynenc.imaging.sources import iter_images
from dynenc.latent_space import SD1
from dynenc.networks.encoder import to_floats


@dataclass(frozen=True, slots=True)
class Tile:
    """Where one picture lies in the memory maps; sides are multiples of 8 px."""

    name: str
    start: int  # index of its first pixel in pixels.u8, in pixels
    height: int
    width: int


def build_cache(source: Path, cache: Path, teacher: nn.Module, smallest: int) -> None:
    """Decode one source to `cache`: pixels.u8 (HWC), latents.f16 (HWC) and index.json.

    Args:
        source: folder or tar shard of pictures.
        cache: folder to make; it appears only when complete.
        teacher: image [1, 3, H, W] in [-1, 1] -> latents [1, 4, H/8, W/8] in SD scale.
        smallest: pictures with a side below this many pixels are left out.
    """
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    tiles: list[Tile] = []
    start = 0
    with (
        (partial / "pixels.u8").open("wb") as pixels,
        (partial / "latents.f16").open("wb") as codes,
    ):
        for name, picture in iter_images(source):
            width, height = (side // SD1.patch * SD1.patch for side in picture.size)
            if min(width, height) < smallest:
                continue
            array = np.asarray(picture)[:height, :width]
            pixels.write(array.tobytes())
            image = to_floats(torch.from_numpy(array.copy()).permute(2, 0, 1)[None])
            with torch.inference_mode():
                latents = teacher(image)[0].permute(1, 2, 0).contiguous()
            codes.write(latents.to(torch.float16).numpy().tobytes())
            tiles.append(Tile(name, start, height, width))
            start += height * width
    index = [[t.name, t.start, t.height, t.width] for t in tiles]
    (partial / "index.json").write_text(json.dumps(index))
    partial.rename(cache)


class Crops:
    """Random crops, aligned to 8 px, of every tile of some caches, drawn by area."""

    def __init__(self, caches: list[Path], size: int) -> None:
        self.size = size
        self._tiles: list[tuple[int, Tile]] = []
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._latents: list[npt.NDArray[np.float16]] = []
        for number, cache in enumerate(caches):
            self._pixels.append(np.memmap(cache / "pixels.u8", np.uint8, "r").reshape(-1, 3))
            codes = np.memmap(cache / "latents.f16", np.float16, "r")
            self._latents.append(codes.reshape(-1, SD1.channels))
            rows = json.loads((cache / "index.json").read_text())
            self._tiles += [(number, Tile(*row)) for row in rows]
        area = np.array([t.height * t.width for _, t in self._tiles], np.float64)
        if not len(area):
            raise ImageError(f"no picture of {size} px or more in the training data")
        self._chance = area / area.sum()

    def __len__(self) -> int:
        """The number of tiles."""
        return len(self._tiles)

    def whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every tile: image [1, 3, H, W] float32 in [-1, 1], latents [1, 4, H/8, W/8]."""
        for number, tile in self._tiles:
            part = self._part(number, tile, 0, 0, tile.height, tile.width)
            pixels, latents = _to_tensors([part])
            yield to_floats(pixels), latents

    def sample(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw crops: images [N, 3, S, S] uint8, latents [N, 4, S/8, S/8] float32."""
        crops = []
        for pick in random.choice(len(self._tiles), count, p=self._chance):
            number, tile = self._tiles[pick]
            top = SD1.patch * int(random.integers((tile.height - self.size) // SD1.patch + 1))
            left = SD1.patch * int(random.integers((tile.width - self.size) // SD1.patch + 1))
            crops.append(self._part(number, tile, top, left, self.size, self.size))
        return _to_tensors(crops)

    def _part(
        self, number: int, tile: Tile, top: int, left: int, height: int, width: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        """Pixels and latents of a rectangle of a tile, all of it in multiples of 8 px."""
        pixels = self._pixels[number][tile.start : tile.start + tile.height * tile.width]
        pixels = pixels.reshape(tile.height, tile.width, 3)
        start, stop = (
            p // SD1.patch**2 for p in (tile.start, tile.start + tile.height * tile.width)
        )
        latents = self._latents[number][start:stop]
        latents = latents.reshape(tile.height // SD1.patch, tile.width // SD1.patch, SD1.channels)
        rows = slice(top // SD1.patch, (top + height) // SD1.patch)
        columns = slice(left // SD1.patch, (left + width) // SD1.patch)
        return pixels[top : top + height, left : left + width], latents[rows, columns]


def _to_tensors(
    parts: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]],
) -> tuple[Tensor, Tensor]:
    """HWC arrays as they are kept -> images, uint8, and latents, float32, NCHW."""
    images, latents = (torch.from_numpy(np.stack(each)) for each in zip(*parts, strict=True))
    return images.permute(0, 3, 1, 2), latents.permute(0, 3, 1, 2).float().contiguous()

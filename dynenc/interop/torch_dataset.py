"""Latents for training: the .lat files of folders and tar shards as a torch data set."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset

from dynenc.codec import require_sd
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError, UsageError
from dynenc.io import names, storage
from dynenc.io.names import suffix_of, with_suffix
from dynenc.io.shards import is_tar
from dynenc.networks.external_vae import Decoder, load_decoder

SUFFIX = ".lat"
Name = str | os.PathLike[str]
Place = tuple[
    str, str, int, int
]  # key, file, where in it the .lat file begins, its bytes (-1: all)


class LatentDataset(Dataset[dict[str, Any]]):
    """The latents of all .lat files in folders (with sub-folders), tar shards and URLs of both.

    Tar shards are listed once and read at random, so a `DataLoader` with workers may shuffle them;
    compressed tars cannot be. `DataLoader` puts samples of one size into a batch.

    A sample is a dict: `key`, the name below the folder or in the shard, without its suffix;
    `latents` [4, h, w] float32 in SD scale; `width` and `height` of the picture in px; and if asked
    for `picture` [3, height, width] float32 in [-1, 1].

    Args:
        sources: a folder, tar or .lat file, or several.
        pictures: decode pictures, too, on the CPU.
        decoder: of pictures; see `decoder.load_decoder`.
        max_pixels: refuse files that declare more pixels.
    Raises: UsageError if there is no .lat file, ImageError if a source cannot be read; later, for a
        single sample, BitstreamError.
    """

    def __init__(
        self,
        sources: Name | Iterable[Name],
        *,
        pictures: bool = False,
        decoder: str = "embedded",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        given = [sources] if isinstance(sources, str | os.PathLike) else sources
        self.pictures, self.decoder, self.max_pixels = pictures, decoder, max_pixels
        self.places: list[Place] = []
        for name in map(names.plain, given):
            self.places += _shard(name) if is_tar(name) else _files(name)
        if not self.places:
            raise UsageError(f"there is no .lat file in {sources}: make some with 'dynenc encode'")

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; raises BitstreamError if its file is damaged or gone."""
        key, file, start, size = self.places[index]
        try:
            with storage.reading(file) as stream:
                if start:
                    stream.seek(start)
                blob = stream.read(size)
            parsed = LatFile.parse(blob, max_pixels=self.max_pixels)
            require_sd(parsed)
        except OSError as exc:
            raise BitstreamError(f"{file} cannot be read: {exc.strerror}") from exc
        except BitstreamError as exc:
            raise type(exc)(f"{key} of {file}: {exc}") from exc
        header, latents = parsed.header, torch.from_numpy(parsed.latents)[None]
        sample: dict[str, Any] = {"key": key, "latents": latents[0]}
        sample |= {"width": header.width, "height": header.height}
        if self.pictures:
            with torch.no_grad():
                decoded = self._network(latents)[0, :, : header.height, : header.width]
            sample["picture"] = decoded.clamp(-1, 1)
        return sample

    @cached_property
    def _network(self) -> Decoder:
        return load_decoder(self.decoder)

    def __getstate__(self) -> dict[str, Any]:
        """Without the networks, which each worker loads for itself."""
        return {key: value for key, value in vars(self).items() if key != "_network"}


def _files(name: str) -> list[Place]:
    """The .lat files of a folder, or a .lat file by itself."""
    if not storage.is_folder(name):
        return [(with_suffix(names.base(name), ""), name, 0, -1)]
    return [
        (with_suffix(relative, ""), path, 0, -1)
        for path, relative in storage.walk(name, recursive=True)
        if suffix_of(relative).lower() == SUFFIX
    ]


def _shard(name: str) -> list[Place]:
    """Where the .lat files of a tar begin; of it only the headers are read."""
    try:
        with storage.reading(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return [
                (with_suffix(info.name, ""), name, info.offset_data, info.size)
                for info in tar
                if info.isreg() and suffix_of(info.name).lower() == SUFFIX
            ]
    except (OSError, tarfile.TarError) as exc:
        raise UsageError(f"{name} is no tar that can be read at random: unpack it ({exc})") from exc

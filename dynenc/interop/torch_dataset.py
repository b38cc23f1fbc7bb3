"""Latents for training: the .lat files of folders and tar shards as a torch data set."""

from __future__ import annotations

import itertools
import os
import random
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import torch
from torch.utils.data import ConcatDataset, Dataset, Sampler, Subset

from dynenc.arguments import StrPath, checked_integer, checked_name
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError, ImageError, OtherLatents, UsageError, with_name
from dynenc.imaging import detail
from dynenc.interop import latent_cache, whole_latents
from dynenc.interop.latent_cache import Entry, Shard
from dynenc.io import names, storage
from dynenc.io.names import suffix_of, with_suffix
from dynenc.io.shards import is_tar, open_tar
from dynenc.io.storage import read_at_most
from dynenc.latent_space import SD1, LatentSpace, latent_size
from dynenc.latent_space import named as space_named


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a .lat file."""

    key: str  # of its sample
    file: str  # itself, or the tar it is in
    start: int = 0  # offset in the file
    n_bytes: int = bitstream.MAX_FILE_BYTES  # at most
    entry: Entry | None = None  # of the index of a cache


class LatentDataset(Dataset[dict[str, Any]]):
    """The latents of caches, tar shards, .lat files, and folders of these with their sub-folders.

    All may be URLs. The index of a cache (see `make_cache`) tells keys and sizes, so that no file
    is opened before its sample is needed.

    Tar shards are listed once and read at random, so a `DataLoader` with workers may shuffle them;
    compressed tars cannot be. A batch needs samples of one size: give the `DataLoader` a
    `SameSizeBatches` as its `batch_sampler` where they differ.

    A sample is a dict: `key`, the name below the folder or in the shard, without its suffix;
    `latents` [C, h, w] float32, as the diffusion model takes them; `width` and `height` of the
    image in px; `step` of the quantiser in units of the latents, 0 if they were not quantised; and
    if asked for `image` [3, height, width] float32 in [-1, 1]. Those of a cache have `flipped`,
    True for latents of a mirrored image, which are samples of their own; `original_width` and
    `original_height`; `crop_left` and `crop_top`, px cut off after resizing.

    Args:
        sources: a cache, folder, tar or .lat file, or several: of caches, or of the others.
        space: of the latents; those of another space are refused.
        images: decode the images, too, on the CPU.
        decoder: of the images; see `Codec`.
        max_pixels: refuse files that declare more pixels.
    Raises: UsageError if there is no .lat file, or caches and other sources are mixed, or the
        settings of a cache; ImageError if a source cannot be read; later, for a single sample,
        BitstreamError.
    """

    def __init__(
        self,
        sources: StrPath | Iterable[StrPath],
        *,
        space: str = SD1.name,
        images: bool = False,
        decoder: str = "embedded",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not isinstance(sources, Iterable | os.PathLike) or isinstance(sources, bytes):
            raise UsageError(f"sources must be a path or a list of paths, not {sources!r}")
        given = [sources] if isinstance(sources, str | os.PathLike) else sources
        checked_integer("max_pixels", max_pixels)
        checked_name("a decoder", decoder)
        self.space = space_named(space)
        self.images, self.decoder, self.max_pixels = images, decoder, max_pixels
        self.places: list[Place] = []
        for source in given:
            name = names.without_file_scheme(checked_name("a folder, tar or .lat file", source))
            self.places += _shard(name) if is_tar(name) else self._of_folder(name)
        if not self.places:
            raise UsageError(f"there is no .lat file in {sources}: make some with 'dynenc encode'")
        if len({place.entry is None for place in self.places}) > 1:
            raise UsageError(
                "samples of caches have more fields than those of other sources: make a data set "
                "of each"
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.places)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every image in px; of each file only the header is read.

        Raises: BitstreamError if a file is not a .lat file, or gone.
        """
        return [self._size(place) for place in self.places]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shape that all samples of a batch share; see `SameSizeBatches`.

        Height and width of the latents, or of the images in px if those are decoded.
        """
        if self.images:
            return [(height, width) for width, height in self.sizes]
        return [latent_size(height, width) for width, height in self.sizes]

    def _size(self, place: Place) -> tuple[int, int]:
        if place.entry:
            return place.entry.size
        with _reading(place) as stream:
            header = bitstream.read_header(stream.read(bitstream.FIXED_BYTES))
            return header.size

    def _of_folder(self, name: str) -> list[Place]:
        """The latents of a cache or folder.

        Raises: UsageError if a cache is of another space, or of several settings.
        """
        shards = latent_cache.shards(name) if storage.is_folder(name) else []
        for shard in shards:
            if shard.settings.space != self.space.name:
                raise UsageError(
                    _wrong_space_message(shard.tar, space_named(shard.settings.space), self.space)
                )
            if differences := shard.settings.differences(shards[-1].settings):
                raise UsageError(
                    f"{name} has latents of several settings, as after an interruption: make it "
                    f"again ({names.basename(shard.tar)} has {differences})",
                    hint="use dynenc cache --force",
                )
        return list(_entries(shards)) if shards else _files(name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; raises BitstreamError if its file is damaged or gone, or IndexError."""
        if not hasattr(index, "__index__"):
            raise UsageError(f"{index!r} is not the index of a sample")
        place = self.places[index]
        with _reading(place) as stream:
            start = stream.read(min(bitstream.FIXED_BYTES, place.n_bytes))
            bitstream.read_header(start)  # of a file of anything else no more is read
            most = min(place.n_bytes, bitstream.MAX_FILE_BYTES) - len(start)
            rest = stream.read(most) if place.start else read_at_most(stream, most, place.file)
            parsed = LatFile.parse(start + rest, max_pixels=self.max_pixels)
            if parsed.model.space is not self.space:
                raise OtherLatents(_wrong_space_message("the file", parsed.model.space, self.space))
        header, latents = (
            parsed.header,
            torch.from_numpy(whole_latents.full_image_latents(parsed))[None],
        )
        step = 0.0 if detail.is_whole(parsed) else parsed.step
        sample: dict[str, Any] = {"key": place.key, "latents": latents[0]}
        sample |= {"width": header.width, "height": header.height, "step": step}
        if entry := place.entry:
            sample["flipped"] = (place.start, place.n_bytes) != entry.place
            sample |= zip(("original_width", "original_height"), entry.original, strict=True)
            sample |= zip(("crop_left", "crop_top"), entry.crop, strict=True)
        if self.images:
            sample["image"] = self._codec.decode_tensor(parsed)[0].clone()  # no inference tensor
        return sample

    @cached_property
    def _codec(self) -> Codec:
        return Codec(decoder=self.decoder, device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Without the networks, which each worker loads for itself."""
        return {key: value for key, value in vars(self).items() if key != "_codec"}


class SameSizeBatches(Sampler[list[int]]):
    """Batches of samples of equal size, for the `batch_sampler` of a `DataLoader`.

    In training with several processes, either accelerate's `prepare` shares the batches out (its
    versions that refuse batches of varying size need `drop_last=True`), or `num_replicas` and
    `rank` do, as those of torch's `DistributedSampler`. All processes get equally many batches.

    Args:
        dataset: a `LatentDataset` or any other with `shapes`; a `Subset`, as `random_split` makes,
            or a `ConcatDataset` of these.
        batch_size: samples in a batch; the last batch of a size may be smaller.
        shuffle: draw samples and batches in a new order each time, the same for the same seed.
        drop_last: leave out the smaller batches, and the last ones if they are too few for all
            processes; otherwise, the first ones are given a second time to make up their number.
        seed: of the order, the same in all processes; `set_epoch` continues a sequence of orders.
        num_replicas: number of processes that share the batches.
        rank: number of this process, from 0.
    Raises: UsageError if `batch_size` is not positive, the seed negative, or the rank too large.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        checked_integer("batch_size", batch_size, 1)
        checked_integer("seed", seed)
        checked_integer("num_replicas", num_replicas, 1)
        if checked_integer("rank", rank) >= num_replicas:
            raise UsageError(f"rank {rank} is not below num_replicas={num_replicas}")
        self.max_batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.seed, self.epoch = seed, 0
        self.num_replicas, self.rank = num_replicas, rank
        self.groups: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(_shapes(dataset)):
            self.groups.setdefault(shape, []).append(index)

    @property
    def batch_size(self) -> int | None:
        """The size of every batch; None if some are smaller, which accelerate needs to know."""
        return self.max_batch_size if self.drop_last else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; each iteration also moves on by one."""
        self.epoch = checked_integer("epoch", epoch)

    def __len__(self) -> int:
        """The number of batches of this process."""
        n_batches = sum(
            self._n_parts(len(group), self.max_batch_size) for group in self.groups.values()
        )
        return self._n_parts(n_batches, self.num_replicas)

    def _n_parts(self, n: int, size: int) -> int:
        """The number of parts of a size; with `drop_last`, only of whole ones."""
        return n // size if self.drop_last else -(-n // size)

    def __iter__(self) -> Iterator[list[int]]:
        """The indices of the samples of each batch."""
        batches = self._batches()
        n_shared = len(self) * self.num_replicas  # more than there are, if some are given twice
        yield from itertools.islice(
            itertools.cycle(batches), self.rank, n_shared, self.num_replicas
        )

    def _batches(self) -> list[list[int]]:
        """The batches of all processes, in the order of the next epoch."""
        order = random.Random(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        batches: list[list[int]] = []
        for group in self.groups.values():
            indices = list(group)
            if self.shuffle:
                order.shuffle(indices)
            for start in range(0, len(indices), self.max_batch_size):
                batch = indices[start : start + self.max_batch_size]
                if len(batch) == self.max_batch_size or not self.drop_last:
                    batches.append(batch)
        if self.shuffle:
            order.shuffle(batches)
        return batches


def _shapes(dataset: Dataset[Any]) -> list[tuple[int, int]]:
    """The shapes of the samples of a data set, or of a part or union of data sets."""
    if isinstance(dataset, Subset):
        shapes = _shapes(dataset.dataset)
        return [shapes[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [shape for part in dataset.datasets for shape in _shapes(part)]
    if not hasattr(dataset, "shapes"):
        raise UsageError(f"SameSizeBatches needs a LatentDataset, not {type(dataset).__name__}")
    return list(dataset.shapes)


@contextmanager
def _reading(place: Place) -> Iterator[BinaryIO]:
    """Open the file at a location; errors become BitstreamErrors that name it."""
    with storage.reading_as(place.file, BitstreamError) as stream:
        if place.start:
            stream.seek(place.start)
        try:
            yield stream
        except BitstreamError as exc:
            raise with_name(exc, f"{place.key} of {place.file}") from exc


def _wrong_space_message(name: str, space: LatentSpace, wanted: LatentSpace) -> str:
    return (
        f"{name} has {space.title} latents, not those of {wanted.title}: give space={space.name!r}"
    )


def _entries(shards: list[Shard]) -> Iterator[Place]:
    for shard, entry in latent_cache.current(shards):
        for _, place in entry.places:
            yield Place(entry.key, shard.tar, *place, entry)


def _files(name: str) -> list[Place]:
    """The .lat files of a folder and of the tars in it, or a .lat file by itself."""
    if not storage.is_folder(name):
        if not names.is_url(name) and not storage.exists(name):
            raise UsageError(f"{name} does not exist: name a cache, folder, tar or .lat file")
        return [Place(with_suffix(names.basename(name), ""), name)]
    places = list[Place]()
    for found in storage.walk(name, recursive=True):
        if found.error:
            raise ImageError(f"{found.path} cannot be read: {found.error.strerror}")
        if is_tar(found.path):
            places += _shard(found.path)
        elif suffix_of(found.relative).lower() == bitstream.SUFFIX:
            places.append(Place(with_suffix(found.relative, ""), found.path))
    return places


def _shard(name: str) -> list[Place]:
    """The locations of the .lat files in a tar; only its headers are read."""
    try:
        with storage.reading_as(name, ImageError) as file, open_tar(file) as tar:
            return [
                Place(with_suffix(info.name, ""), name, info.offset_data, info.size)
                for info in tar
                if info.isreg() and suffix_of(info.name).lower() == bitstream.SUFFIX
            ]
    except tarfile.TarError as exc:
        raise UsageError(
            f"{name} cannot be read as an uncompressed tar ({exc}): unpack it, or restore it if it "
            "is damaged"
        ) from exc

"""Making a cache of latents for training: images -> buckets -> .lat files in indexed shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageOps
from PIL.Image import Image

from dynenc import registry, runtime
from dynenc.arguments import file_name, integer, number
from dynenc.batch.find import find
from dynenc.batch.inputs import read_image
from dynenc.batch.records import InputOptions
from dynenc.codec import Codec
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import quality_to_step
from dynenc.errors import DynencError, ImageError, UsageError
from dynenc.imaging import buckets
from dynenc.imaging.image import open_image
from dynenc.imaging.pixels import to_rgb
from dynenc.interop import latent_cache
from dynenc.interop.latent_cache import Entry, Settings, Shard
from dynenc.io import names, storage
from dynenc.io.shards import Writer, is_archive
from dynenc.io.writing import make_folder, writing
from dynenc.latent_space import SD1, LatentSpace
from dynenc.latent_space import named as space_named
from dynenc.native.kernel import Floats

AT_ONCE = 32  # images in memory
SHARD_SIZE = 1000  # images
QUALITY = 80.0


@dataclass(slots=True)
class Summary:
    """What a run did."""

    made: int = 0
    kept: int = 0
    removed: int = 0
    orphans: list[str] = field(default_factory=list)  # keys in the cache, of images not given
    failures: list[tuple[str, DynencError]] = field(default_factory=list)  # by path
    buckets: Counter[tuple[int, int]] = field(default_factory=Counter)  # images by size
    n_bytes: int = 0  # of all shards


class Source(NamedTuple):
    """An image to cache."""

    key: str
    path: str


class Member(NamedTuple):
    """An image of a shard to write: its entry, whose places are still to be set, and its files."""

    entry: Entry
    blobs: Sequence[bytes]


def make_cache(
    pictures: str | Sequence[str],
    cache: str,
    *,
    space: str = SD1.name,
    encoder: str = "light",
    vae: str | None = None,
    resolution: int | None = None,
    quality: float = QUALITY,
    flips: bool = False,
    prune: bool = False,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Make or update a cache of the latents of images, for `LatentDataset` and WebDataset.

    Only images that are new or whose content has changed are encoded. After an interruption, the
    shards that were complete stay.

    Args:
        pictures: files, folders (with sub-folders), patterns.
        cache: a local folder.
        space: of the latents: 'sd1', 'sdxl', 'flux1' or 'sd3'.
        encoder: of dynenc, if it has one for the space.
        vae: folder or file of an autoencoder of the space, to encode with instead.
        resolution: images have at most the pixels of a square of this side; None: 512 for sd1, 1024
            for the other spaces.
        flips: add the latents of the mirrored images.
        prune: remove images from the cache that are not given.
        force: make all of it again, of the given images alone; other settings need that.
        on_progress: called with the images done and to do.
    Raises: UsageError, WeightsError, ImageError, OutputError.
    """
    cache = file_name("a folder", cache)
    if names.is_url(cache):
        raise UsageError(f"{cache} is no local folder: make the cache on this disk, then copy it")
    for name, value in (("shard_size", shard_size), ("resolution", resolution or 8)):
        integer(name, value, 1)
    maker = Maker.of(space_named(space), encoder, vae, resolution, quality, flips, device)
    listed = isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes)
    given = [file_name("an image or folder", p) for p in (pictures if listed else [pictures])]
    found = find("encode", given, cache, InputOptions(recursive=True))
    sources = _keyed([(file.relative, file.path) for file in found.files])
    make_folder(cache)
    shards = latent_cache.shards(cache)
    if not force and any(shard.settings != maker.settings for shard in shards):
        raise UsageError(
            f"{cache} was made with other settings", hint="choose another folder, or use --force"
        )
    summary = Summary()
    run = _Run(cache, maker, shards, summary, shard_size, on_progress or (lambda _done, _all: None))
    run.update(sources, keep=not force, prune=prune or force)
    return summary


def _keyed(files: list[tuple[str, str]]) -> list[Source]:
    sources: dict[str, Source] = {}
    for relative, path in files:
        key = names.with_suffix(relative, "")
        if key in sources:
            raise UsageError(
                f"{sources[key].path} and {path} have the same key: rename one of them"
            )
        sources[key] = Source(key, path)
    return list(sources.values())


@dataclass(frozen=True)
class Maker:
    """Makes the .lat files of images."""

    settings: Settings
    space: LatentSpace
    vae: str | None
    device: str

    @classmethod
    def of(
        cls,
        space: LatentSpace,
        encoder: str,
        vae: str | None,
        resolution: int | None,
        quality: float,
        flips: bool,
        device: str,
    ) -> Maker:
        """Check the arguments of `make_cache`; raises UsageError or WeightsError."""
        weights, encoder = "", file_name("an encoder", encoder)
        number("quality", quality)
        if vae is None:
            model = registry.for_space(encoder, "encoder", space)
            encoder, weights = model.name, model.sha256
        else:
            encoder = names.base(file_name("a VAE", vae).rstrip("/"))
        quality_to_step(quality, has_trellis=True)  # refuses what is out of range
        side = resolution or (512 if space is SD1 else 1024)
        return cls(Settings(space.name, encoder, weights, side, quality, flips), space, vae, device)

    @cached_property
    def model(self) -> registry.Model:
        """The model that the files name."""
        if self.vae is None:
            return registry.MODELS[self.settings.encoder]
        return registry.FOREIGN[self.space.name]

    @cached_property
    def codec(self) -> Codec:
        """dynenc's encoder."""
        return Codec(self.settings.encoder, device=self.device)

    @cached_property
    def teacher(self) -> Any:
        """The VAE's encoder: image -> scaled latents."""
        from dynenc.networks.compat import pick_device
        from dynenc.networks.external_vae import load_teacher

        encoder, _ = load_teacher(str(self.vae), self.space)
        return encoder.to(pick_device(self.device))

    @property
    def threads(self) -> int | None:
        """In how many threads images are made; None: in as many as the process may use."""
        return None if self.vae is None and self.codec.native else 1

    def member(self, source: Source) -> Member | DynencError:
        """Encode an image; an error of the image is returned."""
        if is_archive(source.path):
            return ImageError(f"{source.path} is an archive: unpack it to cache its images")
        try:
            data = read_image(source.path)
            return self._member(source.key, data, open_image(data, name=source.path))
        except ImageError as exc:
            return exc

    def _member(self, key: str, data: bytes, picture: Image) -> Member:
        size = buckets.bucket(*picture.size, self.settings.resolution)
        if not all(size):
            raise ImageError(f"{key} is smaller than 8 px")
        fitted = buckets.fit(to_rgb(picture), size)
        shown = [fitted.picture]
        if self.settings.flips:
            shown.append(ImageOps.mirror(fitted.picture))
        step_q = quality_to_step(self.settings.quality, has_trellis=self.model.has_trellis)
        files = [LatFile.of_latents(self.latents(each), size, step_q, self.model) for each in shown]
        digest, none = hashlib.sha256(data).hexdigest(), (0, 0)
        entry = Entry(key, digest, picture.size, size, (fitted.left, fitted.top), none)
        return Member(entry, [file.to_bytes() for file in files])

    def latents(self, picture: Image) -> Floats:
        """The latents [C, h, w] of an image whose sides are multiples of the patch."""
        if self.vae is None:
            latents: Floats = self.codec.latents([picture])[0]
            return latents
        import torch

        from dynenc.imaging.tensors import to_tensor

        device = next(self.teacher.parameters()).device
        with torch.inference_mode():
            found: Floats = self.teacher(to_tensor(picture).to(device))[0].float().cpu().numpy()
        return found


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of `make_cache`."""

    cache: str
    maker: Maker
    shards: list[Shard]
    summary: Summary
    shard_size: int
    on_progress: Callable[[int, int], None]

    def update(self, sources: list[Source], *, keep: bool, prune: bool) -> None:
        """Write what is new or changed, copy what lies beside it, and remove what is replaced."""
        present = {entry.key: entry for _, entry in latent_cache.current(self.shards)}
        keys = {source.key for source in sources}
        orphans = [key for key in present if key not in keys]
        todo = [s for s in sources if not (keep and self._is_current(s, present.get(s.key)))]
        gone = set(orphans if prune else ())
        counted = {(shard.tar, entry.key) for shard, entry in latent_cache.current(self.shards)}
        replaced = gone | {source.key for source in todo}
        touched = [
            shard
            for shard in self.shards
            if any(e.key in replaced or (shard.tar, e.key) not in counted for e in shard.entries)
        ]
        self.summary.kept = len(keys) - len(todo)
        if prune:
            self.summary.removed = len(orphans)
        else:
            self.summary.orphans = orphans

        def members() -> Iterator[Member]:
            for member in self._made(todo):
                gone.add(member.entry.key)
                yield member
            for shard in touched:  # also what could not be made again
                counts = [e for e in shard.entries if (shard.tar, e.key) in counted]
                yield from _members(shard, [e for e in counts if e.key not in gone])

        written = self._write(members())
        for shard in touched:
            Path(shard.index).unlink()
        kept = [shard for shard in self.shards if shard not in touched] + written
        for tar in latent_cache.left_over(self.cache, kept):
            Path(tar).unlink()
        for shard in kept:
            self.summary.buckets.update(entry.size for entry in shard.entries)
            self.summary.n_bytes += Path(shard.tar).stat().st_size

    def _is_current(self, source: Source, entry: Entry | None) -> bool:
        """Whether the cache has an image as it is now."""
        if entry is None:
            return False
        try:
            return hashlib.sha256(read_image(source.path)).hexdigest() == entry.sha256
        except ImageError:
            return False

    def _made(self, todo: list[Source]) -> Iterator[Member]:
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            results = runtime.in_threads(self.maker.member, part, self.maker.threads)
            for source, result in zip(part, results, strict=True):
                if isinstance(result, DynencError):
                    self.summary.failures.append((source.path, result))
                else:
                    self.summary.made += 1
                    yield result
            self.on_progress(start + len(part), len(todo))

    def _write(self, members: Iterator[Member]) -> list[Shard]:
        """Write members to new shards; each is complete with its index."""
        written: list[Shard] = []
        following = max((latent_cache.number(shard) + 1 for shard in self.shards), default=0)
        first = next(members, None)
        while first is not None:
            name = latent_cache.tar_name(following + len(written))
            tar = names.join(self.cache, name)
            entries: list[Entry] = []
            with writing(tar, overwrite=True) as file:
                writer = Writer(file)
                while first is not None and len(entries) < self.shard_size:
                    entries.append(_added(writer, first))
                    first = next(members, None)
                writer.close()
            shard = Shard(tar, self.maker.settings, tuple(entries))
            shard.write_index()
            written.append(shard)
        return written


def _added(writer: Writer, member: Member) -> Entry:
    """Add the files of an image to a shard; its entry with their places."""
    suffixes = (".lat", ".flipped.lat")
    places = [
        (writer.add(member.entry.key + suffix, blob, 0), len(blob))
        for suffix, blob in zip(suffixes, member.blobs, strict=False)
    ]
    return replace(member.entry, place=places[0], flipped=places[1] if len(places) > 1 else None)


def _members(shard: Shard, entries: list[Entry]) -> Iterator[Member]:
    """Some members of a shard, as they are."""
    with storage.reading(shard.tar) as file:
        for entry in entries:
            blobs = []
            for _, (start, n_bytes) in entry.places:
                file.seek(start)
                blobs.append(file.read(n_bytes))
            yield Member(entry, blobs)

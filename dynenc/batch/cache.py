"""Make a cache of latents for training: images -> buckets -> .lat files in indexed shards."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dynenc import registry, runtime
from dynenc.arguments import StrPath, checked_callback, checked_integer, checked_name
from dynenc.batch.cache_encoder import CacheEncoder, Member, Source, cache_settings
from dynenc.batch.find import Listing, find
from dynenc.batch.inputs import read_image
from dynenc.batch.settings import SHARD_SIZE, InputOptions
from dynenc.coding import bitstream
from dynenc.coding.rate_control import IMPORT_QUALITY
from dynenc.errors import Corrupt, DynencError, ImageError, UsageError
from dynenc.interop import latent_cache
from dynenc.interop.latent_cache import CacheSettings, Entry, Shard
from dynenc.io import names, storage
from dynenc.io.names import STREAM
from dynenc.io.shards import Writer
from dynenc.io.writing import lock_folder, make_folder, remove_stale_partials, writing
from dynenc.latent_space import SD1
from dynenc.latent_space import named as space_named

AT_ONCE = 32  # images in memory
UNINDEXED_NOTE = "it has no index, so it is not part of the cache, and stays as it is"


@dataclass(slots=True)
class CacheSummary:
    """What a run of `make_cache` did."""

    made: int = 0
    kept: int = 0
    removed: int = 0
    orphans: list[str] = field(default_factory=list)  # keys in the cache, of images not given
    failures: list[tuple[str, DynencError]] = field(default_factory=list)  # by path
    notes: list[tuple[str, str]] = field(default_factory=list)  # by path, on what is lost
    buckets: Counter[tuple[int, int]] = field(default_factory=Counter)  # images by size
    n_bytes: int = 0  # of all shards


def make_cache(
    images: StrPath | Sequence[StrPath],
    cache: StrPath,
    *,
    space: str = SD1.name,
    encoder: str = registry.DEFAULT_ENCODER,
    vae: StrPath | None = None,
    resolution: int | None = None,
    quality: float = IMPORT_QUALITY,
    flips: bool = False,
    prune: bool = False,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheSummary:
    """Make or update a cache of the latents of images, for `LatentDataset` and WebDataset.

    Only images that are new or whose content has changed are encoded. After an interruption, the
    shards that were complete stay. Latents that are damaged are made again.

    Args:
        images: files, folders (with sub-folders), patterns.
        cache: a local folder.
        space: of the latents: 'sd1', 'sdxl', 'flux1' or 'sd3'.
        encoder: of dynenc, if it has one for the space.
        vae: folder or file of an autoencoder of the space, to encode with instead.
        resolution: side in px of a square, 64 or more; images are resized to at most that many
            pixels. None: 512 for sd1, 1024 for the other spaces.
        quality, device: see `Codec`; shard_size: the number of images in a tar shard.
        flips: add the latents of the mirrored images.
        prune: remove images from the cache that are not given.
        force: encode everything again and drop all other images; required if settings change.
        on_progress: called with the images done and to do.
    Raises: UsageError; WeightsError; ImageError if an input does not exist, if a shard of the
        cache, or with `prune` a sub-folder, cannot be read; OutputError, also if another run is at
        work in the folder.
    """
    cache = checked_name("a folder", cache)
    if names.is_url(cache):
        raise UsageError(f"{cache} is not a local folder: make it on this disk, then copy it")
    checked_integer("shard_size", shard_size, 1)
    tell = checked_callback("on_progress", on_progress) or (lambda _done, _all: None)
    settings = cache_settings(space_named(space), encoder, vae, resolution, quality, flips)
    prune = prune or force
    found = _find_images(images, cache, prune)
    sources = _with_keys([(file.relative, file.path) for file in found.files], flips)
    make_folder(cache)
    summary = _initial_summary(found)
    with lock_folder(cache):
        remove_stale_partials(cache)
        latent_cache.remove_unfinished_shards(cache)
        shards = latent_cache.shards(cache)
        if not force:
            _check_settings(shards, settings)
        image_encoder = CacheEncoder(settings, vae, device)
        run = _Run(cache, image_encoder, shards, summary, shard_size, tell)
        run.update(sources, force=force, prune=prune)
    return summary


def _find_images(images: StrPath | Sequence[StrPath], cache: str, prune: bool) -> Listing:
    """The images to cache, without the shards of the cache itself.

    Raises: UsageError; ImageError for what does not exist, or would be pruned because it cannot be
        read.
    """
    if isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Sequence):
        images = [images]
    given = [checked_name("an image or folder", one) for one in images]
    if STREAM in given:
        raise UsageError("'-' has no name to find its latents by: name a file or folder")
    found = find("encode", given, cache, InputOptions(recursive=True))
    for file in found.files:
        if file.named and not names.is_url(file.path) and not storage.exists(file.path):
            raise ImageError(f"{file.path} does not exist")
    if prune and found.unreadable:
        raise ImageError(
            f"{found.unreadable[0].source} cannot be read, so that latents of its images would be "
            "removed: check its permissions"
        )
    own = set(map(os.path.realpath, latent_cache.tars(cache))) if storage.is_folder(cache) else ()
    found.files = [file for file in found.files if os.path.realpath(file.path) not in own]
    return found


def _initial_summary(found: Listing) -> CacheSummary:
    """A summary of what the search for images reports."""
    failures = [(each.source, each.error) for each in found.unreadable if each.error]
    notes = [(each.source, each.note) for each in found.ignored_images]
    return CacheSummary(failures=failures, notes=notes)


def _check_settings(shards: list[Shard], wanted: CacheSettings) -> None:
    """Raise UsageError if a shard was made with other settings than those wanted."""
    for shard in shards:
        if differences := shard.settings.differences(wanted):
            raise UsageError(
                f"{shard.tar} was made with other settings: {differences}",
                hint="choose another folder, or use --force",
            )


def _with_keys(files: list[tuple[str, str]], flips: bool) -> list[Source]:
    """The images with their keys; raises UsageError if two get the same name in a tar."""
    sources: dict[str, Source] = {}
    for relative, path in files:
        key = names.with_suffix(relative, "")
        other = sources.setdefault(key, Source(key, path)).path
        if other != path and os.path.realpath(other) != os.path.realpath(path):
            raise UsageError(f"{other} and {path} have the same key, {key}: rename one of them")
    for key, path in sources.values() if flips else ():
        if (mirrored := f"{key}.flipped") in sources:
            raise UsageError(
                f"{path}, flipped, and {sources[mirrored].path} have the same name in a shard: "
                "rename one of them"
            )
    return list(sources.values())


@dataclass(frozen=True, eq=False)
class _Update:
    """What a run changes in a cache."""

    todo: list[Source]  # to encode
    force: bool  # encode all
    touched: list[Shard]  # to be replaced
    usable: Container[str]  # keys of the entries that can be copied
    gone: set[str]  # keys of the entries that are not copied


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of `make_cache`."""

    cache: str
    encoder: CacheEncoder
    shards: list[Shard]
    summary: CacheSummary
    shard_size: int
    on_progress: Callable[[int, int], None]

    def update(self, sources: list[Source], *, force: bool, prune: bool) -> None:
        """Write new and changed images, and remove the shards that are replaced.

        Args:
            force: encode all sources again.
            prune: remove images that are not among the sources.
        """
        self.summary.notes += [
            (tar, UNINDEXED_NOTE) for tar in latent_cache.unindexed_tars(self.cache)
        ]
        update = self._plan(sources, force=force, prune=prune)
        written = self._write(self._members(update))
        for shard in update.touched:
            shard.remove()
        for shard in [shard for shard in self.shards if shard not in update.touched] + written:
            self.summary.buckets.update(entry.size for entry in shard.entries)
            with suppress(OSError):  # the tar is gone, and nothing could be made again
                self.summary.n_bytes += Path(shard.tar).stat().st_size

    def _plan(self, sources: list[Source], *, force: bool, prune: bool) -> _Update:
        """What to encode and what to replace; counts what stays or is removed."""
        usable = self._usable()
        todo = [s for s in sources if force or not self._is_current(s, usable.get(s.key))]
        self.summary.kept = len(sources) - len(todo)
        gone = self._orphans({source.key for source in sources}, usable, prune)
        outdated = gone | {source.key for source in todo}
        touched = [
            shard
            for shard in self.shards
            if any(e.key in outdated or self.shard_of[e.key] is not shard for e in shard.entries)
            or not shard.is_whole()
        ]
        return _Update(todo, force, touched, usable, gone)

    def _members(self, update: _Update) -> Iterator[Member]:
        """The images that are encoded, then those copied from the shards to be replaced."""
        for member in self._encoded(update.todo):
            update.gone.add(member.entry.key)
            yield member
        if update.force and not self.summary.made:
            update.touched.clear()  # every image failed: what they are to replace stays
            self.summary.removed = 0
        for shard in update.touched:
            yield from self._copied(shard, update)

    def _copied(self, shard: Shard, update: _Update) -> Iterator[Member]:
        """The images of a shard that stay, also those that could not be encoded again."""
        staying = {
            entry.key
            for entry in shard.entries
            if self.shard_of[entry.key] is shard and entry.key in update.usable
        } - update.gone
        for entry, blobs in shard.members():
            if entry.key in staying:
                staying.remove(entry.key)
                yield Member(entry, blobs)
        if staying:  # they could be read a moment ago
            raise ImageError(
                f"{shard.tar} cannot be read any more, and holds {len(staying)} images that are to "
                "be kept: run the command again"
            )

    @cached_property
    def shard_of(self) -> dict[str, Shard]:
        """The shard with the latest entry of each key."""
        return {entry.key: shard for shard, entry in latent_cache.current(self.shards)}

    def _usable(self) -> dict[str, Entry]:
        """The entries, by key, that were made with these settings and are not damaged."""
        return {
            entry.key: entry
            for shard in self.shards
            if shard.settings == self.encoder.settings
            for entry, _ in shard.members()
            if self.shard_of[entry.key] is shard
        }

    def _orphans(self, keys: set[str], usable: Container[str], prune: bool) -> set[str]:
        """Count the cached images that were not given; return the keys to remove."""
        orphans = [key for key in self.shard_of if key not in keys]
        if prune:
            self.summary.removed = len(orphans)
            return set(orphans)
        self.summary.orphans = [key for key in orphans if key in usable]
        damaged = [key for key in orphans if key not in usable]
        for key in damaged:
            error = Corrupt(f"the latents of {key} are damaged and removed: give its image again")
            self.summary.failures.append((self.shard_of[key].tar, error))
        return set(damaged)

    def _is_current(self, source: Source, entry: Entry | None) -> bool:
        """Whether the cache has the present version of an image."""
        if entry is None:
            return False
        try:
            return hashlib.sha256(read_image(source.path)).hexdigest() == entry.sha256
        except ImageError:
            return False

    def _encoded(self, todo: list[Source]) -> Iterator[Member]:
        """Encode images; failures are counted, not yielded."""
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            results = runtime.in_threads(self.encoder.encode, part, self.encoder.threads)
            for source, result in zip(part, results, strict=True):
                if isinstance(result, DynencError):
                    self.summary.failures.append((source.path, result))
                else:
                    self.summary.made += 1
                    self.summary.notes += [(source.path, note) for note in result.notes]
                    yield result
            self.on_progress(start + len(part), len(todo))

    def _write(self, members: Iterator[Member]) -> list[Shard]:
        """Write members to new shards; each is complete with its index."""
        written: list[Shard] = []
        paths = latent_cache.free_names(self.cache)
        first = next(members, None)
        while first is not None:
            tar, entries = next(paths), list[Entry]()
            with latent_cache.publishing(tar), writing(tar, overwrite=False) as file:
                writer = Writer(file)
                while first is not None and len(entries) < self.shard_size:
                    entries.append(_add_member(writer, first))
                    first = next(members, None)
                writer.close()
                shard = Shard(tar, self.encoder.settings, tuple(entries))
                shard.write_index()
            written.append(shard)
        return written


def _add_member(writer: Writer, member: Member) -> Entry:
    """Add the files of an image to a shard; returns its entry with their places."""
    suffixes = (bitstream.SUFFIX, f".flipped{bitstream.SUFFIX}")
    places = [
        (writer.add(member.entry.key + suffix, blob, 0), len(blob))
        for suffix, blob in zip(suffixes, member.blobs, strict=False)
    ]
    return replace(member.entry, place=places[0], flipped=places[1] if len(places) > 1 else None)

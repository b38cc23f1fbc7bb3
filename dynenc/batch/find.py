"""Find the input files: those given, and those in folders or matching patterns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dynenc.batch.plan import InputFile, input_suffixes, select
from dynenc.batch.results import Result
from dynenc.batch.settings import InputOptions, TaskName
from dynenc.errors import BitstreamError, DynencError, ImageError, LatentsError, UsageError
from dynenc.imaging import formats
from dynenc.io import names, storage
from dynenc.io.names import STREAM
from dynenc.io.shards import is_archive

KINDS: dict[TaskName, str] = {"import": "latents", "decode": ".lat files", "export": ".lat files"}
ERRORS: dict[TaskName, type[DynencError]] = {
    "import": LatentsError,
    "decode": BitstreamError,
    "export": BitstreamError,
}


@dataclass(slots=True)
class Listing:
    """The files to convert."""

    files: list[InputFile] = field(default_factory=list)
    unreadable: list[Result] = field(default_factory=list)  # sub-folders
    folders: list[str] = field(default_factory=list)  # given, or matching a pattern
    n_ignored: int = 0  # files of other types, or excluded by patterns
    ignored_images: list[Result] = field(default_factory=list)  # those in unsupported formats

    @property
    def is_single(self) -> bool:
        """Whether the only input is one file."""
        named = len(self.files) == 1 and self.files[0].named and not self.n_ignored
        return named and not is_archive(self.files[0].path)

    def add_folder(self, folder: str, output: str | None, recursive: bool) -> None:
        """Add the files of a folder, except those in the output folder."""
        self.folders.append(folder)
        for found in storage.walk(folder, recursive, leave_out=output):
            if found.error:
                error = ImageError(f"{found.path} cannot be read: check its permissions")
                self.unreadable.append(Result(found.path, "", "failed", error=error))
            else:
                self.files.append(InputFile(found.path, found.relative))


def find(task: TaskName, inputs: list[str], output: str | None, options: InputOptions) -> Listing:
    """The input files of a task, sorted.

    Raises: UsageError; if there are none, ImageError, BitstreamError or LatentsError.
    """
    if STREAM in inputs and len(inputs) > 1:
        raise UsageError("'-' cannot be combined with other inputs", hint="convert it by itself")
    listing = Listing()
    for name in inputs:
        _add(listing, name, output, options.recursive)
    hint = "" if options.recursive or not listing.folders else "-r includes sub-folders"
    if not listing.files and not listing.unreadable:
        where = ", ".join(listing.folders) or "the list of inputs"
        raise ERRORS.get(task, ImageError)(f"{where} is empty", hint=hint)
    all_named = all(file.named for file in listing.files)
    suffixes = frozenset[str]() if all_named else input_suffixes(task)  # which is slow
    listing.files, ignored = select(listing.files, suffixes, options.include, options.exclude)
    listing.n_ignored = len(ignored)
    if task in ("encode", "roundtrip"):
        listing.ignored_images = list(_unsupported_images(ignored))
    if not listing.files and not listing.unreadable:
        what = KINDS.get(task, "images")
        unmatched = "see --include" if options.include or options.exclude else ""
        why = {result.note for result in listing.ignored_images}
        raise ERRORS.get(task, ImageError)(
            f"none of the {listing.n_ignored} files are {what} to {task}",
            hint=", ".join(sorted(why)) or hint or unmatched,
        )
    return listing


def _unsupported_images(ignored: list[InputFile]) -> Iterator[Result]:
    """Images in formats that cannot be opened here, with the reason as a note."""
    for file in ignored:
        if why := formats.why_ignored(names.suffix_of(file.relative)):
            yield Result(file.path, "", "ignored", note=why)


def _add(listing: Listing, name: str, output: str | None, recursive: bool) -> None:
    if storage.is_folder(name):
        listing.add_folder(name, output, recursive)
        return
    is_pattern = any(c in name for c in "*?[") and not names.is_web(name)
    expanded = storage.expand(name) if is_pattern else []
    if expanded in ([], [name]):
        listing.files.append(InputFile(name, names.basename(name), named=True))
        return
    for one in expanded:
        if storage.is_folder(one):
            listing.add_folder(one, output, recursive)
        else:  # a pattern such as *.zip selects archives
            listing.files.append(InputFile(one, names.basename(one), named=is_archive(name)))

"""Where outputs go: whether -o names a file or a folder, and the format its suffix selects."""

import os
from collections.abc import Sequence
from dataclasses import replace

from dynenc.batch.find import Listing
from dynenc.batch.plan import NUMBERED, Job
from dynenc.batch.settings import ConversionSettings, TaskName
from dynenc.coding import bitstream
from dynenc.errors import OutputError, UsageError
from dynenc.imaging import formats
from dynenc.io import storage
from dynenc.io.names import STREAM, basename, parent, suffix_of
from dynenc.io.shards import is_archive, is_tar
from dynenc.io.writing import is_stream

SUFFIXES: dict[TaskName, str] = {
    "encode": bitstream.SUFFIX,
    "decode": ".png",
    "roundtrip": ".png",
    "export": ".safetensors",
    "import": bitstream.SUFFIX,
}


def is_output_file(output: str | None, listing: Listing, settings: ConversionSettings) -> bool:
    """Whether the output is the file to write, not a folder.

    It can be a file if the only input is an image or .lat file, or a tar if it is an archive.
    Raises: UsageError or OutputError if it is a file that cannot hold what is to be written.
    """
    if not output or output.endswith(("/", os.sep)) or storage.is_folder(output):
        return False
    files, is_packed = listing.files, settings.output.shard_size is not None
    one_archive = len(files) == 1 and files[0].named and is_archive(files[0].path)
    if is_archive(output) and not one_archive:
        raise UsageError(
            f"{output} has the suffix of an archive, but the input is not a single archive",
            hint="choose a folder with -o; --shard-size packs its outputs into tars",
        )
    if is_archive(output) and not is_tar(output):
        raise UsageError(f"{output} cannot be written: archives are written as .tar")
    if not is_packed and (listing.is_single or (one_archive and is_tar(output))):
        return True
    if output == STREAM:
        what = "shards cannot be written" if is_packed else "only a single file can be written"
        raise UsageError(f"{what} to standard output", hint="choose a folder with -o")
    if storage.is_regular(output) or is_stream(output):
        raise OutputError(
            f"{output} is a file, but several outputs need a folder", hint="choose one with -o"
        )
    return False


def with_suffix(settings: ConversionSettings, file: str | None) -> ConversionSettings:
    """The settings with the suffix of the outputs: the requested one, or that of the file.

    Args:
        file: the output, if it is a single file.
    Raises: UsageError if the two disagree, or if a .lat file would get the suffix of an image.
    """
    task, asked = settings.task, settings.output.suffix
    own = suffix_of(file) if file and file != STREAM and not is_tar(file) else ""
    if asked and own and not _same_format(task, asked, own):
        raise UsageError(
            f"{file} does not have the requested suffix {asked}",
            hint="choose another file with -o, or another format",
        )
    is_unknown = file and not own and not is_tar(file) and not is_stream(file)
    suffix = own or asked or ("" if is_unknown else SUFFIXES[task])
    makes_lat = task in ("encode", "import")
    if makes_lat and suffix.lower() != SUFFIXES[task] and suffix.lower() in formats.suffixes():
        raise UsageError(
            f"{file or suffix} has the suffix of an image, but would be a .lat file",
            hint="choose a .lat file with -o" if file else "leave out --suffix",
        )
    return replace(settings, output=replace(settings.output, suffix=suffix))


def _same_format(task: TaskName, one: str, other: str) -> bool:
    """Whether both suffixes mean the same format, as .jpg and .jpeg do."""
    one, other = one.lower(), other.lower()
    form = formats.writer_of(one) if task in ("decode", "roundtrip") else None
    return one == other or (form is not None and form == formats.writer_of(other))


def stale_shards(jobs: Sequence[Job]) -> list[str]:
    """The packed shards in the output folder with numbers beyond the last one planned."""
    folder = parent(jobs[0].target) if jobs and jobs[0].members else ""
    if not storage.is_folder(folder):
        return []
    planned = {basename(job.target) for job in jobs}
    there = storage.walk(folder, recursive=False)
    return [
        found.path
        for found in there
        if NUMBERED.fullmatch(found.relative) and found.relative not in planned
    ]

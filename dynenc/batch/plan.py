"""Map inputs to outputs: pure functions of names, without file access.

found files -> select -> plan -> jobs
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from dynenc.batch.settings import Naming, TaskName
from dynenc.coding import bitstream
from dynenc.errors import UsageError
from dynenc.imaging import formats
from dynenc.interop.latent_formats import LATENT_SUFFIXES
from dynenc.io.names import (
    STREAM,
    basename,
    is_chained,
    is_web,
    join,
    parent,
    suffix_of,
    with_suffix,
)
from dynenc.io.shards import is_archive, is_tar, with_tar_suffix

SHARD, NUMBERED = "{:06d}.tar", re.compile(r"\d{6,}\.tar")  # packed shards


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file: given by the user, or found in a folder."""

    path: str
    relative: str  # path below that folder, with slashes; for a file that was given, its name
    named: bool = False  # given by the user: taken whatever its suffix


class PackedFile(NamedTuple):
    """An input of a new shard."""

    source: str
    name: str  # in the shard


@dataclass(frozen=True, slots=True)
class Job:
    """One output and its source: an image, a tar shard, or the images of a new shard."""

    source: str  # "" for a new shard
    target: str  # "" if nothing is written
    members: tuple[PackedFile, ...] = ()  # of a new shard
    overwrite: bool = False  # replace an existing target

    @property
    def name(self) -> str:
        """The name that stands for it in results and messages."""
        return self.source or self.target

    @property
    def is_shard(self) -> bool:
        """Whether images are read from a tar shard or packed into one."""
        return bool(self.members) or is_archive(self.source)


def select(
    found: Iterable[InputFile],
    suffixes: frozenset[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[list[InputFile], list[InputFile]]:
    """The files to convert, sorted and without duplicates, and the others.

    Args:
        suffixes: suffixes of the files to take from folders, lower case, with the dot; tar shards
            are always taken.
        include: patterns, one of which must match, if there are any; one with a slash is matched
            against the path below the folder, one without against the file name.
        exclude: patterns, none of which may match.
    """
    taken: dict[str, InputFile] = {}
    ignored = []
    for file in found:
        wanted = file.named or is_tar(file.path) or suffix_of(file.relative).lower() in suffixes
        if include:
            wanted = wanted and any(fits(file.relative, pattern) for pattern in include)
        if wanted and not any(fits(file.relative, pattern) for pattern in exclude):
            taken.setdefault(file.path, file)
        else:
            ignored.append(file)
    return [taken[path] for path in sorted(taken)], ignored


def fits(relative: str, pattern: str) -> bool:
    """Whether a shell pattern matches a path, or its last part if the pattern has no slash."""
    return fnmatchcase(relative if "/" in pattern else relative.rpartition("/")[2], pattern)


@dataclass(frozen=True, slots=True)
class OutputRule:
    """Where outputs go and how they are named.

    Args:
        output: folder or URL to write to; the output file if not `into_folder`; None writes
            beside each input; "" writes nothing.
        suffix: of the outputs, with the dot.
        naming: "keep" adds the suffix to the input's name instead of replacing its own.
        shard_size: pack this many images into each tar shard, named 000000.tar and so on.
        same_name: equal for all names of one file; see `storage.real_names`.
    """

    output: str | None
    suffix: str
    into_folder: bool = True
    shard_size: int | None = None
    naming: Naming = "replace"
    same_name: Callable[[str], str] = str


def plan(found: Sequence[InputFile], rule: OutputRule) -> list[Job]:
    """The jobs for these files, in their order.

    Args:
        found: sorted and without duplicates; see `select`.
    Raises: UsageError if two inputs have the same output, if an input would be overwritten, or if
        there is no folder for the shards.
    """
    if rule.output == "":
        return [Job(file.path, "") for file in found]
    if not rule.into_folder:
        jobs = [Job(file.path, rule.output or "") for file in found]
    elif rule.shard_size is not None:
        jobs = _packed(found, rule, rule.shard_size)
    else:
        jobs = [Job(file.path, _target(file, rule)) for file in found]
    _refuse_clashes([(job.source, job.target) for job in jobs], rule)
    inputs = {rule.same_name(file.path) for file in found}
    for job in jobs:
        if job.target != STREAM and rule.same_name(job.target) in inputs:
            raise UsageError(
                f"{job.target} is an input, and would be overwritten",
                hint="choose another output with -o",
            )
    return jobs


def _target(file: InputFile, rule: OutputRule) -> str:
    """The output of a file that is not packed."""
    if rule.output is None:
        if is_archive(file.path):
            raise UsageError(
                f"{file.path} is an archive, and its output needs a folder",
                hint="choose one with -o, or --exclude it",
            )
        if file.path == STREAM:
            return STREAM
        if is_web(file.path) or is_chained(file.path):
            where = "on the web" if is_web(file.path) else "inside another file"
            raise UsageError(
                f"{file.path} is {where}, where no output can be written",
                hint="choose an output with -o",
            )
        name = output_name(basename(file.path), rule.suffix, rule.naming)
        folder = parent(file.path)
        return join(folder, name) if folder else name
    if is_archive(file.path):
        return join(rule.output, with_tar_suffix(file.relative))
    return join(rule.output, output_name(file.relative, rule.suffix, rule.naming))


def _packed(found: Sequence[InputFile], rule: OutputRule, size: int) -> list[Job]:
    """The jobs that pack `size` files each."""
    if rule.output is None:
        raise UsageError("shards need an output folder", hint="choose one with -o")
    members = [
        PackedFile(file.path, output_name(file.relative, rule.suffix, rule.naming))
        for file in found
    ]
    for member in members:
        if is_archive(member.source):
            raise UsageError(
                f"{member.source} is already an archive, and cannot be packed into shards",
                hint="leave out --shard-size, or --exclude it",
            )
    targets = ((member.source, join(rule.output, member.name)) for member in members)
    _refuse_clashes(targets, rule)
    return [
        Job(
            "", join(rule.output, SHARD.format(start // size)), tuple(members[start : start + size])
        )
        for start in range(0, len(members), size)
    ]


def output_name(name: str, suffix: str, naming: Naming) -> str:
    """The output name for a file name, or for a path below a folder."""
    return name + suffix if naming == "keep" else with_suffix(name, suffix)


def member_name(name: str, suffixes: frozenset[str], suffix: str, naming: Naming) -> str:
    """The name in the output for a member of an archive; only those with `suffixes` change it."""
    is_converted = suffix_of(name).lower() in suffixes
    return output_name(name, suffix, naming) if is_converted else name


def _refuse_clashes(pairs: Iterable[tuple[str, str]], rule: OutputRule) -> None:
    """Raise UsageError if two sources have the same target."""
    sources: dict[str, str] = {}
    for source, target in pairs:
        other = sources.setdefault(rule.same_name(target), source)
        if other != source:
            raise UsageError(
                f"{other} and {source} would both become {target}",
                hint="convert them into different folders"
                if rule.naming == "keep" or basename(other) == basename(source)
                else f"--name keep writes {basename(other)}.* and {basename(source)}.*, "
                "or convert them separately with --include",
            )


def input_suffixes(task: TaskName) -> frozenset[str]:
    """The suffixes of the files that a task reads, in lower case."""
    if task in ("decode", "export"):
        return frozenset({bitstream.SUFFIX})
    if task == "import":
        return frozenset(LATENT_SUFFIXES)
    return formats.suffixes()

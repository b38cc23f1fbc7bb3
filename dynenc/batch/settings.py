"""The options of a conversion run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynenc import registry
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.encode_options import EncodeOptions
from dynenc.view import WHOLE, View

TaskName = Literal["encode", "decode", "roundtrip", "export", "import"]
Existing = Literal["refuse", "skip", "update", "force"]
Naming = Literal["replace", "keep"]
Engine = Literal["local", "ray"]

SHARD_SIZE = 1000  # images in a tar shard of a cache


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecOptions:
    """The networks, and where they run."""

    encoder: str = registry.DEFAULT_ENCODER
    decoder: str = "auto"
    tune_for: str = "embedded"  # decoder that effort and a target PSNR optimise for
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How imported latents are read and quantised."""

    scale: float | None = None  # None: as their file declares
    space: str = ""  # of latent_space.SPACES; "": as their file declares
    keep_step: bool = False  # of latents that are already quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Which of the input files are taken."""

    recursive: bool = False  # include sub-folders
    include: tuple[str, ...] = ()  # patterns, one of which must match
    exclude: tuple[str, ...] = ()  # patterns, none of which may match
    max_pixels: int = MAX_PIXELS  # of an image or .lat file that is read
    truncated: bool = False  # use the pixels that are present in a truncated image file


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Where outputs go, and what to do if they exist."""

    suffix: str = ""  # decides the format; "": the output file's, or the task's default
    form: str = ""  # of files of latents, of interop.latent_formats; "": that of the suffix
    naming: Naming = "replace"  # the suffix of the input, or keep it: a.jpg.lat
    shard_size: int | None = None  # outputs packed into each tar
    existing: Existing | None = None  # None: "refuse" for a single file, else "skip"
    keep_mtime: bool = False  # give outputs the modification time of their input

    @property
    def overwrite(self) -> bool:
        """Whether an existing output is replaced."""
        return self.existing in ("update", "force")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What does the work: processes, batches, threads."""

    engine: Engine = "local"
    address: str | None = None  # of a Ray cluster
    jobs: int | None = None  # worker processes, or Ray actors; None chooses
    batch_size: int | None = None  # images in one pass of the network; None chooses
    threads: int | None = None  # of torch and AVIF in a worker; None: their own default
    preview: int = 0  # width of roundtrip previews in terminal columns; 0: none
    strict: bool = False  # raise unexpected exceptions instead of failing one file


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSettings:
    """All options of a run."""

    task: TaskName
    codec: CodecOptions = CodecOptions()  # frozen
    encode: EncodeOptions = field(default_factory=EncodeOptions)  # imports use its goal alone
    imported: ImportOptions = ImportOptions()
    view: View = WHOLE  # of decoded images
    input: InputOptions = InputOptions()
    output: OutputOptions = OutputOptions()
    run: RunOptions = RunOptions()

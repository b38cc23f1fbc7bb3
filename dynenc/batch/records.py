"""The options of a conversion run, its results and their summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from dynenc import registry
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.rate_control import DetailMode, Goal
from dynenc.errors import DynencError
from dynenc.view import WHOLE, View

Task = Literal["encode", "decode", "roundtrip", "export", "import"]
Existing = Literal["refuse", "skip", "update", "force"]
Naming = Literal["replace", "keep"]
Engine = Literal["local", "ray"]

SHARD_SIZE = 1000  # images in a tar shard of a cache


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How images or imported latents become .lat files."""

    encoder: str = registry.DEFAULT_ENCODER
    goal: Goal = field(default_factory=Goal)
    effort: int = 0  # 0..9
    tune_for: str = "embedded"  # decoder that effort and a target PSNR optimise for
    detail: DetailMode = "auto"  # see imaging.layering
    keep_metadata: bool = False  # see imaging.metadata
    scale: float | None = None  # of imported latents; None: as their file declares
    space: str = ""  # of imported latents, of latent_space.SPACES; "": as their file declares
    keep_step: bool = False  # of imported latents that are already quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How .lat files become images."""

    decoder: str = "auto"
    view: View = WHOLE


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
    form: str = ""  # of files of latents, of interop.forms; "": that of the suffix
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
    """Where the work is done, and by how many processes."""

    device: str = "auto"
    engine: Engine = "local"
    address: str | None = None  # of a Ray cluster
    jobs: int | None = None  # worker processes, or Ray actors; None chooses
    batch_size: int | None = None  # images in one pass of the network; None chooses
    threads: int | None = None  # of torch and AVIF in a worker; None: their own default
    preview: int = 0  # width of roundtrip previews in terminal columns; 0: none
    strict: bool = False  # raise unexpected exceptions instead of failing one file


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options of a run."""

    task: Task
    encode: EncodeOptions = EncodeOptions()  # frozen
    decode: DecodeOptions = DecodeOptions()
    input: InputOptions = InputOptions()
    output: OutputOptions = OutputOptions()
    run: RunOptions = RunOptions()


@dataclass(frozen=True, slots=True)
class Roundtrip:
    """Measurements of one roundtrip: the fields of `roundtrip --json`."""

    image: str
    width: int  # px
    height: int  # px
    encoder: str
    decoder: str
    quality: float  # of the file, as in Encoded
    effort: int
    n_bytes: int  # of the whole .lat file
    bpp: float
    ratio_raw: float  # bytes of the RGB pixels / n_bytes
    ratio_file: float  # bytes of the input file / n_bytes
    psnr_db: float
    ms_ssim: float | None  # None below 161 px
    encode_s: float  # pixels -> .lat bytes, networks loaded and warm
    decode_s: float  # .lat bytes -> pixels


@dataclass(frozen=True, slots=True)
class Result:
    """The result for one image."""

    source: str
    target: str  # "" if nothing was to be written
    status: Literal["planned", "done", "skipped", "failed", "ignored"]  # planned: in a dry run
    n_bytes_in: int = 0
    n_bytes_out: int = 0
    width: int = 0  # px
    height: int = 0  # px
    bpp: float = 0.0  # bits per pixel of the .lat file
    quality: float | None = None  # of a .lat file that was written, as in Encoded
    figures: Roundtrip | None = None  # of a roundtrip
    preview: Any = None  # small Pillow image, original and decoded side by side
    error: DynencError | None = None  # why it failed
    note: str = ""  # for the user: what was lost if done, or why it was ignored
    outdated: bool = False  # skipped, though its output was made with other settings

    @property
    def reason(self) -> str:
        """Why it failed, with the file's name, or ""."""
        text = str(self.error or "")
        return text if not text or self.source in text else f"{self.source}: {text}"


@dataclass(slots=True)
class Summary:
    """Counts of a run, so far or at its end."""

    jobs: int = 0  # files or shards to convert
    finished: int = 0  # of these jobs
    single: bool = False  # the only input is one file
    planned: int = 0  # images or shards that a dry run would convert
    done: int = 0  # images
    skipped: int = 0  # their outputs exist
    outdated: int = 0  # of the skipped, those whose outputs were made with other settings
    failed: int = 0
    ignored: int = 0  # files of other types, or excluded by patterns
    n_bytes_in: int = 0
    n_bytes_out: int = 0
    failures: list[Result] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # packed shards beyond the last of this run
    started: float = field(default_factory=time.monotonic, repr=False)
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        setattr(self, result.status, getattr(self, result.status) + 1)
        self.outdated += result.outdated
        self.n_bytes_in += result.n_bytes_in
        self.n_bytes_out += result.n_bytes_out
        self.seconds = time.monotonic() - self.started
        if result.status == "failed":
            self.failures.append(result)

    @property
    def per_second(self) -> float:
        """Images converted per second, so far."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

"""What a run of conversions is given and what it tells: settings, results, their sum."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.rate_control import Goal
from dynenc.errors import DynencError

Task = Literal["encode", "decode", "roundtrip", "export", "import"]
Existing = Literal["refuse", "skip", "update", "force"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How every file of a run is converted."""

    task: Task
    encoder: str = "light"
    decoder: str = "auto"
    goal: Goal = field(default_factory=Goal)  # of a .lat file that is written
    effort: int = 0  # 0..9, of encoding
    keep_step: bool = False  # of latents to import that were rounded before
    scale: float | None = None  # of latents to import; None: as their file says
    device: str = "auto"
    keep_metadata: bool = False  # EXIF, XMP and ICC profile, when encoding
    max_pixels: int = MAX_PIXELS  # of a picture or .lat file that is read
    suffix: str = ".lat"  # of the outputs; decides the format of pictures
    batch_size: int | None = None  # pictures in one pass of the network; None chooses
    existing: Existing = "refuse"  # what to do about an output that is there
    threads: int | None = None  # of torch and of AVIF; None leaves their own choice
    preview: int = 0  # columns of a terminal to show roundtrips in; 0: not at all
    strict: bool = False  # let errors that nobody expects pass, instead of failing one file

    @property
    def overwrite(self) -> bool:
        """Whether a file that stands under the output's name is replaced."""
        return self.existing in ("update", "force")


@dataclass(frozen=True, slots=True)
class Roundtrip:
    """The figures of one picture encoded and decoded; the fields of `roundtrip --json`."""

    image: str
    width: int  # px
    height: int  # px
    encoder: str
    decoder: str
    quality: float | None  # None if a target was given
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
    """What became of one picture."""

    source: str
    target: str  # "" if nothing was to be written
    status: Literal["planned", "done", "skipped", "failed"]  # planned: only in a dry run
    n_bytes_in: int = 0
    n_bytes_out: int = 0
    width: int = 0  # px
    height: int = 0  # px
    bpp: float = 0.0  # bits per pixel of the .lat file
    figures: Roundtrip | None = None  # of a roundtrip
    preview: Any = None  # small Pillow image, original and decoded side by side
    error: DynencError | None = None  # why it failed
    note: str = ""  # what to tell the user of one that is done

    @property
    def reason(self) -> str:
        """Why it failed, with the file's name, or ""."""
        text = str(self.error or "")
        return text if not text or self.source in text else f"{self.source}: {text}"


@dataclass(slots=True)
class Summary:
    """The running, and in the end the final, count of a run."""

    jobs: int = 0  # files or shards to convert
    finished: int = 0  # of them
    single: bool = False  # one file was named, and nothing else
    planned: int = 0  # pictures or shards that a dry run would convert
    done: int = 0  # pictures
    skipped: int = 0  # finished by an earlier run
    failed: int = 0
    ignored: int = 0  # files that are no pictures, or not asked for
    n_bytes_in: int = 0
    n_bytes_out: int = 0
    failures: list[Result] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic, repr=False)
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        setattr(self, result.status, getattr(self, result.status) + 1)
        self.n_bytes_in += result.n_bytes_in
        self.n_bytes_out += result.n_bytes_out
        self.seconds = time.monotonic() - self.started
        if result.status == "failed":
            self.failures.append(result)

    @property
    def per_second(self) -> float:
        """Pictures converted a second, so far."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

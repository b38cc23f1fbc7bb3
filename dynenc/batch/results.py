"""The results of a conversion run, and their summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from dynenc.errors import DynencError


@dataclass(frozen=True, slots=True)
class RoundtripFigures:
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
    figures: RoundtripFigures | None = None  # of a roundtrip
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
class ConversionSummary:
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

"""Groups of options that several commands share; each field becomes an option."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from dynenc import registry
from dynenc.batch.settings import Existing
from dynenc.cli.commands import GENERAL
from dynenc.cli.options import (
    EXECUTION,
    INPUT,
    OUTPUT,
    QUALITY,
    Device,
    EncodedSpace,
    Encoder,
    Force,
    Jobs,
    Quality,
    Quiet,
)
from dynenc.coding.encode_options import DetailMode
from dynenc.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are encoded."""

    encoder: Encoder = registry.DEFAULT_ENCODER
    space: EncodedSpace = None
    quality: Quality = None
    target_bpp: Annotated[
        float | None,
        typer.Option(
            metavar="BPP",
            rich_help_panel=QUALITY,
            help="Instead of a quality: the best file of at most BPP bits per pixel.",
        ),
    ] = None
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            rich_help_panel=QUALITY,
            help="Instead of a quality: the best file of at most BYTES, such as 5KB or 5KiB.",
        ),
    ] = None
    target_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            rich_help_panel=QUALITY,
            help="Instead of a quality: the smallest file that decodes to a PSNR of at least DB.",
        ),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=QUALITY,
            help="Fail with exit code 12 if a target is missed by more than 3 % (8 % if the whole "
            "image is text or graphics).",
        ),
    ] = False
    detail: Annotated[
        DetailMode,
        typer.Option(
            metavar="auto|on|off",
            rich_help_panel=QUALITY,
            help="Store text and graphics in a separate layer that keeps them legible. auto: where "
            "certain; on: also where uncertain; off: never.",
        ),
    ] = "auto"
    effort: Annotated[
        int,
        typer.Option(
            metavar="0..9",
            min=0,
            max=9,
            rich_help_panel=QUALITY,
            help="Refine the latents by gradient descent: slower, for a better image in no more "
            "bytes.",
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which files in folders and archives are taken."""

    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            rich_help_panel=INPUT,
            help="Include sub-folders, and recreate them in the output.",
        ),
    ] = False
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=INPUT,
            help="Convert only files whose name ('*.png') or path in the folder ('cats/*') "
            "matches; repeatable.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=INPUT,
            help="Exclude files whose name or path matches; repeatable.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where outputs are written, and what happens if they exist."""

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT,
            help="Output folder or URL; for a single input also the output file. '-' writes to "
            "standard output.",
        ),
    ] = None
    force: Force = False
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            "-u",
            rich_help_panel=OUTPUT,
            help="Rewrite outputs that are older than their input or were made with other "
            "settings.",
        ),
    ] = False
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            rich_help_panel=OUTPUT,
            help="Keep existing outputs: the default for more than one input.",
        ),
    ] = False
    naming: Annotated[
        Literal["replace", "keep"],
        typer.Option(
            "--name",
            metavar="replace|keep",
            rich_help_panel=OUTPUT,
            help="Replace the suffix of the input, or append to it: a.jpg.lat, a.lat.png.",
        ),
    ] = "replace"
    keep_mtime: Annotated[
        bool,
        typer.Option(
            "--keep-mtime",
            rich_help_panel=OUTPUT,
            help="Give each output the modification time of its input.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=OUTPUT,
            help="Print the output of each input, but write nothing.",
        ),
    ] = False
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Write one row per image to a .csv or .jsonl file. An existing report is "
            "continued; --force starts a new one.",
        ),
    ] = None

    @property
    def existing(self) -> Existing | None:
        """The policy for existing outputs; None is the library's default. Raises UsageError."""
        flags: dict[Existing, bool] = {
            "force": self.force,
            "update": self.update,
            "skip": self.skip_existing,
        }
        given = [existing for existing, flag in flags.items() if flag]
        if len(given) > 1:
            raise UsageError(
                "--force, --update and --skip-existing cannot be combined", hint="choose one"
            )
        return given[0] if given else None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the work is done."""

    device: Device = "auto"
    jobs: Jobs = None
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            metavar="local|ray",
            rich_help_panel=EXECUTION,
            help="Run on this machine or on a Ray cluster.",
        ),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=EXECUTION,
            help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT. [default: start one here]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What is printed in addition to the results."""

    quiet: Quiet = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            rich_help_panel=GENERAL,
            help="Print details, and tracebacks of unexpected errors.",
        ),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=GENERAL, help="Print one JSON object per image."),
    ] = False

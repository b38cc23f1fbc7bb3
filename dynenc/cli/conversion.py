"""Commands that convert files: encode, decode, roundtrip, export, import."""

import shutil
import sys
from fractions import Fraction
from typing import Annotated, Any

import typer

from dynenc.batch.settings import TaskName
from dynenc.cli import console, options
from dynenc.cli.commands import GENERAL, Section
from dynenc.cli.option_groups import Encoding, Execution, Messages, Placement, Selection
from dynenc.cli.options import SOURCES
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.errors import DynencError, UsageError
from dynenc.interop.latent_formats import LATENT_SUFFIXES
from dynenc.io.names import STREAM
from dynenc.view import View

TARGETS = ("target_bpp", "target_size", "target_psnr")
SECTION = Section("Convert")

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help=f"Images, {SOURCES}")]
Lats = Annotated[list[str], typer.Argument(metavar="LAT...", help=f".lat files, {SOURCES}")]


@SECTION.command(
    "encode",
    "dynenc encode photo.jpg",
    "dynenc encode photo.jpg -e base --quality 80 -o best.lat",
    "dynenc encode photo.jpg --target-size 5KB --keep-metadata",
    "dynenc encode photos/ -r -o latents/ --report report.csv",
    "dynenc encode photos/ -r -o shards/ --shard-size 1000",
    "curl -s https://example.org/a.jpg | dynenc encode - -o a.lat",
)
def encode(
    images: Images,
    encoding: Encoding,
    selection: Selection,
    placement: Placement,
    execution: Execution,
    messages: Messages,
    tune_for: options.TuneFor = "embedded",
    keep_metadata: options.KeepMetadata = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    truncated: options.Truncated = False,
    suffix: options.Suffix = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Compress images to .lat files.

    Each is written beside its image, unless -o says otherwise.
    """
    run_task(
        "encode",
        images,
        placement,
        messages,
        **_arguments(encoding, selection, execution),
        tune_for=tune_for,
        keep_metadata=keep_metadata,
        max_pixels=max_pixels,
        truncated=truncated,
        suffix=suffix,
        shard_size=shard_size,
        batch_size=batch_size,
    )


@SECTION.command(
    "decode",
    "dynenc decode photo.lat",
    "dynenc decode photo.lat -o photo.jpg -d sd-vae",
    "dynenc decode latents/ -r -o images/ --suffix webp",
    "dynenc decode photo.lat -o - | display -",
    "dynenc decode photo.lat --region 800,600,512,512 -o part.png",
    "dynenc decode photos/ -r --scale 1/8 -o thumbnails/ --suffix jpg",
)
def decode(
    lats: Lats,
    selection: Selection,
    placement: Placement,
    execution: Execution,
    messages: Messages,
    decoder: options.Decoder = "auto",
    region: options.DecodedRegion = None,
    scale: options.DecodedScale = Fraction(1),
    max_pixels: options.MaxPixels = MAX_PIXELS,
    suffix: options.ImageSuffix = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Decode .lat files to images.

    Each is written beside its .lat file, unless -o says otherwise, and as PNG, unless --suffix or
    the suffix of -o says otherwise.
    """
    run_task(
        "decode",
        lats,
        placement,
        messages,
        **_arguments(selection, execution),
        decoder=decoder,
        view=View.of(region, scale),
        max_pixels=max_pixels,
        suffix=suffix,
        shard_size=shard_size,
        batch_size=batch_size,
    )


@SECTION.command(
    "roundtrip",
    "dynenc roundtrip photo.jpg",
    "dynenc roundtrip photo.jpg -Q 20 -o decoded.png",
    "dynenc roundtrip photo.jpg --show",
    "dynenc roundtrip photos/ -r --report figures.csv",
)
def roundtrip(
    images: Images,
    encoding: Encoding,
    selection: Selection,
    placement: Placement,
    execution: Execution,
    messages: Messages,
    decoder: options.Decoder = "auto",
    max_pixels: options.MaxPixels = MAX_PIXELS,
    truncated: options.Truncated = False,
    suffix: options.ImageSuffix = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            rich_help_panel=GENERAL,
            help="Preview both images in a terminal with colours.",
        ),
    ] = False,
) -> None:
    """Encode and decode images in memory, and measure the result.

    Prints size, PSNR, MS-SSIM and times. The decoded images are saved only with -o.
    """
    run_task(
        "roundtrip",
        images,
        placement,
        messages,
        show=show,
        **_arguments(encoding, selection, execution),
        decoder=decoder,
        max_pixels=max_pixels,
        truncated=truncated,
        suffix=suffix,
    )


@SECTION.command(
    "export",
    "dynenc export cat.lat --to comfy",
    "dynenc export lats/ -r --to npz -o cache/",
)
def export_latents(
    lats: Lats,
    to: options.LatentForm,
    selection: Selection,
    placement: Placement,
    messages: Messages,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    jobs: options.Jobs = None,
) -> None:
    """Write the latents of .lat files, without decoding them, in the format of another program."""
    run_task(
        "export",
        lats,
        placement,
        messages,
        **_arguments(selection),
        form=to,
        max_pixels=max_pixels,
        jobs=jobs,
    )


@SECTION.command(
    "import",
    "dynenc import cache/ -r -o lats/",
    "dynenc import vae.pt --scale 1 -Q 90",
    "dynenc import onetrainer/ -r --space sdxl -o lats/",
)
def import_latents(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help=f"{', '.join(LATENT_SUFFIXES)} files, {SOURCES}"),
    ],
    selection: Selection,
    placement: Placement,
    messages: Messages,
    quality: options.ImportQuality = None,
    scale: options.Scale = None,
    space: options.ReadSpace = None,
    jobs: options.Jobs = None,
) -> None:
    """Compress latents made by another program or encoder to .lat files.

    Takes latents of SD 1.x, SDXL, FLUX.1 and SD 3 in the formats that `dynenc export` writes, and
    the caches of OneTrainer and SimpleTuner.
    """
    run_task(
        "import",
        files,
        placement,
        messages,
        **_arguments(selection),
        quality=quality,
        scale=scale,
        space=space,
        jobs=jobs,
    )


def _arguments(*groups: object) -> dict[str, Any]:
    """The options of some groups by name, without those that are None."""
    return {
        name: value for group in groups for name, value in vars(group).items() if value is not None
    }


def run_task(
    task: TaskName,
    inputs: list[str],
    placement: Placement,
    messages: Messages,
    *,
    show: bool = False,
    **arguments: Any,
) -> None:
    """Convert and print the results; exit code 1 if some of several files failed.

    Args:
        show: preview each roundtrip in the terminal.
        arguments: those of `dynenc.convert`.
    """
    with console.session(quiet=messages.quiet, verbose=messages.verbose):
        existing = placement.existing
        _refuse_terminals(task, inputs, placement)
        if show and (messages.quiet or messages.as_json):
            raise UsageError("--show cannot be combined with --quiet or --json", hint="choose one")
        from dynenc.batch.convert import convert
        from dynenc.cli.report import Reporter
        from dynenc.cli.report_file import ReportFile

        if show:
            arguments["preview"] = _preview_columns()
        report = None
        if placement.report and not placement.dry_run:
            report = ReportFile(placement.report, task, overwrite=placement.force)
        with Reporter(
            task,
            quiet=messages.quiet,
            as_json=messages.as_json,
            shows_quality=any(arguments.get(name) for name in TARGETS),
            report=report,
        ) as reporter:
            summary = convert(
                task,
                inputs,
                placement.output,
                existing=existing,
                naming=placement.naming,
                keep_mtime=placement.keep_mtime,
                dry_run=placement.dry_run,
                on_result=reporter.add,
                on_step=reporter.step,
                **arguments,
            )
            reporter.finish(summary)
        if summary.failed:
            raise typer.Exit(DynencError.exit_code)


def _preview_columns() -> int:
    """The width of previews; 0, with a message, if the terminal cannot show them."""
    from dynenc.cli import terminal  # imports rich

    if terminal.shows_colours():
        return shutil.get_terminal_size().columns
    console.print_message("dynenc: no preview: --show needs a terminal with colours")
    return 0


def _refuse_terminals(task: TaskName, inputs: list[str], placement: Placement) -> None:
    """Raise UsageError if binary data would be read from, or written to, a terminal."""
    if placement.force or placement.dry_run:
        return
    if STREAM in inputs and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(
            "refusing to read binary data from a terminal",
            hint="redirect a file to standard input, or override with --force",
        )
    default = STREAM if inputs == [STREAM] and task != "roundtrip" else None
    is_stream = (placement.output or default) == STREAM
    if is_stream and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(
            "refusing to write binary data to a terminal",
            hint="redirect it, choose a file with -o, or override with --force",
        )

"""Commands that inspect and measure: info, verify, compare, eval, doctor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dynenc import registry
from dynenc.cli import console, options
from dynenc.cli.commands import Section
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.errors import Corrupt, DynencError, UsageError

if TYPE_CHECKING:
    from dynenc.batch.verify import Inspected

SECTION = Section("Inspect")
Value = TypeVar("Value")


@SECTION.command("info", "dynenc info photo.lat", "dynenc info photo.lat --json | jq .bpp")
def info(
    lat: Annotated[
        str, typer.Argument(metavar="LAT", help="A .lat file or URL; '-' reads standard input.")
    ],
    as_json: options.Json = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
) -> None:
    """Print the header of a .lat file.

    The whole file is checked for damage, without decoding the image.
    """
    with console.session():
        from dynenc.batch import verify

        fields = _description(verify.info_file(lat, max_pixels=max_pixels))
        console.print_result(*([json.dumps(fields)] if as_json else _lines(fields)))


def _description(inspected: Inspected) -> dict[str, Any]:
    """What `info` prints of a file, by name."""
    from dynenc.coding import bitstream, quantize
    from dynenc.imaging import detail

    file, layer, n_bytes = inspected
    header, coder = file.header, registry.coder(file.header.coder_id, file.model.space)
    return {
        "version": bitstream.VERSION,
        "width": header.width,
        "height": header.height,
        "encoder": file.model.name,
        "space": file.model.space.name,
        "coder": coder.name if coder else "",
        "lattice": "trellis" if header.has_trellis else "plain",
        "quality": detail.file_quality(file),
        "step": header.step_q / quantize.STEP_UNIT,
        "n_bytes": n_bytes,
        "bpp": bitstream.bpp(n_bytes, *header.size),
        "chunks": {tag: len(data) for tag, data in file.chunks},
        "detail": None if layer is None else layer.summary(),
    }


def _lines(description: dict[str, Any]) -> list[str]:
    """A description as text, one line per field that the file has."""
    fields = dict(description)
    fields["chunks"] = ", ".join(f"{tag} {size} bytes" for tag, size in fields["chunks"].items())
    if layer := fields["detail"]:
        share, n_bytes = 100 * layer["share"], layer["n_bytes"]
        fields["detail"] = (
            f"{layer['tiles']} tiles, {share:.0f} %; {n_bytes} bytes, {layer['form']}"
        )
    optional = {name for name in ("chunks", "detail") if not fields[name]}
    return [
        f"{name:8} {value:.4g}" if isinstance(value, float) else f"{name:8} {value}"
        for name, value in fields.items()
        if name not in optional
    ]


@SECTION.command(
    "verify", "dynenc verify photo.lat", "dynenc verify archive/ -q || echo restore it"
)
def verify(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help=".lat files, and folders and tars of them."),
    ],
    max_pixels: options.MaxPixels = MAX_PIXELS,
    quiet: options.Quiet = False,
) -> None:
    """Check .lat files for damage, without decoding the images.

    Prints one line for each damaged file; the exit code is 1 if there is any.
    """
    with console.session(quiet=quiet):
        from dynenc.batch import verify as checking

        faults = []
        for path, fault in checking.verify(paths, max_pixels=max_pixels):
            faults.append(fault)
            if fault:
                reason = fault.sentence.removeprefix(path).removeprefix(":").lstrip()
                console.print_result(f"{path}: {reason}")
        if bad := [fault for fault in faults if fault]:
            is_damaged = any(isinstance(fault, Corrupt) for fault in bad)
            raise DynencError(
                f"{len(bad)} of {len(faults)} files failed",
                hint="restore what is damaged from a backup" if is_damaged else "",
            )
        if not quiet:
            console.print_result(f"{len(faults)} checked, no damage found")


@SECTION.command(
    "compare",
    "dynenc compare photo.png",
    "dynenc compare photo.png --quality 20 --quality 50 --codec jpeg:30 --codec avif:40",
    "dynenc compare photo.png photo.lat other.jpg -o page.html",
    "dynenc compare images/ latents/",
)
def compare(
    original: Annotated[str, typer.Argument(metavar="A", help="An image, or a folder of images.")],
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[B...]", help="Versions of A: .lat files or images; or folders of them."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The HTML file. [default: compare.html, or compare-2.html and so on if it exists]",
        ),
    ] = None,
    quality: Annotated[
        list[float] | None,
        typer.Option(
            "--quality",
            "-Q",
            metavar="0..100",
            min=0,
            max=100,
            help="Add A encoded at this quality; repeatable.",
        ),
    ] = None,
    detail: options.Detail = "auto",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:QUALITY",
            help="Add A encoded as jpeg, webp, avif or jxl, such as jpeg:30; repeatable.",
        ),
    ] = None,
    encoder: options.Encoder = registry.DEFAULT_ENCODER,
    decoder: options.Decoder = "auto",
    device: options.Device = "auto",
    lpips: options.LpipsWeights = None,
    vgg: options.VggWeights = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Write an HTML page that shows images beside their coded versions.

    The page is one file that works offline: a slider between any two versions, zoom, a difference
    map, and the size, bpp, PSNR and MS-SSIM of each, with LPIPS and DISTS if their weights are
    given. Without B, --quality or --codec, A is encoded at quality 50. In folders, files are paired
    by their names without suffix.
    """
    with console.session(quiet=quiet):
        from dynenc.codec import Codec
        from dynenc.evaluation import compare_page
        from dynenc.evaluation.measure import Measure, load_distances
        from dynenc.io.names import suffix_of
        from dynenc.io.writing import is_stream, refuse_existing, writing

        output = output or _free_name("compare", ".html", force)
        if not is_stream(output) and suffix_of(output).lower() not in (".html", ".htm"):
            raise UsageError(f"the name of the page must end in .html, not {output}")
        refuse_existing(output, force)
        comparisons = compare_page.match_versions(original, others or [])
        qualities = quality or ([] if others or codec else [50.0])
        measure = Measure(load_distances(lpips, vgg))
        page = compare_page.PageOptions(qualities, codec or [], measure, detail)
        with writing(output, force) as file:
            errors = compare_page.write(file, comparisons, Codec(encoder, decoder, device), page)
        for error in errors:
            console.print_message(f"dynenc: {error.sentence}")
        if not quiet:
            console.print_result(output, to_stderr=is_stream(output))
        if errors:
            raise typer.Exit(DynencError.exit_code)


def _free_name(stem: str, suffix: str, overwrite: bool) -> str:
    """The first unused name in the current folder, with a number if necessary."""
    name, number = stem + suffix, 1
    while not overwrite and os.path.lexists(name):
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


@SECTION.command(
    "eval",
    "dynenc eval photos/",
    "dynenc eval photos/ -e base --lpips alex.safetensors --vgg vgg16.safetensors --json",
)
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images.")],
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder", "-e", metavar="ENCODER", help="See encode; repeatable. [default: light]"
        ),
    ] = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            "--decoder",
            "-d",
            metavar="DECODER",
            help="See decode; repeatable. [default: embedded]",
        ),
    ] = None,
    quality: Annotated[
        list[float] | None,
        typer.Option(
            "--quality",
            "-Q",
            metavar="0..100",
            min=0,
            max=100,
            help="Quality of dynenc; repeatable. [default: 0, 20, 35, 50, 65 and 80]",
        ),
    ] = None,
    effort: Annotated[
        list[int] | None,
        typer.Option(metavar="0..9", min=0, max=9, help="See encode; repeatable. [default: 0]"),
    ] = None,
    detail: options.Detail = "auto",
    latents_of: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="SD VAE or TAESD: also measure its own latents, coded by dynenc.",
        ),
    ] = None,
    others: Annotated[
        bool, typer.Option(help="Also measure JPEG, WebP, AVIF and JPEG XL, if Pillow has them.")
    ] = True,
    lpips: options.LpipsWeights = None,
    vgg: options.VggWeights = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per codec, in CompressAI's format."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot the curves to this .png, .svg or .pdf file."),
    ] = None,
    device: options.Device = "auto",
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure rate and distortion of dynenc and other codecs on a folder of images.

    Prints the mean of each metric over all images, and the BD-rate of dynenc against each other
    codec: the difference in bits at equal quality, in percent.
    """
    with console.session(quiet=quiet):
        from dynenc.cli.terminal import progress_bar
        from dynenc.evaluation import benchmark, curves
        from dynenc.evaluation.measure import Measure, load_distances
        from dynenc.io.writing import refuse_existing
        from dynenc.networks.compat import pick_device

        qualities = _unique(quality or benchmark.QUALITIES)
        measure = Measure(load_distances(lpips, vgg), pick_device(device))
        candidates = benchmark.dynenc_candidates(
            _unique(encoder or [registry.DEFAULT_ENCODER]),
            _unique(decoder or ["embedded"]),
            _unique(effort or [0]),
            qualities,
            device,
            detail,
        )
        if latents_of:
            candidates.append(
                benchmark.autoencoder_candidate(latents_of, qualities, device, detail)
            )
        if plot:
            refuse_existing(str(plot), force)
        draw = curves.plotter(plot) if plot else None
        anchors = benchmark.pillow_candidates() if others else []
        with progress_bar("images", quiet=quiet) as on_progress:
            result = benchmark.run(
                folder, candidates, anchors, measure=measure, on_progress=on_progress
            )
        console.print_result(*(result.as_json() if as_json else result.as_tables()).splitlines())
        if draw:
            draw(result)
        if result.left_out:
            raise typer.Exit(DynencError.exit_code)


def _unique(values: Sequence[Value]) -> list[Value]:
    """The values in order, each once."""
    return list(dict.fromkeys(values))


@SECTION.command("doctor", "dynenc doctor", "dynenc doctor --json > report.json")
def doctor(as_json: options.Json = False) -> None:
    """Check the installation and this machine.

    Prints versions, device, native kernel, data types, weights, caches, image formats and extras;
    the exit code is 1 if there is a problem.
    """
    with console.session():
        from dynenc.cli import doctor

        findings, problems = doctor.examine()
        if as_json:
            console.print_result(json.dumps({"findings": findings, "problems": problems}))
        else:
            console.print_result(*(f"{name:16} {finding}" for name, finding in findings.items()))
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise DynencError(f"{count}: {'; '.join(problems)}")

"""The `dynenc` command: parse, call the library, print. Results on stdout, words on stderr."""

import io
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dynenc import __version__, registry
from dynenc.batch.records import LATENT_FORMS, Existing, Task
from dynenc.coding.bitstream import MAX_PIXELS, VERSION
from dynenc.errors import DynencError, UsageError

# torch takes seconds to import, and --help must not pay: the library is imported inside commands


def examples(*lines: str) -> str:
    """The end of a command's help: lines to copy, as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples(
        "dynenc encode photo.jpg              makes photo.lat",
        "dynenc decode photo.lat -o back.png  rebuilds the picture",
        "dynenc COMMAND --help                tells more, with examples",
        "dynenc --install-completion          lets the Tab key complete all this",
    ),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress pictures to Stable Diffusion latents with a tiny encoder, and rebuild them.",
)

ENCODERS = registry.names("encoder")
DEVICES = ["auto", "cpu", "cuda", "mps"]
ENGINES = ["local", "ray"]


def one_of(choices: Collection[str]) -> Callable[[str], str]:
    """A check that an option has one of these values."""

    def check(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return check


def an_encoder(name: str) -> str:
    """Check that an encoder has one of these names, or is a weight file."""
    return name if registry.is_weight_file(name) else one_of(ENCODERS)(name)


SOURCES = "folders, tar shards, patterns or URLs; '-' is standard input."
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", help="Where to write: a folder, or of one file a file or '-' (stdout)."
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Take sub-folders too, and keep them.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Pattern of names to take, '*.png' or 'cats/*'; may be repeated."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Pattern of names to leave out; may be repeated.")
]
Suffix = Annotated[str | None, typer.Option(help="Of the outputs, such as .jpg.")]
ShardSize = Annotated[
    int | None, typer.Option(min=1, help="Pack outputs into tar shards of so many pictures.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing outputs.")]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        "-u",
        help="Overwrite outputs that are older than the input or made with other settings.",
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave existing outputs alone; several files do that by default."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print what would become of which file.")
]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Pictures of equal size computed together.")
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="|".join(ENGINES),
        callback=one_of(ENGINES),
        help="Where to run: this machine, or a Ray cluster.",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
]
Report = Annotated[str | None, typer.Option(help="Write a line for each picture: .csv or .jsonl.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is done.")]
Device = Annotated[
    str, typer.Option(metavar="|".join(DEVICES), callback=one_of(DEVICES), help="Where to compute.")
]
LpipsWeights = Annotated[
    Path | None,
    typer.Option("--lpips", metavar="FILE", help="Weights of LPIPS on AlexNet (safetensors)."),
]
VggWeights = Annotated[
    Path | None,
    typer.Option("--vgg", metavar="FILE", help="Weights of LPIPS on VGG-16 and DISTS, in one."),
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder",
        "--model",
        "-e",
        metavar="|".join([*ENCODERS, "FILE"]),
        callback=an_encoder,
        help="Which encoder: nano is the fastest, base gives the best picture; autoencoder has "
        "latents of its own; FILE is .safetensors, trained or imported.",
    ),
]
Quality = Annotated[
    float | None,
    typer.Option(
        "--quality",
        "-Q",
        min=0,
        max=100,
        help="Higher is better and larger; 50 unless a target is given.",
    ),
]
TargetBpp = Annotated[
    float | None, typer.Option(help="Largest file of at most so many bits per pixel.")
]
TargetSize = Annotated[
    str | None, typer.Option(help="Largest file of at most so many bytes, such as 5KB.")
]
TargetPsnr = Annotated[
    float | None, typer.Option(help="Smallest file that is decoded with so many dB.")
]
KeepMetadata = Annotated[
    bool, typer.Option("--keep-metadata", help="Keep EXIF, XMP and the ICC profile.")
]
DecoderName = Annotated[
    str,
    typer.Option(
        "--decoder",
        "-d",
        help="auto, embedded, sd-vae, a hub id, or a path to an SD VAE or TAESD. Files of the "
        "autoencoder have their own.",
    ),
]
TuneFor = Annotated[
    str,
    typer.Option(help="Decoder that --effort and --target-psnr are for: any --decoder takes."),
]
Effort = Annotated[
    int,
    typer.Option(min=0, max=9, help="Take time for a better picture in no more bytes."),
]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Refuse files that declare more pixels than this.")
]


@contextmanager
def reporting(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show the library's log on stderr; turn expected errors into one line and their exit code.

    Bugs keep their traceback. SIGTERM is taken as Ctrl-C is, so that nothing half-written stays.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("dynenc: %(message)s"))
    logger = logging.getLogger("dynenc")
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    logger.addHandler(handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    try:
        yield
    except DynencError as exc:
        typer.echo(f"dynenc: {exc}", err=True)
        raise typer.Exit(exc.exit_code) from exc
    except KeyboardInterrupt:
        typer.echo("dynenc: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    finally:
        logger.removeHandler(handler)
        signal.signal(signal.SIGTERM, before)


def print_version(wanted: bool) -> None:
    """Print the version, and what can stand in a .lat file, and leave."""
    if wanted:
        typer.echo(f"dynenc {__version__}")
        typer.echo(f"format   reads {VERSION}, writes {VERSION}")
        numbers = range(256)  # all that can stand in a .lat file
        makers = [registry.maker(number) for number in numbers]
        coders = [registry.numbered(number, "coder") for number in numbers]
        for name, found in {"encoder": makers, "coder": coders}.items():
            typer.echo(f"{name:8} " + ", ".join(f"{m.name} {m.number}" for m in found if m))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress pictures to Stable Diffusion latents with a tiny encoder, and rebuild them."""


def run(
    task: Task,
    inputs: list[str],
    output: str | None,
    choices: list[tuple[bool, Existing]],
    *,
    quiet: bool,
    verbose: bool = False,
    as_json: bool = False,
    show: bool = False,
    report: str | None,
    **options: Any,
) -> None:
    """Convert, and show what comes of it; leave with code 1 if some of several files failed.

    Args:
        choices: flags that say what to do about existing outputs, of which one may be given.
        options: arguments of `convert`.
    """
    with reporting(quiet, verbose):
        from dynenc.batch.convert import convert
        from dynenc.cli.report import Reporter, shows_colours

        wanted = [existing for flag, existing in choices if flag]
        if len(wanted) > 1:
            raise UsageError("--force, --update and --skip-existing exclude each other: choose one")
        options["existing"] = wanted[0] if wanted else None
        if show and shows_colours():
            options["preview"] = shutil.get_terminal_size().columns
        elif show:
            typer.echo("dynenc: --show needs a terminal with colours: nothing is shown", err=True)
        with Reporter(task, quiet=quiet, as_json=as_json, report=report) as reporter:
            summary = convert(
                task, inputs, output, on_result=reporter.add, on_step=reporter.step, **options
            )
            reporter.finish(summary)
        if summary.failed:
            raise typer.Exit(DynencError.exit_code)


@app.command(
    epilog=examples(
        "dynenc encode photo.jpg",
        "dynenc encode photo.jpg -e base --quality 80 -o best.lat",
        "dynenc encode photo.jpg --keep-metadata --force",
        "dynenc encode photos/ -r -o latents/ --report report.csv",
        "dynenc encode photos/ -r -o shards/ --shard-size 1000",
        "curl -s https://example.org/a.jpg | dynenc encode - -o a.lat",
    )
)
def encode(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=f"Pictures, {SOURCES}")],
    output: Output = None,
    encoder: EncoderName = "light",
    quality: Quality = None,
    target_bpp: TargetBpp = None,
    target_size: TargetSize = None,
    target_psnr: TargetPsnr = None,
    effort: Effort = 0,
    tune_for: TuneFor = "embedded",
    keep_metadata: KeepMetadata = False,
    device: Device = "auto",
    max_pixels: MaxPixels = MAX_PIXELS,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    suffix: Suffix = None,
    shard_size: ShardSize = None,
    force: Force = False,
    update: Update = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    batch_size: BatchSize = None,
    engine: EngineName = "local",
    address: Address = None,
    report: Report = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compress pictures to .lat files.

    They are written beside the pictures unless -o names another place.
    """
    run(
        "encode",
        images,
        output,
        [(force, "force"), (update, "update"), (skip_existing, "skip")],
        quiet=quiet,
        verbose=verbose,
        report=report,
        encoder=encoder,
        quality=quality,
        target_bpp=target_bpp,
        target_size=target_size,
        target_psnr=target_psnr,
        effort=effort,
        tune_for=tune_for,
        keep_metadata=keep_metadata,
        device=device,
        max_pixels=max_pixels,
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
        suffix=suffix,
        shard_size=shard_size,
        dry_run=dry_run,
        jobs=jobs,
        batch_size=batch_size,
        engine=engine,
        address=address,
    )


@app.command(
    epilog=examples(
        "dynenc decode photo.lat",
        "dynenc decode photo.lat -o photo.jpg -d sd-vae",
        "dynenc decode latents/ -r -o pictures/ --suffix webp",
        "dynenc decode photo.lat -o - | display -",
    )
)
def decode(
    lats: Annotated[list[str], typer.Argument(metavar="LAT", help=f".lat files, {SOURCES}")],
    output: Output = None,
    decoder: DecoderName = "auto",
    device: Device = "auto",
    max_pixels: MaxPixels = MAX_PIXELS,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    suffix: Suffix = None,
    shard_size: ShardSize = None,
    force: Force = False,
    update: Update = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    batch_size: BatchSize = None,
    engine: EngineName = "local",
    address: Address = None,
    report: Report = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rebuild the pictures of .lat files.

    They become PNG, or what the suffix of -o, or --suffix, stands for.
    """
    run(
        "decode",
        lats,
        output,
        [(force, "force"), (update, "update"), (skip_existing, "skip")],
        quiet=quiet,
        verbose=verbose,
        report=report,
        decoder=decoder,
        device=device,
        max_pixels=max_pixels,
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
        suffix=suffix,
        shard_size=shard_size,
        dry_run=dry_run,
        jobs=jobs,
        batch_size=batch_size,
        engine=engine,
        address=address,
    )


@app.command(
    epilog=examples(
        "dynenc roundtrip photo.jpg",
        "dynenc roundtrip photo.jpg -Q 20 -o rebuilt.png",
        "dynenc roundtrip photo.jpg --show",
        "dynenc roundtrip photos/ -r --report figures.csv",
    )
)
def roundtrip(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=f"Pictures, {SOURCES}")],
    output: Output = None,
    encoder: EncoderName = "light",
    decoder: DecoderName = "auto",
    quality: Quality = None,
    target_bpp: TargetBpp = None,
    target_size: TargetSize = None,
    target_psnr: TargetPsnr = None,
    effort: Effort = 0,
    device: Device = "auto",
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each picture.")
    ] = False,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    suffix: Suffix = None,
    force: Force = False,
    update: Update = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    report: Report = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show both, small, in a terminal with colours.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Encode, decode and measure pictures.

    All happens in memory; PSNR, MS-SSIM, size and time are printed, and -o keeps the pictures.
    """
    run(
        "roundtrip",
        images,
        output,
        [(force, "force"), (update, "update"), (skip_existing, "skip")],
        quiet=quiet,
        as_json=as_json,
        show=show,
        report=report,
        encoder=encoder,
        decoder=decoder,
        quality=quality,
        target_bpp=target_bpp,
        target_size=target_size,
        target_psnr=target_psnr,
        effort=effort,
        device=device,
        max_pixels=max_pixels,
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
        suffix=suffix,
        dry_run=dry_run,
        jobs=jobs,
        engine=engine,
        address=address,
    )


@app.command(epilog=examples("dynenc info photo.lat", "dynenc info photo.lat --json | jq .bpp"))
def info(
    lat: Annotated[
        str, typer.Argument(metavar="LAT", help="A .lat file or URL; '-' is standard input.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Check a .lat file and print its header.

    All of it is checked, without decoding pixels.
    """
    with reporting():
        from dynenc import metrics
        from dynenc.batch import converter
        from dynenc.coding import bitstream, quantize

        header, n_bytes, chunks = converter.info_file(lat, max_pixels=max_pixels)
        encoder = registry.maker(header.model_id)
        fields: dict[str, Any] = {
            "version": bitstream.VERSION,
            "width": header.width,
            "height": header.height,
            "encoder": encoder.name if encoder else "unknown",
            "step": header.step_q / quantize.STEP_UNIT,
            "n_bytes": n_bytes,
            "bpp": metrics.bpp(n_bytes, header.width, header.height),
            "chunks": {tag: len(data) for tag, data in chunks},
        }
        if as_json:
            typer.echo(json.dumps(fields))
        else:
            beside = ", ".join(f"{tag} {size} bytes" for tag, size in fields.pop("chunks").items())
            fields |= {"chunks": beside} if beside else {}
            for name, value in fields.items():
                typer.echo(
                    f"{name:8} {value:.4g}" if isinstance(value, float) else f"{name:8} {value}"
                )


@app.command(
    epilog=examples("dynenc verify photo.lat", "dynenc verify archive/ -q || echo restore it")
)
def verify(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files or folders.")],
    max_pixels: MaxPixels = MAX_PIXELS,
    quiet: Quiet = False,
) -> None:
    """Check .lat files and folders of them.

    All of each is checked, without decoding pixels, and the bad ones are named.
    """
    with reporting():
        from dynenc.batch import converter

        faults = []
        for path, fault in converter.verify(paths, max_pixels=max_pixels):
            faults.append(fault)
            if fault:
                typer.echo(f"{path}: {fault}")
        if bad := sum(map(bool, faults)):
            raise DynencError(f"{bad} of {len(faults)} failed: restore them from a copy")
        if not quiet:
            typer.echo(f"all is well: {len(faults)} checked")


@app.command(
    name="export",
    epilog=examples(
        "dynenc export cat.lat --to comfy", "dynenc export lats/ -r --to npz -o cache/"
    ),
)
def export_latents(
    lats: Annotated[list[str], typer.Argument(help=f".lat files, {SOURCES}")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="|".join(LATENT_FORMS),
            callback=one_of(LATENT_FORMS),
            help="Format: npz is kohya's sd-scripts', comfy is ComfyUI's .latent.",
        ),
    ],
    output: Output = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    force: Force = False,
    update: Update = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    report: Report = None,
    quiet: Quiet = False,
) -> None:
    """Write the latents of LATS, not their pictures, to files that other programs read."""
    run(
        "export",
        lats,
        output,
        [(force, "force"), (update, "update"), (skip_existing, "skip")],
        quiet=quiet,
        report=report,
        suffix=LATENT_FORMS[to],
        max_pixels=max_pixels,
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
        dry_run=dry_run,
        jobs=jobs,
    )


@app.command(
    name="import",
    epilog=examples("dynenc import cache/ -r -o lats/", "dynenc import vae.pt --scale 1 -Q 90"),
)
def import_latents(
    files: Annotated[
        list[str],
        typer.Argument(help=f"{', '.join(LATENT_FORMS.values())} files of latents, {SOURCES}"),
    ],
    output: Output = None,
    quality: Annotated[
        float | None,
        typer.Option(
            "--quality",
            "-Q",
            min=0,
            max=100,
            help="Higher is better and larger; 80 if the latents were never rounded.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="1|0.18215",
            help="1 if the latents are as a VAE gives them, 0.18215 if as a U-Net takes them.",
        ),
    ] = None,
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    force: Force = False,
    update: Update = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    report: Report = None,
    quiet: Quiet = False,
) -> None:
    """Compress latents of Stable Diffusion 1.x, made by any encoder, to .lat files."""
    run(
        "import",
        files,
        output,
        [(force, "force"), (update, "update"), (skip_existing, "skip")],
        quiet=quiet,
        report=report,
        quality=quality,
        scale=scale,
        recursive=recursive,
        include=include or (),
        exclude=exclude or (),
        dry_run=dry_run,
        jobs=jobs,
    )


@app.command(
    epilog=examples(
        "dynenc compare photo.png",
        "dynenc compare photo.png --quality 20 --quality 50 --codec jpeg:30 --codec avif:40",
        "dynenc compare photo.png photo.lat other.jpg -o page.html",
        "dynenc compare pictures/ latents/",
    )
)
def compare(
    original: Annotated[str, typer.Argument(metavar="A", help="A picture, or a folder of them.")],
    others: Annotated[
        list[str] | None,
        typer.Argument(metavar="B", help="Versions of it, .lat or pictures; or folders of them."),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="The page.")] = "compare.html",
    quality: Annotated[
        list[float] | None,
        typer.Option(
            "--quality", "-Q", min=0, max=100, help="Code A with it, too; may be repeated."
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Also jpeg:QUALITY, webp:..., avif:... or jxl:...; may be repeated."),
    ] = None,
    encoder: EncoderName = "light",
    decoder: DecoderName = "auto",
    device: Device = "auto",
    lpips: LpipsWeights = None,
    vgg: VggWeights = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a page to look at pictures beside their coded versions.

    One HTML file that needs no network: a slider between any two versions, zoom, a difference map,
    and bytes, bpp, PSNR and MS-SSIM of each, with LPIPS and DISTS if their weights are given.
    Without a version B, --quality or --codec, A is coded with quality 50. Of two folders, files of
    the same name but for the suffix are compared.
    """
    with reporting(quiet):
        from dynenc.batch import converter
        from dynenc.codec import Codec
        from dynenc.evaluation import compare_page
        from dynenc.evaluation.measure import Measure, load_distances
        from dynenc.io import storage

        converter.refuse_existing(output, force)
        pairs = compare_page.pair(original, others or [])
        qualities = quality or ([] if others or codec else [50.0])
        measure = Measure(load_distances(lpips, vgg))
        request = compare_page.Request(qualities, codec or [], measure)
        with storage.writing(output, force) as file:
            errors = compare_page.write(file, pairs, Codec(encoder, decoder, device), request)
        for error in errors:
            typer.echo(f"dynenc: {error}", err=True)
        if not quiet:
            typer.echo(output, err=output == storage.STREAM)
        if errors:
            raise typer.Exit(DynencError.exit_code)


@app.command(epilog=examples("dynenc doctor", "dynenc doctor --json > report.json"))
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what dynenc finds on this machine.

    Versions, device, dtype, networks, caches, formats and extras; ends with exit code 1 if
    something is wrong.
    """
    with reporting():
        from dynenc.cli import doctor

        findings, problems = doctor.examine()
        if as_json:
            typer.echo(json.dumps({"findings": findings, "problems": problems}))
        else:
            for name, finding in findings.items():
                typer.echo(f"{name:14} {finding}")
        if problems:
            raise DynencError(f"{len(problems)} wrong: {'; '.join(problems)}")


@app.command(epilog=examples("dynenc import-checkpoint lightencoder.pt -o author.safetensors"))
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt file of the paper's author.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="safetensors to write.")],
    force: Force = False,
) -> None:
    """Convert CHECKPOINT to a file for --encoder; nothing that is pickled in it is executed."""
    with reporting():
        from dynenc.networks.published import import_checkpoint

        network = import_checkpoint(checkpoint, output, overwrite=force)
        parameters = sum(p.numel() for p in network.parameters())
        kind = type(network).__name__
        typer.echo(json.dumps({"path": str(output), "network": kind, "parameters": parameters}))


@app.command(
    epilog=examples(
        "dynenc train light --data photos/ --teacher taesd/ --run runs/light -o light.safetensors",
        "dynenc train wide --data photos/ --teacher taesd/ --run runs/c -o entropy.safetensors",
    )
)
def train(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="nano, light, base, autoencoder, embedded (the decoder), context, trellis, wide "
            "or plain (entropy coders).",
        ),
    ],
    data: Annotated[list[Path], typer.Option(help="Folder or tar of pictures; may be repeated.")],
    teacher: Annotated[Path, typer.Option(help="SD VAE or TAESD in diffusers form.")],
    run: Annotated[Path, typer.Option(help="Folder for checkpoints, log and cached data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="safetensors to write.")],
    lpips: Annotated[
        Path | None, typer.Option(help="Weights of LPIPS (AlexNet) as safetensors.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    embedded: Annotated[
        Path | None, typer.Option(help="Embedded decoder to train an encoder through, too.")
    ] = None,
    encoder: Annotated[
        list[Path] | None,
        typer.Option(help="Encoder whose latents the decoder learns, too; may be repeated."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure on at the end.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of TrainConfig.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a network, or fit the entropy coder.

    Run again, the same command goes on where the last one stopped.
    """
    with reporting(quiet):
        from dynenc.codec import pick_device
        from dynenc.training.trainer import (
            CODERS,
            PRESETS,
            TrainPaths,
            configure,
            train_with_progress,
        )

        config = configure(one_of([*PRESETS, *CODERS])(preset), setting or [])
        paths = TrainPaths(
            data=tuple(data),
            teacher=teacher,
            lpips=lpips,
            run=run,
            export=output,
            start=start,
            embedded=embedded,
            encoders=tuple(encoder or []),
            test=test,
        )
        figures = train_with_progress(config, paths, pick_device(device), quiet=quiet)
        typer.echo(json.dumps({"path": str(output), **figures}))


@app.command(
    "eval",
    epilog=examples(
        "dynenc eval photos/",
        "dynenc eval photos/ -e base --lpips alex.safetensors --vgg vgg16.safetensors --json",
    ),
)
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    encoder: Annotated[
        list[str] | None, typer.Option("--encoder", "-e", help="May be repeated; light.")
    ] = None,
    decoder: Annotated[
        list[str] | None, typer.Option("--decoder", "-d", help="May be repeated; embedded.")
    ] = None,
    quality: Annotated[
        list[float] | None,
        typer.Option("--quality", "-Q", min=0, max=100, help="Of dynenc; may be repeated."),
    ] = None,
    effort: Annotated[
        list[int] | None, typer.Option(min=0, max=9, help="Of dynenc; may be repeated; 0.")
    ] = None,
    latents_of: Annotated[
        Path | None, typer.Option(help="SD VAE or TAESD whose own latents are coded, too.")
    ] = None,
    others: Annotated[
        bool, typer.Option(help="Measure JPEG, WebP, AVIF and JPEG XL, where Pillow has them.")
    ] = True,
    lpips: LpipsWeights = None,
    vgg: VggWeights = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each codec, as CompressAI does.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curves to this file: .png, .svg or .pdf.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure rate and distortion over the pictures of FOLDER, of dynenc and of other codecs.

    Prints the mean of each figure over all pictures, and by how many percent of the bits dynenc
    differs from each other codec at equal quality (BD-rate).
    """
    with reporting(quiet):
        from dynenc.cli.report import bar
        from dynenc.codec import pick_device
        from dynenc.evaluation import benchmark, curves
        from dynenc.evaluation.measure import Measure, load_distances

        qualities = quality or benchmark.QUALITIES
        measure = Measure(load_distances(lpips, vgg), pick_device(device))
        candidates = benchmark.ours(
            encoder or ["light"], decoder or ["embedded"], effort or [0], qualities, device
        )
        if latents_of:
            candidates.append(benchmark.latents_of(latents_of, qualities, device))
        draw = curves.plotter(plot) if plot else None
        result = benchmark.run(
            folder,
            candidates,
            benchmark.others() if others else [],
            measure=measure,
            progress=lambda total: bar("pictures", total, quiet=quiet),
        )
        typer.echo(result.as_json() if as_json else result.as_tables())
        if draw:
            draw(result)
        if result.left_out:
            raise typer.Exit(DynencError.exit_code)


if __name__ == "__main__":
    sys.exit(app())

"""The `dynenc` command: parse, call the library, print. Results on stdout, words on stderr."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dynenc import __version__, models
from dynenc.bitstream import MAX_PIXELS
from dynenc.errors import DynencError

# torch takes seconds to import, and --help must not pay: the library is imported inside commands

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compress pictures to Stable Diffusion latents with a tiny encoder, and rebuild them.",
)

ENCODERS = models.names("encoder")
DEVICES = ["auto", "cpu", "cuda", "mps"]


def one_of(choices: list[str]) -> Callable[[str], str]:
    """A check that an option has one of these values."""

    def check(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return check


Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write; '-' is standard output.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is done.")]
Device = Annotated[
    str, typer.Option(metavar="|".join(DEVICES), callback=one_of(DEVICES), help="Where to compute.")
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder",
        "-e",
        metavar="|".join(ENCODERS),
        callback=one_of(ENCODERS),
        help="Which encoder: nano is the fastest, base gives the best picture.",
    ),
]
Quality = Annotated[
    float, typer.Option("--quality", "-Q", min=0, max=100, help="Higher is better and larger.")
]
DecoderName = Annotated[
    str,
    typer.Option(
        "--decoder",
        "-d",
        help="auto, embedded, sd-vae, a hub id, or a path to an SD VAE or TAESD.",
    ),
]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Refuse .lat files that declare more pixels than this.")
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
    try:
        yield
    except DynencError as exc:
        typer.echo(f"dynenc: {exc}", err=True)
        raise typer.Exit(exc.exit_code) from exc
    except KeyboardInterrupt:
        typer.echo("dynenc: interrupted", err=True)
        raise typer.Exit(130) from None
    finally:
        logger.removeHandler(handler)
        signal.signal(signal.SIGTERM, before)


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"dynenc {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress pictures to Stable Diffusion latents with a tiny encoder, and rebuild them."""


@app.command()
def encode(
    image: Annotated[Path, typer.Argument(help="A picture; '-' is standard input.")],
    output: Output = None,
    encoder: EncoderName = "light",
    quality: Quality = 50,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compress IMAGE to a .lat file, beside the picture unless -o names another place."""
    with reporting(quiet, verbose):
        from dynenc import files
        from dynenc.codec import Codec

        codec = Codec(encoder, device=device)
        done = files.encode_file(image, output, codec, quality=quality, overwrite=force)
        if not quiet:
            line = f"{done.path}  {done.n_bytes} bytes  {done.bpp:.3f} bpp"
            typer.echo(line, err=done.path == files.STREAM)


@app.command()
def decode(
    lat: Annotated[Path, typer.Argument(help="A .lat file; '-' is standard input.")],
    output: Output = None,
    decoder: DecoderName = "auto",
    device: Device = "auto",
    max_pixels: MaxPixels = MAX_PIXELS,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rebuild the picture of LAT as PNG, or as whatever the suffix of -o stands for."""
    with reporting(quiet, verbose):
        from dynenc import files
        from dynenc.codec import Codec

        codec = Codec(decoder=decoder, device=device)
        path = files.decode_file(lat, output, codec, max_pixels=max_pixels, overwrite=force)
        if not quiet:
            typer.echo(path, err=path == files.STREAM)


@app.command()
def roundtrip(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    output: Output = None,
    encoder: EncoderName = "light",
    decoder: DecoderName = "auto",
    quality: Quality = 50,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Encode and decode IMAGE in memory and print PSNR, MS-SSIM, size and time; -o keeps it."""
    with reporting(quiet):
        from dynenc import files
        from dynenc.codec import Codec

        codec = Codec(encoder, decoder, device)
        done = files.roundtrip_file(image, output, codec, quality=quality, overwrite=force)
        if as_json:
            typer.echo(json.dumps(asdict(done)))
        elif not quiet:
            similarity = "-" if done.ms_ssim is None else f"{done.ms_ssim:.4f}"
            typer.echo(
                f"{done.image}  {done.width}x{done.height}  {done.encoder} -> {done.decoder}\n"
                f"PSNR      {done.psnr_db:.2f} dB\n"
                f"MS-SSIM   {similarity}\n"
                f"size      {done.n_bytes} bytes, {done.bpp:.3f} bpp, 1:{done.ratio_raw:.0f} of the"
                f" pixels, 1:{done.ratio_file:.1f} of the input file\n"
                f"time      {1e3 * done.encode_s:.1f} ms to encode, {1e3 * done.decode_s:.1f} ms to"
                " decode"
            )


@app.command()
def info(
    lat: Annotated[Path, typer.Argument(help="A .lat file; '-' is standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Check LAT whole, without decoding pixels, and print what its header says."""
    with reporting():
        from dynenc import bitstream, files, metrics, quantize

        header, n_bytes = files.info_file(lat, max_pixels=max_pixels)
        encoder = models.numbered(header.model_id, "encoder")
        fields = {
            "version": bitstream.VERSION,
            "width": header.width,
            "height": header.height,
            "encoder": encoder.name if encoder else "unknown",
            "step": header.step_q / quantize.STEP_UNIT,
            "n_bytes": n_bytes,
            "bpp": metrics.bpp(n_bytes, header.width, header.height),
        }
        if as_json:
            typer.echo(json.dumps(fields))
        else:
            for name, value in fields.items():
                typer.echo(
                    f"{name:8} {value:.4g}" if isinstance(value, float) else f"{name:8} {value}"
                )


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders.")],
    max_pixels: MaxPixels = MAX_PIXELS,
    quiet: Quiet = False,
) -> None:
    """Check .lat files, and all those in folders, without decoding pixels; name the bad ones."""
    with reporting():
        from dynenc import files

        faults = []
        for path, fault in files.verify(paths, max_pixels=max_pixels):
            faults.append(fault)
            if fault:
                typer.echo(f"{path}: {fault}")
        if bad := sum(map(bool, faults)):
            raise DynencError(f"{bad} of {len(faults)} failed: restore them from a copy")
        if not quiet:
            typer.echo(f"all is well: {len(faults)} checked")


@app.command()
def train(
    preset: Annotated[
        str,
        typer.Argument(
            help="nano, light, base, embedded (the decoder) or context (the entropy coder)."
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
        list[Path] | None, typer.Option(help="Encoder to train the decoder on; may be repeated.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure on at the end.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of dynenc.train.TrainConfig.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train PRESET; run again, the same command goes on where the last one stopped."""
    with reporting(quiet):
        from dynenc.codec import pick_device
        from dynenc.train import CODER, PRESETS, TrainPaths, configure, train_with_progress

        config = configure(one_of([*PRESETS, CODER])(preset), setting or [])
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


if __name__ == "__main__":
    sys.exit(app())

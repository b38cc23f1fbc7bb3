"""The options of the commands, each declared once; for groups of options see `option_groups`.

Nothing here imports torch or Pillow, so that `--help` and Tab completion answer at once.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from dynenc import registry, view
from dynenc.cli.commands import GENERAL
from dynenc.coding.encode_options import DetailMode
from dynenc.errors import UsageError
from dynenc.interop.latent_formats import LATENT_FORMATS
from dynenc.latent_space import SPACES
from dynenc.view import DIVISORS, Region

INPUT, OUTPUT, QUALITY, DECODER = "Input", "Output", "Quality", "Decoder"  # sections of the help
EXECUTION = "Execution"
SOURCES = "folders, tar shards, patterns or URLs; '-' reads standard input."
ENCODERS = registry.names("encoder")
CACHED = [name for name in ENCODERS if not registry.MODELS[name].space.is_dynenc_only]
DEVICES = ("auto", "cpu", "cuda", "mps")
DECODERS = ("auto", "embedded", "fine", "sd-vae", *registry.names("autoencoder"))
SCALES = tuple(str(Fraction(1, divisor)) for divisor in DIVISORS)
NUMBER = re.compile(r"\s*[+-]?[0-9]{1,9}\s*")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps(:\d+)?")


def complete_from(*choices: str) -> Callable[[str], list[str]]:
    """Tab completion of a value: the choices that start with what has been typed."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def _bad_choice(value: str, choices: Sequence[str]) -> typer.BadParameter:
    return typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")


def encoder_option(names: Sequence[str], text: str, *, takes_files: bool) -> Any:
    """The option --encoder, for one of the names or also for a weight file, with its help."""
    others = ("a .safetensors file",) if takes_files else ()

    def check(name: str) -> str:
        if name in names or (takes_files and registry.is_weight_file(name)):
            return name
        raise _bad_choice(name, (*names, *others))

    stems = dict.fromkeys(registry.base_name(registry.MODELS[name]) for name in names)
    return typer.Option(
        "--encoder",
        "--model",
        "-e",
        metavar="|".join([*stems, "FILE"] if takes_files else stems),
        callback=check,
        autocompletion=complete_from(*names),
        rich_help_panel=QUALITY,
        help=text,
    )


def check_device(name: str) -> str:
    """Refuse a value that cannot name a device; whether the device exists is checked on use."""
    if DEVICE.fullmatch(name):
        return name
    raise _bad_choice(name, (*DEVICES, "cuda:N"))


def space_option(text: str, panel: str | None = None) -> Any:
    """The option --space, with its help and the section of the help that it stands in."""
    return typer.Option(
        "--space",
        metavar="|".join(SPACES),
        callback=check_space,
        autocompletion=complete_from(*SPACES),
        rich_help_panel=panel,
        help=text,
    )


def check_space(name: str | None) -> str | None:
    """Refuse a value that names no space of latents."""
    if name is None or name in SPACES:
        return name
    raise _bad_choice(name, tuple(SPACES))


def check_latent_form(name: str) -> str:
    """Refuse an unknown format of latents."""
    if name in LATENT_FORMATS:
        return name
    raise _bad_choice(name, tuple(LATENT_FORMATS))


def parse_region(text: str) -> Region:
    """Parse a region option; whether it fits the image is checked later."""
    values = [int(part) if NUMBER.fullmatch(part) else part for part in text.split(",")]
    try:
        return view.region_of(values)
    except UsageError as exc:
        raise typer.BadParameter(f"{exc}.") from exc


def parse_scale(text: str) -> Fraction:
    """The scale that an option names."""
    try:
        scale = Fraction(text)
        view.divisor_of(scale)
    except (ValueError, ZeroDivisionError) as exc:
        raise _bad_choice(text, SCALES) from exc
    return scale


BEST = "nano is the fastest, base gives the best images"
Encoder = Annotated[
    str,
    encoder_option(
        ENCODERS,
        f"{BEST}; autoencoder has its own latent space. Names with a space, as light-sdxl, "
        "are taken, too. FILE is a trained or imported .safetensors file.",
        takes_files=True,
    ),
]
CachedEncoder = Annotated[str, encoder_option(CACHED, f"{BEST}.", takes_files=False)]
Quality = Annotated[
    float | None,
    typer.Option(
        "--quality",
        "-Q",
        metavar="0..100",
        min=0,
        max=100,
        rich_help_panel=QUALITY,
        help="Higher is better and larger. [default: 50]",
    ),
]
ImportQuality = Annotated[
    float | None,
    typer.Option(
        "--quality",
        "-Q",
        metavar="0..100",
        min=0,
        max=100,
        rich_help_panel=QUALITY,
        help="Higher is better and larger. [default: keep the step of quantised latents, 80 for "
        "others]",
    ),
]
TuneFor = Annotated[
    str,
    typer.Option(
        metavar="DECODER",
        autocompletion=complete_from(*DECODERS),
        rich_help_panel=QUALITY,
        help="Decoder that --effort and --target-psnr optimise for; values as for --decoder.",
    ),
]
Detail = Annotated[
    DetailMode,
    typer.Option(
        metavar="auto|on|off", help="Store text and graphics in a separate layer; see encode."
    ),
]
KeepMetadata = Annotated[
    bool,
    typer.Option(
        "--keep-metadata",
        rich_help_panel=QUALITY,
        help="Keep EXIF, XMP, IPTC, text entries, comment, resolution and the ICC profile.",
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        "--decoder",
        "-d",
        metavar="DECODER",
        autocompletion=complete_from(*DECODERS),
        rich_help_panel=DECODER,
        help="auto (an SD VAE if there is one on this disk, else fine on a GPU and embedded on a "
        "CPU), embedded, fine, sd-vae, a Hugging Face id, or a path to an SD VAE or TAESD. Files "
        "of the autoencoder use its own.",
    ),
]
DecodedRegion = Annotated[
    Region | None,
    typer.Option(
        "--region",
        parser=parse_region,
        metavar="X,Y,W,H",
        rich_help_panel=OUTPUT,
        help="Decode a part of the image only: left, top, width and height in pixels.",
    ),
]
DecodedScale = Annotated[
    Fraction,
    typer.Option(
        "--scale",
        parser=parse_scale,
        metavar="|".join(SCALES),
        autocompletion=complete_from(*SCALES),
        rich_help_panel=OUTPUT,
        help="Decode to a smaller image, in less time.",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, rich_help_panel=INPUT, help="Refuse images of more than N pixels."
    ),
]
Truncated = Annotated[
    bool,
    typer.Option(
        "--truncated",
        rich_help_panel=INPUT,
        help="Accept truncated image files, using the pixels that are present.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        metavar="1|NUMBER",
        rich_help_panel=INPUT,
        help="Scale of the latents: 1 for raw VAE latents, that of their space (SD 1.x: 0.18215) "
        "for those that a diffusion model takes. [default: as the file says]",
    ),
]
ReadSpace = Annotated[
    str | None,
    space_option(
        "Space of the latents. [default: as the file says, else sd1 for 4 channels]", INPUT
    ),
]
EncodedSpace = Annotated[
    str | None,
    space_option("Space of the latents. [default: that of the encoder: sd1]", QUALITY),
]
CachedSpace = Annotated[str, space_option("Latent space: that of the model to be trained.")]
LatentForm = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="|".join(LATENT_FORMATS),
        callback=check_latent_form,
        autocompletion=complete_from(*LATENT_FORMATS),
        rich_help_panel=OUTPUT,
        help="File format: npz for kohya's sd-scripts, comfy for ComfyUI; musubi and ai-toolkit "
        "only for latents that were imported from them.",
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(
        metavar="SUFFIX", rich_help_panel=OUTPUT, help="Suffix of the outputs. [default: .lat]"
    ),
]
ImageSuffix = Annotated[
    str | None,
    typer.Option(
        metavar="SUFFIX",
        rich_help_panel=OUTPUT,
        help="Image format, by its suffix: png, jpg, webp, avif and so on. [default: png]",
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        rich_help_panel=OUTPUT,
        help="Pack the outputs into tar shards of N images each.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", rich_help_panel=OUTPUT, help="Overwrite existing outputs.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="|".join([*DEVICES, "cuda:N"]),
        callback=check_device,
        autocompletion=complete_from(*DEVICES),
        rich_help_panel=EXECUTION,
        help="Device to compute on; auto takes a GPU if there is one.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        rich_help_panel=EXECUTION,
        help="Number of worker processes. [default: one per core]",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        rich_help_panel=EXECUTION,
        help="Images of equal size in one network pass. [default: 16 on a GPU, else 1]",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=GENERAL, help="Print errors only.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=GENERAL, help="Print one JSON object.")
]
LpipsWeights = Annotated[
    Path | None,
    typer.Option("--lpips", metavar="FILE", help="Weights of LPIPS on AlexNet, for this metric."),
]
VggWeights = Annotated[
    Path | None,
    typer.Option(
        "--vgg",
        metavar="FILE",
        help="Weights of LPIPS on VGG-16 and of DISTS, in one file, for both metrics.",
    ),
]

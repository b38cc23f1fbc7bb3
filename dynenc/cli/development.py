"""Commands for training networks, quantising decoders and importing checkpoints."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dynenc.cli import console, options
from dynenc.cli.commands import Section
from dynenc.errors import UsageError

SECTION = Section("Develop")

Images = Annotated[
    list[Path], typer.Option(metavar="PATH", help="Folder or tar of images; repeatable.")
]
Weights = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors to write.")
]
CacheFolder = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for cached data.")]
Steps = Annotated[int, typer.Option(metavar="N", min=1, help="Steps of training.")]
THUMBNAIL_ENCODERS, PERCEPTUAL_ENCODERS = ("nano", "light", "base"), ("light", "base")


def encoders_option(default: tuple[str, ...]) -> Any:
    """The repeatable option --encoder, with its help."""
    return typer.Option(
        "--encoder",
        metavar="NAME|FILE",
        help=f"Encoder for the images; repeatable. [default: {', '.join(default)}]",
    )


@dataclass(frozen=True, kw_only=True)
class TrainFiles:
    """What a training reads and writes: the arguments of `TrainPaths`."""

    data: Images
    teacher: Annotated[
        Path, typer.Option(metavar="PATH", help="VAE of the latent space, in diffusers form.")
    ]
    run: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for checkpoints, log and cached data.")
    ]
    export: Weights
    lpips: options.LpipsWeights = None
    vgg: options.VggWeights = None
    fonts: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="TrueType fonts for the text in drawn crops."),
    ] = None
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights to start from: of the same network, also for another latent space.",
        ),
    ] = None
    embedded: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Embedded decoder to train the encoder through."),
    ] = None
    encoders: Annotated[
        list[Path] | None,
        typer.Option(
            "--encoder",
            metavar="FILE",
            help="Encoder whose latents the decoder is trained on; trained, too, with joint=1. "
            "Repeatable.",
        ),
    ] = None
    test: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of images to measure on at the end."),
    ] = None


@SECTION.command(
    "train",
    "dynenc train light --data photos/ --teacher taesd/ --lpips lpips.safetensors "
    "--vgg vgg.safetensors --run runs/light -o light.safetensors",
    "dynenc train full --data photos/ --teacher taesd/ --run runs/c -o entropy.safetensors",
)
def train(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="An encoder (nano, light, base), autoencoder, a decoder (embedded, fine), or an "
            "entropy coder (fast, full, encoders-flux1); for another latent space with its name, "
            "as light-sdxl, base-flux1, full-sd3.",
        ),
    ],
    files: TrainFiles,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting: a field of TrainConfig, or of FitConfig for an entropy coder; "
            "repeatable.",
        ),
    ] = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Train a network, or fit an entropy coder.

    The same command, run again, continues from its last checkpoint. An existing output is
    overwritten.
    """
    with console.session(quiet=quiet):
        from dynenc.cli.terminal import progress_bar
        from dynenc.networks.compat import pick_device
        from dynenc.training.config import CODERS, PRESETS, TrainPaths, configure
        from dynenc.training.run import train_with_log

        presets = [*PRESETS, *CODERS]
        if preset not in presets:
            raise typer.BadParameter(f"{preset!r} is not one of {', '.join(presets)}.")
        if preset in CODERS and device not in ("auto", "cpu"):
            raise UsageError(f"{preset} is fitted on the CPU", hint="omit --device")
        config = configure(preset, setting or [])
        repeatable = {"data": tuple(files.data), "encoders": tuple(files.encoders or ())}
        paths = TrainPaths(**vars(files) | repeatable)
        with progress_bar(preset, quiet=quiet) as on_progress:
            figures = train_with_log(config, paths, pick_device(device), on_progress)
        console.print_result(json.dumps({"path": str(files.export), **figures}))


@SECTION.command(
    "quantize-decoder",
    "dynenc quantize-decoder float.safetensors --data photos/ --run runs/q -o embedded.safetensors",
)
def quantize_decoder(
    start: Annotated[
        Path, typer.Argument(metavar="FILE", help="Float weights written by `dynenc train`.")
    ],
    data: Images,
    run: CacheFolder,
    output: Weights,
    encoder: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Encoder for the images.")
    ] = "base",
) -> None:
    """Quantise a trained decoder (embedded, fine) to the integers that dynenc decodes with.

    The ranges of the activations are calibrated on a few of the images. The same arguments give
    the same integers. An existing output is overwritten.
    """
    with console.session():
        from dynenc.training.integers import convert

        size = convert(start, data, run, output, encoder)
        console.print_result(json.dumps({"path": str(output), "bytes": size}))


@SECTION.command(
    "train-thumbnail",
    "dynenc train-thumbnail --data photos/ --run runs/t -o thumbnail.safetensors",
)
def train_thumbnail(
    data: Images,
    run: CacheFolder,
    output: Weights,
    encoder: Annotated[list[str] | None, encoders_option(THUMBNAIL_ENCODERS)] = None,
    steps: Steps = 4000,
) -> None:
    """Train and quantise the decoder of images at 1/4 and 1/8 of the size.

    It takes some minutes of one core. The same arguments give the same integers on one machine. An
    existing output is overwritten.
    """
    with console.session():
        from dynenc.training.small_run import SmallRun
        from dynenc.training.thumbnail import make

        names = tuple(encoder or THUMBNAIL_ENCODERS)
        with _stepwise_bar("thumbnail", steps) as report:
            size = make(SmallRun(tuple(data), run, output, names, steps, report))
        console.print_result(json.dumps({"path": str(output), "bytes": size}))


@SECTION.command(
    "train-perceptual",
    "dynenc train-perceptual --data photos/ --vgg vgg.safetensors --run runs/p -o p.safetensors",
)
def train_perceptual(
    data: Images,
    vgg: Annotated[
        Path, typer.Option(metavar="FILE", help="Weights of LPIPS on VGG-16, as for `eval`.")
    ],
    run: CacheFolder,
    output: Weights,
    encoder: Annotated[list[str] | None, encoders_option(PERCEPTUAL_ENCODERS)] = None,
    steps: Steps = 1800,
) -> None:
    """Train the network whose features --effort compares: a small imitation of VGG-16.

    The same arguments give the same weights on one machine. An existing output is overwritten.
    """
    with console.session():
        from dynenc.training.perceptual import make
        from dynenc.training.small_run import SmallRun

        names = tuple(encoder or PERCEPTUAL_ENCODERS)
        with _stepwise_bar("perceptual", steps) as report:
            size = make(SmallRun(tuple(data), run, output, names, steps, report), vgg)
        console.print_result(json.dumps({"path": str(output), "bytes": size}))


@SECTION.command(
    "import-checkpoint", "dynenc import-checkpoint lightencoder.pt -o author.safetensors"
)
def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A .pt file published by the author of the paper."
        ),
    ],
    output: Weights,
    force: options.Force = False,
) -> None:
    """Convert a checkpoint published with the paper to a file for --encoder.

    No code pickled in the checkpoint is executed.
    """
    with console.session():
        from dynenc.interop.paper_checkpoints import import_checkpoint

        network = import_checkpoint(checkpoint, output, overwrite=force)
        parameters = sum(p.numel() for p in network.parameters())
        kind = type(network).__name__
        console.print_result(
            json.dumps({"path": str(output), "network": kind, "parameters": parameters})
        )


@contextmanager
def _stepwise_bar(title: str, steps: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr; yields a function to call with the number of steps done."""
    from dynenc.cli.terminal import progress_bar

    with progress_bar(title) as on_progress:
        yield lambda done: on_progress(done, steps)

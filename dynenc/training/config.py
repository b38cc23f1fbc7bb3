"""Settings of training runs: every default, the presets, and where a run reads and writes."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from dynenc.errors import UsageError
from dynenc.training.fit_coder import FitConfig

DECODER = "embedded"  # the preset that trains the embedded decoder


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of one training run; the metadata of the weights that it exports holds them."""

    preset: str  # a name of registry.MODELS
    steps: int = 6000  # optimiser steps in all
    budget_s: float = 0.0  # if above 0, stop after so many seconds; the cosine follows the clock
    distill_steps: int = 2000  # of them, the first ones, regress to the teacher's latents alone
    batch: int = 6  # crops a step
    crop: int = 128  # px, side of a crop
    synthetic: float = 0.15  # share of crops that are drawn: text, charts, stripes, flats, ...
    learning_rate: float = 1e-3  # of AdamW, after warm-up; falls to 0 along a cosine
    warmup_steps: int = 100
    clip: float = 0.5  # largest norm of the gradient
    mse: float = 1.0  # weight of the squared error of pixels in [-1, 1]
    lpips: float = 0.06  # weight of LPIPS (AlexNet)
    lpips_vgg: float = 0.07  # weight of LPIPS (VGG-16)
    dists: float = 0.12  # weight of DISTS
    vgg_share: float = 0.5  # of a batch's crops that LPIPS (VGG-16) or DISTS judges
    blocks: float = 0.25  # weight of the absolute error of the means of 4, 8, 16 and 32 px blocks
    gan: float = 0.0  # size of the adversary's gradient by pixels, times that of all other terms
    gan_warmup: int = 300  # steps in which the discriminator learns alone
    tie: float = 0.03  # weight of the absolute distance to the teacher's latents
    rate: float = 0.0  # weight of the bits of a latent, times the step squared
    embedded_share: float = 0.6  # of the end-to-end steps that decode with the embedded decoder
    joint: int = 0  # 1: the embedded decoder learns with the encoder, and is exported beside it
    largest_step: float = 0.5  # quantiser step whose noise is added, drawn from 0 to this
    ema: float = 0.998  # decay of the average of the weights that is exported
    share_of_start: float = 0.0  # in what is exported, of the weights that the run began with
    seed: int = 0


PRESETS = {
    "nano": TrainConfig(
        "nano", steps=7500, distill_steps=2500, learning_rate=2e-3, lpips=0.4, rate=0.03
    ),
    "light": TrainConfig("light", steps=8000, learning_rate=1.6e-3, lpips=0.15, rate=0.04),
    "base": TrainConfig("base", rate=0.05),
    "embedded": TrainConfig("embedded", distill_steps=0),
    "autoencoder": TrainConfig(
        "autoencoder", steps=12000, distill_steps=0, lpips=0.008, tie=0.0, rate=0.006
    ),
}
CODERS = {  # these fit an entropy coder's tables
    "fast": FitConfig("fast", has_trellis=False),
    "full": FitConfig("full", hidden=48, middle=24, neighbours=56, batch=2048, learning_rate=9e-3),
}


@dataclass(frozen=True, slots=True)
class TrainPaths:
    """Where a training run reads and writes."""

    data: tuple[Path, ...]  # folders or tar shards of pictures
    teacher: Path  # autoencoder of SD latents, in diffusers form
    lpips: Path | None  # weights of LPIPS (AlexNet); the entropy coder needs none
    run: Path  # checkpoints, log, cache of the data
    export: Path  # safetensors to write at the end
    vgg: Path | None = None  # weights of LPIPS (VGG-16) and DISTS, if either has a weight
    fonts: Path | None = None  # folder of TrueType fonts for drawn text
    start: Path | None = None  # weights to start from instead of the linear fit
    embedded: Path | None = None  # embedded decoder to train an encoder through
    encoders: tuple[Path, ...] = ()  # encoders to train the embedded decoder on
    test: Path | None = None  # folder of pictures to measure on at the end, never trained on


def configure(preset: str, settings: list[str]) -> TrainConfig | FitConfig:
    """A preset with some fields changed, each as 'name=value'; raises UsageError."""
    changes: dict[str, int | float] = {}
    base = (PRESETS | CODERS)[preset]
    numbers = {f.name: type(getattr(base, f.name)) for f in fields(base) if f.name != "preset"}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            changes[name] = numbers[name](value)
        except (KeyError, ValueError) as exc:
            choices = ", ".join(numbers)
            raise UsageError(
                f"{setting!r} is not NAME=NUMBER", hint=f"the names for --set are {choices}"
            ) from exc
    return replace(base, **changes)  # type: ignore[arg-type]  # each value has its field's type

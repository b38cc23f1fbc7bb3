"""Settings of training runs: defaults, presets, and the paths of a run."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dynenc import registry
from dynenc.coding.quantize import STEP_UNIT
from dynenc.coding.rate_control import COARSEST_STEP_Q
from dynenc.errors import UsageError
from dynenc.latent_space import PATCH
from dynenc.training.samples import FitConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of one training run; they are stored in the metadata of the exported weights."""

    preset: str  # a name of registry.MODELS
    steps: int = 6000  # total optimiser steps
    budget_s: float = 0.0  # if above 0, stop after this time; the cosine follows the clock
    distill_steps: int = 2000  # the first steps, which only regress to the teacher's latents
    batch: int = 6  # crops per step
    crop: int = 128  # px, side of a crop
    synthetic: float = 0.15  # share of crops that are drawn: text, charts, stripes, flats, ...
    learning_rate: float = 1e-3  # of Muon and AdamW, after warm-up; falls to 0 along a cosine
    warmup_steps: int = 100
    clip: float = 0.5  # maximum gradient norm
    mse: float = 1.0  # weight of the squared error of pixels in [-1, 1]
    lpips: float = 0.06  # weight of LPIPS (AlexNet)
    lpips_vgg: float = 0.07  # weight of LPIPS (VGG-16)
    dists: float = 0.12  # weight of DISTS
    vgg_share: float = 0.5  # share of the crops that LPIPS (VGG-16) or DISTS is computed on
    blocks: float = 0.25  # weight of the absolute error of the means of 4, 8, 16 and 32 px blocks
    pattern: float = 0.5  # weight of the absolute error of the mean of all patches of 8x8 px
    flats: float = 0.5  # weight of the absolute error of small images of one colour
    gan: float = 0.0  # norm of the adversary's pixel gradient, relative to that of all other terms
    gan_warmup: int = 300  # steps in which only the discriminator learns
    tie: float = 0.03  # weight of the absolute distance to the teacher's latents
    rate: float = 0.0  # weight of the bits per latent, times the step squared
    embedded_share: float = 0.6  # share of end-to-end steps that use the embedded decoder
    joint: int = 0  # 1: train the embedded decoder and encoders together, and export them all
    largest_step: float = 0.5  # elsewhere, noise is that of a quantiser step drawn up to this
    lowest_quality: float = 10.0  # the embedded decoder gets what files of qualities between ...
    highest_quality: float = 80.0  # ... these hold, also in the training of an encoder
    ema: float = 0.998  # decay of the moving average of the weights, which is exported
    share_of_start: float = 0.0  # share of the initial weights in the exported ones
    seed: int = 0


PRESETS = {
    "nano": TrainConfig(
        "nano", steps=7500, distill_steps=2500, learning_rate=2e-3, lpips=0.4, rate=0.03
    ),
    "light": TrainConfig("light", steps=8000, learning_rate=1.6e-3, lpips=0.15, rate=0.04),
    "base": TrainConfig("base", rate=0.05),
    "embedded": TrainConfig("embedded", distill_steps=0),
    "fine": TrainConfig(
        "fine", distill_steps=0, learning_rate=2.5e-4, lpips=0.33, lpips_vgg=0.09, pattern=0.2
    ),
    "autoencoder": TrainConfig(
        "autoencoder", steps=12000, distill_steps=0, lpips=0.008, tie=0.0, rate=0.006
    ),
}
PRESETS |= {  # networks of other latent spaces are trained as those of SD 1.x are
    model.name: replace(PRESETS[registry.base_name(model)], preset=model.name)
    for model in registry.MODELS.values()
    if model.kind in ("encoder", "decoder")
    and model.name not in PRESETS
    and registry.base_name(model) in PRESETS
}
FOUR_CHANNELS: dict[str, Any] = {
    "hidden": 48,
    "middle": 24,
    "neighbours": 56,
    "batch": 2048,
    "learning_rate": 9e-3,
}
SIXTEEN_CHANNELS: dict[str, Any] = {"neighbours": 48}  # smaller: there are four times the symbols
CODERS = {  # these fit an entropy coder's tables
    "fast": FitConfig("fast", has_trellis=False),
    "full": FitConfig("full", **FOUR_CHANNELS),
    "full-sdxl": FitConfig(
        "full-sdxl",
        images=700,
        samples=600_000,
        iterations=10_000,
        faded=0.1,
        **FOUR_CHANNELS,
    ),
    "full-flux1": FitConfig("full-flux1", images=250, **SIXTEEN_CHANNELS),
    "encoders-flux1": FitConfig(
        "encoders-flux1",
        images=500,
        samples=300_000,
        iterations=3500,
        faded=0.1,
        **SIXTEEN_CHANNELS,
    ),
    "full-sd3": FitConfig(
        "full-sd3", images=280, samples=180_000, iterations=1600, **SIXTEEN_CHANNELS
    ),
}


@dataclass(frozen=True, slots=True)
class TrainPaths:
    """Where a training run reads and writes."""

    data: tuple[Path, ...]  # folders or tar shards of images
    teacher: Path  # autoencoder of the latent space, in diffusers form
    lpips: Path | None  # weights of LPIPS (AlexNet); the entropy coder needs none
    run: Path  # checkpoints, log, cache of the data
    export: Path  # safetensors to write at the end
    vgg: Path | None = None  # weights of LPIPS (VGG-16) and DISTS, if either is used
    fonts: Path | None = None  # folder of TrueType fonts for drawn text
    start: Path | None = None  # weights to start from instead of the linear fit
    embedded: Path | None = None  # embedded decoder to train an encoder through
    encoders: tuple[Path, ...] = ()  # to train the embedded decoder on; if joint, also trained
    test: Path | None = None  # folder of images to measure on at the end, not trained on


# The kinds of network whose training uses a setting; settings not listed apply to all.
USED_BY = {
    "distill_steps": ("encoder",),
    "tie": ("encoder",),
    "joint": ("encoder",),
    "embedded_share": ("encoder",),
    "rate": ("encoder", "autoencoder"),
    "largest_step": ("encoder", "autoencoder", "coder"),
    "lowest_quality": ("encoder", "decoder"),
    "highest_quality": ("encoder", "decoder"),
    "gan": ("decoder",),
    "gan_warmup": ("decoder",),
}
LEAST = {  # minimum of settings that cannot be 0
    **dict.fromkeys(("steps", "batch", "warmup_steps"), 1),
    "crop": 40,  # px; networks that judge crops of 32 px or more see all but 7
    **dict.fromkeys(("samples", "iterations", "copies", "radius"), 1),
    **dict.fromkeys(("hidden", "middle", "neighbours"), 1),
    "smallest_step": 1 / STEP_UNIT,
    "prior": 0.001,  # tables that no symbol was counted in are the prior
}
SHARES = ("synthetic", "vgg_share", "embedded_share", "share_of_start", "ema", "faded", "joint")
MOST = {  # maximum of settings; those of coders are the kernel's
    **dict.fromkeys(SHARES, 1),
    **dict.fromkeys(("hidden", "middle", "neighbours"), 128),
    **dict.fromkeys(("lowest_quality", "highest_quality"), 100),
    "radius": 127,
    "largest_step": COARSEST_STEP_Q / STEP_UNIT,
}


def configure(preset: str, settings: list[str]) -> TrainConfig | FitConfig:
    """A preset with some fields changed, each given as 'name=value'; raises UsageError."""
    changes: dict[str, int | float] = {}
    base = (PRESETS | CODERS)[preset]
    values = {f.name: getattr(base, f.name) for f in fields(base)}
    numbers = {name: type(value) for name, value in values.items() if type(value) in (int, float)}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            changes[name] = numbers[name](value)
        except (KeyError, ValueError) as exc:
            choices = ", ".join(numbers)
            raise UsageError(
                f"{setting!r} is not NAME=NUMBER", hint=f"names for --set: {choices}"
            ) from exc
    config: TrainConfig | FitConfig = replace(base, **changes)  # type: ignore[arg-type]  # each value has its field's type
    check(config)
    return config


def check(config: TrainConfig | FitConfig) -> None:
    """Refuse settings that are out of range, or that training this network would ignore.

    Raises: UsageError.
    """
    base = (PRESETS | CODERS)[config.preset]
    kind = registry.MODELS[config.preset].kind
    for name in (field.name for field in fields(config) if field.name != "preset"):
        value = getattr(config, name)
        least, most = LEAST.get(name, 0), MOST.get(name, math.inf)
        if not (least <= value <= most and math.isfinite(value)):
            upper = f" to {most}" if name in MOST else " or more"
            raise UsageError(f"{name}={value} is out of range: use {least}{upper}")
        kinds = USED_BY.get(name, (kind,))
        if kind not in kinds and value not in (0, getattr(base, name)):
            users = ", ".join(preset for preset in PRESETS if registry.MODELS[preset].kind in kinds)
            raise UsageError(
                f"{name}={value:g} has no effect on the training of {config.preset}: "
                f"it applies to {users}"
            )
    if isinstance(config, FitConfig) and config.smallest_step > config.largest_step:
        raise UsageError("smallest_step must not be above largest_step")
    if isinstance(config, TrainConfig):
        if config.lowest_quality > config.highest_quality:
            raise UsageError("lowest_quality must not be above highest_quality")
        if config.crop % PATCH:
            raise UsageError(f"crop={config.crop} is not a multiple of {PATCH} px")
        if not config.gan and config.gan_warmup not in (0, PRESETS[config.preset].gan_warmup):
            raise UsageError(f"gan_warmup={config.gan_warmup:g} has no effect while gan is 0")
        if config.budget_s and config.steps != PRESETS[config.preset].steps:
            raise UsageError(f"steps={config.steps} has no effect: budget_s ends the run")


def check_paths(config: TrainConfig | FitConfig, paths: TrainPaths) -> None:
    """Refuse paths that this training would ignore, and joint training of one network.

    Raises: UsageError.
    """
    kind, joint = registry.MODELS[config.preset].kind, bool(getattr(config, "joint", 0))
    if joint and not paths.embedded:
        raise UsageError("joint training needs an embedded decoder", hint="give --embedded")
    if paths.embedded and kind != "encoder":
        raise UsageError(
            f"{config.preset} is not trained through an embedded decoder", hint="omit --embedded"
        )
    for name in ("lowest_quality", "highest_quality") if kind == "encoder" else ():
        preset = PRESETS[config.preset]
        if not paths.embedded and getattr(config, name) != getattr(preset, name):
            raise UsageError(f"{name} has no effect without an embedded decoder")
    for name, share in (("embedded", "embedded_share"), ("fonts", "synthetic")):
        if getattr(paths, name) and not getattr(config, share, 1):
            raise UsageError(f"{name} is not used while {share} is 0", hint=f"omit --{name}")
    if paths.encoders and not joint and kind not in ("decoder", "coder"):
        raise UsageError(
            f"{config.preset} is not trained on latents of other encoders",
            hint="omit --encoder",
        )
    if paths.start and kind == "coder":
        raise UsageError(f"{config.preset} is fitted from scratch", hint="omit --start")
    for name in ("lpips", "vgg", "fonts") if kind == "coder" else ():
        if getattr(paths, name):
            raise UsageError(f"{config.preset} is fitted without {name}", hint=f"omit --{name}")

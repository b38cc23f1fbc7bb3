"""Examine this machine: versions, device, kernel, networks, caches, formats, extras.

Imports torch, unlike the other modules of the command; imported by `dynenc doctor` alone.
"""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from PIL import features

import dynenc
from dynenc import registry
from dynenc.coding import bitstream
from dynenc.errors import DynencError
from dynenc.native import kernel
from dynenc.networks import compat, decoder_choice

PACKAGES = ("torch", "diffusers", "safetensors", "pillow", "numpy", "typer")
FORMATS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "avif": "AVIF", "jpg_2000": "JPEG 2000"}
FORMATS |= {"libtiff": "TIFF", "littlecms2": "colour profiles"}
EXTRAS = {  # packages, by which dynenc's extras are told
    "s3": ["s3fs"],
    "gs": ["gcsfs"],
    "http": ["aiohttp"],
    "heif": ["pillow-heif"],
    "jxl": ["pillow-jxl-plugin"],
    "ray": ["ray"],
    "eval": ["bjontegaard", "matplotlib"],
}


class Examination(NamedTuple):
    """What dynenc finds on this machine."""

    findings: dict[str, str]  # by name
    problems: list[str]  # sentences


def examine() -> Examination:
    """Look at everything, also where something fails."""
    problems: list[str] = []

    def tried(look: Callable[[], str]) -> str:
        try:
            return look()
        except DynencError as exc:
            if str(exc) not in problems:
                problems.append(str(exc))
            return f"fails: {exc}"

    findings = {
        "dynenc": dynenc.__version__,
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "format": f"reads and writes version {bitstream.VERSION}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "device": tried(_device),
        "kernel": tried(_kernel),
        "dtype": tried(_dtypes),
        "weights": tried(_weights),
        "decoder": tried(_decoder),
        kernel.SIMD_VARIABLE: os.environ.get(kernel.SIMD_VARIABLE, "not set"),
        compat.CPU_DTYPE: os.environ.get(compat.CPU_DTYPE, "not set"),
        decoder_choice.SD_VAE_VARIABLE: os.environ.get(decoder_choice.SD_VAE_VARIABLE, "not set"),
        "hub cache": tried(_hub_cache),
        "formats": _formats(),
        "extras": ", ".join(
            f"{name} ({', '.join(f'{each} {_version(each)}' for each in packages)})"
            for name, packages in EXTRAS.items()
        ),
    }
    return Examination(findings, problems)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    device = compat.pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    return f"{device} ({name}), {threads} thread{'s' if threads > 1 else ''}"


def _kernel() -> str:
    kernel.library()
    [name] = [
        name
        for name, number in kernel.INSTRUCTION_SETS.items()
        if number == kernel.selected_instruction_set()
    ]
    return f"native, with {name}"


def _dtypes() -> str:
    device = compat.pick_device()
    own = "float32"
    if device.type == "cpu":
        own = str(compat.cpu_dtype()).removeprefix("torch.")
    fast = str(compat.fast_dtype(device)).removeprefix("torch.")
    return f"dynenc's networks in {own}, other decoders in {fast}"


def _weights() -> str:
    """The folder of the weights; every file is checked against its pinned hash."""
    own = [model for model in registry.MODELS.values() if model.file]
    for model in own:
        registry.read_file(model)
    return f"{registry.folder()}: {', '.join(model.name for model in own)}"


def _decoder() -> str:
    choice = decoder_choice.choose_decoder()
    where = f", in {choice.path}" if choice.path else ""
    return f"auto selects {choice.name}{where}: {choice.note}"


def _hub_cache() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)


def _formats() -> str:
    have = [name for feature, name in FORMATS.items() if features.check(feature)]
    lack = [name for name in FORMATS.values() if name not in have]
    return ", ".join(have) + (f"; without {', '.join(lack)}" if lack else "")

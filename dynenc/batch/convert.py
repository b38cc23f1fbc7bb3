"""Convert files, folders and shards: the public function, and the checks of its arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from dynenc import registry
from dynenc.arguments import (
    StrPath,
    checked_callback,
    checked_integer,
    checked_name,
    checked_number,
    checked_patterns,
)
from dynenc.batch.pipeline import OnResult, run_conversion
from dynenc.batch.results import ConversionSummary
from dynenc.batch.settings import (
    CodecOptions,
    ConversionSettings,
    Engine,
    Existing,
    ImportOptions,
    InputOptions,
    Naming,
    OutputOptions,
    RunOptions,
    TaskName,
)
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.encode_options import DetailMode, EncodeOptions
from dynenc.coding.rate_control import IMPORT_QUALITY, Goal, OnStep
from dynenc.errors import UsageError
from dynenc.interop.latent_formats import LATENT_FORMATS
from dynenc.io import names
from dynenc.latent_space import named as space_named
from dynenc.view import WHOLE, View


def convert(
    task: TaskName,
    inputs: StrPath | Iterable[StrPath],
    output: StrPath | None = None,
    *,
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffix: str | None = None,
    form: str | None = None,
    naming: Naming = "replace",
    shard_size: int | None = None,
    existing: Existing | None = None,
    keep_mtime: bool = False,
    dry_run: bool = False,
    encoder: str = registry.DEFAULT_ENCODER,
    decoder: str = "auto",
    quality: float | None = None,
    target_bpp: float | None = None,
    target_size: int | str | None = None,
    target_psnr: float | None = None,
    strict: bool = False,
    effort: int = 0,
    detail: DetailMode = "auto",
    tune_for: str = "embedded",
    keep_metadata: bool = False,
    scale: float | None = None,
    view: View = WHOLE,
    space: str | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    truncated: bool = False,
    jobs: int | None = None,
    batch_size: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    preview: int = 0,
    on_result: OnResult | None = None,
    on_step: OnStep | None = None,
) -> ConversionSummary:
    """Encode, decode, measure, export or import files, folders, archives, patterns and URLs.

    The commands of the same names call this. One bad file does not stop the others: it is counted
    in the summary and listed in its `failures`. Only when the input is a single file is its error
    raised.

    Args:
        task: "encode", "decode", "roundtrip", "export" or "import". A roundtrip encodes and decodes
            in memory, and writes images only if there is an output.
        inputs: one name or several. A name that exists is taken literally, even if it looks like a
            pattern.
        output: folder to write to, or its URL; for a single input also the output file itself.
            None writes beside each input.
        recursive: descend into sub-folders, and recreate them in the output.
        include, exclude: patterns of names, or of paths below the folder if they have a slash.
        suffix: suffix of the outputs, which decides their format. None takes that of the output
            file, else ".lat" (encode, import), ".png" (decode, roundtrip) or ".safetensors"
            (export). For the formats of latents see `interop.latent_export`.
        form: format of files of latents, of `LATENT_FORMATS`; None takes that of the suffix.
        naming: "replace" the suffix of the input, or "keep" it: a.jpg becomes a.jpg.lat.
        shard_size: pack the outputs into tar shards of this many images.
        existing: what to do if an output exists: "skip" it, "update" it if the input has changed
            since or if it was made with other settings, "force" overwrites it, "refuse" fails.
            None means "refuse" for a single file, else "skip".
        keep_mtime: give outputs the modification time of their input.
        dry_run: only report what would be done.
        encoder, quality, target_bpp, target_size, target_psnr, strict, effort, detail,
            keep_metadata: see `Codec` and `Codec.encode`. Imported latents take only a quality;
            without one, latents that are already quantised stay as they are, and others get 80.
        decoder: see `Codec`.
        tune_for: decoder that `effort` and `target_psnr` optimise for when encoding; a roundtrip
            tunes for `decoder`.
        scale: factor that imported latents were multiplied by: that of their space, or 1 for raw
            VAE latents. None takes what each file declares.
        space: of the latents that are made or imported: "sd1", "sdxl", "flux1" or "sd3". None
            takes that of the encoder, or what each file declares, else "sd1" for 4 channels.
        view: region and scale of the decoded images, from `View.of`; a region applies to one file.
        device: "auto", "cpu", "cuda" or "mps".
        max_pixels: refuse files that declare more.
        truncated: accept truncated image files: use the pixels that are present, and add a note.
        jobs: number of worker processes, or of Ray actors; None chooses.
        batch_size: images of equal size in one pass of the network; None chooses.
        engine: "local", or "ray" for a cluster at `address`; see `ray_engine`.
        preview: attach to each roundtrip's result a small side-by-side image of original and
            decoded, this many terminal columns wide.
        on_result: called with each result, in order of completion, and the summary so far.
        on_step: called with (step, number of steps) of an effort, if no worker processes are used.
    Returns: the summary of all results.
    Raises: UsageError if the options contradict each other; ImageError, BitstreamError or
        LatentsError if there is nothing to convert; and any error that would make every file fail:
        WeightsError, DeviceError, EngineError, OutputError if a folder cannot be written,
        OutputExists if packed shards hold other images and are to be skipped, DiskFull. Finished
        outputs are kept.
    """
    _check_choices(task, existing=existing, naming=naming, engine=engine)
    encode = EncodeOptions.from_arguments(
        quality=quality,
        target_bpp=target_bpp,
        target_size=target_size,
        target_psnr=target_psnr,
        strict=strict,
        effort=effort,
        detail=detail,
        keep_metadata=keep_metadata,
    )
    if task == "import" and quality is None and encode.goal.kind == "quality":
        encode = replace(encode, goal=Goal(value=IMPORT_QUALITY))
    settings = ConversionSettings(
        task=task,
        codec=CodecOptions(
            encoder=_encoder(task, encoder, space),
            decoder=checked_name("a decoder", decoder),
            tune_for=checked_name("a decoder", tune_for),
            device=device,
        ),
        encode=encode,
        imported=ImportOptions(scale=scale, space=space or "", keep_step=quality is None),
        view=view,
        input=InputOptions(
            recursive=recursive,
            include=checked_patterns("include", include),
            exclude=checked_patterns("exclude", exclude),
            max_pixels=checked_integer("max_pixels", max_pixels),
            truncated=truncated,
        ),
        output=OutputOptions(
            suffix=_suffix(LATENT_FORMATS.get(form) if suffix is None and form else suffix),
            form=form or "",
            naming=naming,
            shard_size=None if shard_size is None else checked_integer("shard_size", shard_size, 1),
            existing=existing,
            keep_mtime=keep_mtime,
        ),
        run=RunOptions(
            engine=engine,
            address=address,
            jobs=None if jobs is None else checked_integer("jobs", jobs, 1),
            batch_size=None if batch_size is None else checked_integer("batch_size", batch_size, 1),
            preview=checked_integer("preview", preview),
        ),
    )
    if isinstance(inputs, bytes) or not isinstance(inputs, Iterable | os.PathLike):
        raise UsageError(f"inputs must be a path or a list of paths, not {inputs!r}")
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    _check_settings(settings)
    return run_conversion(
        settings,
        [names.without_file_scheme(checked_name("an input", name)) for name in given],
        None if output is None else names.without_file_scheme(checked_name("an output", output)),
        dry_run=dry_run,
        on_result=checked_callback("on_result", on_result),
        on_step=checked_callback("on_step", on_step),
    )


def _suffix(suffix: str | None) -> str:
    """A suffix with its leading dot; "" for None."""
    if suffix is None:
        return ""
    bare = suffix.removeprefix(".") if isinstance(suffix, str) else ""
    if not bare or {"/", os.sep, "\0"} & set(bare):
        raise UsageError(f"{suffix!r} is not a valid file name suffix")
    return "." + bare


def _check_choices(task: str, **choices: str | None) -> None:
    """Raise UsageError for an unknown task, or a word that is not one of its choices."""
    if task not in get_args(TaskName):
        raise UsageError(f"unknown task {task!r}: choose one of {', '.join(get_args(TaskName))}")
    allowed = {"existing": (None, *get_args(Existing)), "naming": get_args(Naming)}
    allowed["engine"] = get_args(Engine)
    for name, value in choices.items():
        if value not in allowed[name]:
            known = ", ".join(filter(None, allowed[name]))
            raise UsageError(f"unknown {name} {value!r}: choose one of {known}")


def _encoder(task: TaskName, name: str, space: str | None) -> str:
    """The encoder of a task: the named one, or its counterpart in the requested space."""
    name, wanted = checked_name("an encoder", name), space_named(space) if space else None
    if wanted is None or task not in ("encode", "roundtrip"):
        return name
    model = registry.encoder_model(name)
    if model.space is wanted:
        return name
    if model.kind == "imported":
        raise UsageError(f"{name} makes {model.space.title} latents, not {wanted.title}")
    return registry.encoder_of_space(name, wanted).name


def _check_settings(settings: ConversionSettings) -> None:
    """Raise UsageError if options contradict each other or are out of range."""
    if settings.task == "import" and settings.encode.goal.kind != "quality":
        raise UsageError("imported latents take a quality, not a target")
    if settings.output.form and settings.output.form not in LATENT_FORMATS:
        raise UsageError(
            f"unknown latent format {settings.output.form!r}: choose one of "
            f"{', '.join(LATENT_FORMATS)}"
        )
    scale = settings.imported.scale
    if scale is not None and not 0 < checked_number("scale", scale) < math.inf:
        raise UsageError(f"scale must be positive and finite, not {scale:g}")
    if settings.run.address is not None and settings.run.engine != "ray":
        raise UsageError("an address is only used with the Ray engine", hint="add --engine ray")

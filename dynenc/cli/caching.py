"""The command that makes caches of latents for training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dynenc import registry
from dynenc.batch.settings import SHARD_SIZE
from dynenc.cli import console, options
from dynenc.cli.commands import Section
from dynenc.cli.options import OUTPUT, QUALITY
from dynenc.coding.rate_control import IMPORT_QUALITY
from dynenc.errors import DynencError, with_name
from dynenc.latent_space import SD1

if TYPE_CHECKING:
    from dynenc.batch.cache import CacheSummary

SECTION = Section("Convert")


@dataclass(frozen=True, kw_only=True)
class Caching:
    """What is cached, and how: the arguments of `dynenc.make_cache`."""

    space: options.CachedSpace = SD1.name
    encoder: options.CachedEncoder = registry.DEFAULT_ENCODER
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Encode with this VAE of the space instead: a folder or .safetensors file.",
        ),
    ] = None
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            min=64,
            help="Resize images to buckets of at most PX x PX pixels. [default: 512 for sd1, else "
            "1024]",
        ),
    ] = None
    flips: Annotated[
        bool, typer.Option("--flips", help="Add the latents of the mirrored images.")
    ] = False
    quality: Annotated[
        float,
        typer.Option(
            "--quality",
            "-Q",
            metavar="0..100",
            rich_help_panel=QUALITY,
            show_default=False,
            help=f"Quality of the latents. [default: {IMPORT_QUALITY:g}]",
        ),
    ] = IMPORT_QUALITY
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            rich_help_panel=OUTPUT,
            help="Remove latents of images that are not among those given.",
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            rich_help_panel=OUTPUT,
            help="Encode all images again; required if the settings change.",
        ),
    ] = False
    shard_size: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=OUTPUT, help="Images in a tar shard."),
    ] = SHARD_SIZE


@SECTION.command(
    "cache",
    "dynenc cache photos/ -o cache/",
    "dynenc cache photos/ -o cache/ --resolution 768 --flips --prune",
    "dynenc cache photos/ -o cache/ --space flux1 --vae path/to/flux/vae",
)
def cache(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders with sub-folders, or patterns."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FOLDER", rich_help_panel=OUTPUT, help="Folder of the cache."
        ),
    ],
    caching: Caching,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Make or update a cache of latents, from which models are trained without the images.

    Images are resized to buckets of a few sizes. Only those that are new or have changed are
    encoded. The cache consists of tar shards with an index beside each, for dynenc.LatentDataset
    and WebDataset.
    """
    with console.session(quiet=quiet):
        from dynenc.batch.cache import make_cache
        from dynenc.cli.terminal import progress_bar

        with progress_bar("images", quiet=quiet) as on_progress:
            summary = make_cache(
                images, output, **vars(caching), device=device, on_progress=on_progress
            )
        for path, note in summary.notes if not quiet else ():
            console.print_message(f"dynenc: {path}: {note}")
        for path, error in summary.failures:
            console.print_message(f"dynenc: {with_name(error, path).sentence}")
        if as_json:
            console.print_result(json.dumps(_figures(summary)))
        elif not quiet:
            for (width, height), count in sorted(summary.buckets.items()):
                console.print_result(f"{width}x{height}  {count} image{'s' * (count > 1)}")
            console.print_message(_line(summary))
        if summary.failures:
            raise typer.Exit(DynencError.exit_code)


def _figures(summary: CacheSummary) -> dict[str, object]:
    return {
        "made": summary.made,
        "kept": summary.kept,
        "removed": summary.removed,
        "orphans": summary.orphans,
        "failed": [path for path, _ in summary.failures],
        "buckets": {f"{w}x{h}": count for (w, h), count in sorted(summary.buckets.items())},
        "bytes": summary.n_bytes,
    }


def _line(summary: CacheSummary) -> str:
    orphans = len(summary.orphans)
    hint = f", {orphans} without an image (remove them with --prune)" if orphans else ""
    return (
        f"dynenc: {summary.made} made, {summary.kept} kept, {summary.removed} removed, "
        f"{len(summary.failures)} failed{hint}; {summary.n_bytes} bytes"
    )

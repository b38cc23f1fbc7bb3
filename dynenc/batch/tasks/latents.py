"""Tasks that convert latents: export and import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dynenc import registry
from dynenc.batch import inputs
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks.base import Item, LoadedItem, Output, Task
from dynenc.batch.tasks.existing_lat import ExistingLat
from dynenc.batch.tasks.load import ParsedLat, load_lat
from dynenc.coding import bitstream, quantize
from dynenc.coding.encode_latents import encode_latents, encode_quantized
from dynenc.coding.lat_file import LatFile, model_of
from dynenc.errors import LatentsError, OtherLatents
from dynenc.imaging import notes
from dynenc.interop import (
    cache_chunk,
    containers,
    latent_export,
    latent_files,
    recognition,
    whole_latents,
)
from dynenc.interop.latent_files import ImportedLatents
from dynenc.interop.latent_formats import LATENT_FORMATS, LATENT_SUFFIXES
from dynenc.io import names
from dynenc.io.storage import Readable
from dynenc.latent_space import PATCH, SPACES
from dynenc.native.kernel import Floats


class ExportTask(Task[ParsedLat]):
    """.lat files to other programs' files of latents."""

    def load(self, item: Item) -> LoadedItem[ParsedLat]:
        """See `Task`."""
        self.prepare(item)
        return load_lat(item, self.settings)

    def make(self, items: Sequence[Item], group: Sequence[LoadedItem[ParsedLat]]) -> list[Output]:
        """See `Task`."""
        outputs = []
        for loaded in group:
            file = loaded.value.file
            if file.model.space.name not in SPACES:
                raise OtherLatents(
                    f"the latents are those of {file.model.space.title}: decode the file"
                )
            data, note = latent_export.write(
                _format_name(self.settings), file, whole_latents.full_image_latents(file)
            )
            if loaded.value.extras.alpha:
                note = notes.joined(note, "alpha is dropped")
            output = Output(
                data,
                size=file.size,
                n_bytes_in=loaded.n_bytes,
                n_bytes_lat=loaded.n_bytes,
                note=note,
            )
            outputs.append(output)
        return outputs

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: ConversionSettings, *, whole: bool) -> bool:
        """See `Task`; the format is the only setting."""
        form = _format_name(settings)
        if form in ("npz", "pt"):
            if file.read(len(containers.ZIP)) != containers.ZIP:
                raise LatentsError("no zip archive")
            return True
        outline = containers.outline(file)
        return (
            recognition.recognise(outline, "the output").layout.format_name or outline.format_name
        ) == form


def _format_name(settings: ConversionSettings) -> str:
    """The format of exported latents; raises LatentsError if their suffix stands for none."""
    output = settings.output
    found = (form for form, suffix in LATENT_FORMATS.items() if suffix == output.suffix.lower())
    if not (form := output.form or next(found, "")):
        raise LatentsError(
            f"no file of latents ends in {output.suffix!r}: use {', '.join(LATENT_SUFFIXES)}"
        )
    return form


class ImportTask(Task[ImportedLatents]):
    """Other programs' files of latents to .lat files."""

    def load(self, item: Item) -> LoadedItem[ImportedLatents]:
        """See `Task`."""
        self.prepare(item)
        blob = inputs.read_latent_file(item.source) if item.data is None else item.data
        options = self.settings.imported
        space = SPACES.get(options.space)
        imported = latent_files.read(blob, names.display_name(item.source), options.scale, space)
        return LoadedItem(imported, len(blob), tuple(imported.latents.shape[-2:]), imported.note)

    def make(
        self, items: Sequence[Item], group: Sequence[LoadedItem[ImportedLatents]]
    ) -> list[Output]:
        """See `Task`."""
        outputs = []
        for loaded in group:
            imported = loaded.value
            size = imported.width, imported.height
            file = self.file(imported, imported.latents, size)
            file = replace(file, chunks=imported.chunks(partial(self.nested, imported)))
            blob = file.to_bytes()
            output = Output(
                blob,
                size=size,
                n_bytes_in=loaded.n_bytes,
                n_bytes_lat=len(blob),
                quality=file.quality,
                note=loaded.note,
            )
            outputs.append(output)
        return outputs

    def file(self, imported: ImportedLatents, latents: Floats, size: tuple[int, int]) -> LatFile:
        """The .lat file for some latents of an imported file; `size`: of their image, px."""
        model = imported.model
        if self.settings.imported.keep_step and imported.step_q is not None:
            if file := encode_quantized(latents, size, imported.step_q, model):
                return file
            model = registry.IMPORTED_MODELS[model.space.name]  # changed since they were exported
        quality = self.settings.encode.goal.value
        step_q = quantize.quality_to_step(quality, has_trellis=model.has_trellis)
        return encode_latents(latents, size, step_q, model)

    def nested(self, imported: ImportedLatents, latents: Floats) -> bytes:
        """The .lat file for further latents of an imported file."""
        height, width = (min(PATCH * side, bitstream.MAX_SIDE) for side in latents.shape[-2:])
        return self.file(imported, latents, (width, height)).to_bytes()

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: ConversionSettings, *, whole: bool) -> bool:
        """See `Task`."""
        lat, options = ExistingLat.open(file, n_bytes, whole=whole), settings.imported
        model = model_of(lat.header)
        if options.space and model.space.name != options.space:
            return False
        if whole and options.scale is not None and not _has_scale(lat.parse(), options.scale):
            return False
        has_kept_step = options.keep_step and model not in registry.IMPORTED_MODELS.values()
        return has_kept_step or lat.meets(settings.encode.goal)


def _has_scale(file: LatFile, scale: float) -> bool:
    """Whether a file says that its latents were imported in that scale."""
    kept = cache_chunk.from_chunks(file.chunks)
    return kept is not None and kept.scaling.scale == scale

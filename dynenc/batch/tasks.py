"""The tasks, one class each: encode, decode, roundtrip, export, import."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, cast

from PIL import Image

from dynenc import registry
from dynenc.batch import inputs, records
from dynenc.batch.records import Roundtrip, Settings
from dynenc.batch.task import (
    CodecTask,
    ExistingLat,
    Input,
    Loaded,
    Made,
    ParsedLat,
    T,
    Task,
    load_image,
    load_lat,
)
from dynenc.coding import bitstream, quantize
from dynenc.coding.lat_file import LatFile, model_of
from dynenc.coding.rate_control import OnStep
from dynenc.encoding import Encoded
from dynenc.errors import ImageError, LatentsError, OtherLatents
from dynenc.imaging import formats, notes, pixels, preview, save
from dynenc.imaging.extras import Extras
from dynenc.interop import beside, caches, containers, latent_files, whole_latents
from dynenc.interop.forms import LATENT_FORMS, LATENT_SUFFIXES
from dynenc.interop.latent_files import ImportedLatents
from dynenc.io import names, storage
from dynenc.io.names import suffix_of
from dynenc.io.storage import Readable
from dynenc.latent_space import PATCH, SPACES
from dynenc.native.kernel import Floats
from dynenc.networks import decoder_names


class Encode(CodecTask[Image.Image]):
    """Images to .lat files."""

    def load(self, item: Input) -> Loaded[Image.Image]:
        """See `Task`."""
        self.prepare(item)
        return load_image(item, self.settings)

    def make(self, items: Sequence[Input], group: Sequence[Loaded[Image.Image]]) -> list[Made]:
        """See `Task`."""
        encoded = self.encode([one.value for one in group])
        return [
            Made(
                made.blob,
                one.value.width,
                one.value.height,
                one.n_bytes,
                len(made.blob),
                quality=made.quality,
                note=notes.joined(one.note, made.note, made.warning),
            )
            for made, one in zip(encoded, group, strict=True)
        ]

    def encode(self, images: Sequence[Image.Image]) -> list[Encoded]:
        """The .lat files of images of equal shape."""
        options = self.settings.encode
        return self.codec.encode_batch(
            images,
            options.goal,
            options.effort,
            detail=options.detail,
            keep_metadata=options.keep_metadata,
            on_step=self.on_step,
        )

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: Settings, *, whole: bool) -> bool:
        """See `Task`."""
        lat = ExistingLat.open(file, n_bytes, whole=whole)
        same_encoder = lat.header.model_id == registry.encoder_model(settings.encode.encoder).number
        return (
            same_encoder
            and lat.meets(settings.encode.goal)
            and lat.may_have(settings.encode.detail)
        )


class _MakesImages(CodecTask[T]):
    """A task whose outputs are images."""

    def prepare(self, item: Input) -> None:
        """Also refuse names without the suffix of an image format."""
        if item.target and not item.member:
            save.image_format(self.format_name(item))
        super().prepare(item)

    def format_name(self, item: Input) -> str:
        """The name that decides the format; a stream, or a file without suffix, gets one here."""
        if not item.member and not suffix_of(item.target):
            return item.target + self.settings.output.suffix
        return item.name

    def image_bytes(
        self, item: Input, image: Image.Image, extras: Extras, decoder_name: str
    ) -> tuple[bytes, list[str]]:
        """The bytes of an image file that names its decoder, and notes on what is lost."""
        with notes.collected() as lost:
            name, view = self.format_name(item), self.settings.decode.view
            data = save.image_bytes(image, extras, name, decoder_name, view)
        return data, lost

    def announce_decoder(self) -> None:
        """Tell the user which decoder "auto" selected."""
        if self.settings.decode.decoder == "auto":
            choice = decoder_names.resolve("auto", self.settings.run.device)
            self.note = f"decoder: {choice.name}, {choice.note}"

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: Settings, *, whole: bool) -> bool:
        """See `Task`; if the whole file counts, an image that names no decoder is not ours."""
        if isinstance(file, io.IOBase) and file.seekable():
            seekable = cast(BinaryIO, file)
        else:  # a member of a shard
            data = storage.read_at_most(file, inputs.MAX_IMAGE_BYTES, "the output")
            seekable = io.BytesIO(data)
        made_by = formats.open_file(seekable, "the output").getexif().get(save.SOFTWARE)
        if whole and not str(made_by).startswith("dynenc"):
            raise ImageError("the output does not say that dynenc decoded it")
        options = settings.decode
        names = [
            decoder_names.resolve(options.decoder, settings.run.device).name,
            *registry.names("autoencoder"),
        ]
        return made_by in [save.software(name, options.view) for name in names]


class Decode(_MakesImages[ParsedLat]):
    """.lat files to images."""

    def __init__(self, settings: Settings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        self.announce_decoder()

    def load(self, item: Input) -> Loaded[ParsedLat]:
        """See `Task`."""
        self.prepare(item)
        loaded = load_lat(item, self.settings)
        header = loaded.value.file.header
        self.settings.decode.view.within((header.width, header.height))
        return loaded

    def make(self, items: Sequence[Input], group: Sequence[Loaded[ParsedLat]]) -> list[Made]:
        """See `Task`."""
        view = self.settings.decode.view
        images = self.codec.decode_batch([one.value.file for one in group], view)
        decoder_name = self.codec.name_of_decoder(group[0].value.file.model)
        made = []
        for item, image, one in zip(items, images, group, strict=True):
            data, lost = self.image_bytes(item, image, one.value.extras, decoder_name)
            note = notes.joined(one.note, *lost)
            header = one.value.file.header
            made.append(
                Made(
                    data,
                    *image.size,
                    one.n_bytes,
                    one.n_bytes,
                    coded_size=(header.width, header.height),
                    note=note,
                )
            )
        return made


class RoundtripTask(_MakesImages[Image.Image]):
    """Images to images through .lat files in memory, with measurements."""

    def __init__(self, settings: Settings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        self.encoding = Encode(settings, on_step)
        self.encoding.codec = self.codec  # networks are loaded once
        self.is_warm = False
        if self.codec.model.kind != "autoencoder":  # which has its own decoder
            self.announce_decoder()

    def load(self, item: Input) -> Loaded[Image.Image]:
        """See `Task`."""
        self.prepare(item)
        return load_image(item, self.settings)

    def make(self, items: Sequence[Input], group: Sequence[Loaded[Image.Image]]) -> list[Made]:
        """See `Task`; images are encoded one by one, as each is timed."""
        return [self._measured(item, one) for item, one in zip(items, group, strict=True)]

    def _measured(self, item: Input, one: Loaded[Image.Image]) -> Made:
        image, codec = one.value, self.codec
        if not self.is_warm:  # the networks run once before the clock starts
            codec.decode(codec.encode(image.crop((0, 0, 64, 64))))
            self.is_warm = True
        start = time.perf_counter()
        [encoded] = self.encoding.encode([image])
        encoded_at = time.perf_counter()
        decoded = codec.decode(encoded.blob, max_pixels=sys.maxsize)
        decoded_at = time.perf_counter()
        figures = self._figures(item, one, decoded, encoded)
        figures = replace(figures, encode_s=encoded_at - start, decode_s=decoded_at - encoded_at)
        data, lost = b"", list[str]()
        if item.target:
            data, lost = self.image_bytes(item, decoded, Extras(), figures.decoder)
        columns = self.settings.run.preview
        return Made(
            data,
            image.width,
            image.height,
            one.n_bytes,
            len(encoded.blob),
            quality=figures.quality,
            figures=figures,
            note=notes.joined(one.note, encoded.note, encoded.warning, *lost),
            preview=preview.side_by_side(image, decoded, columns) if columns else None,
        )

    def _figures(
        self, item: Input, one: Loaded[Image.Image], decoded: Image.Image, encoded: Encoded
    ) -> Roundtrip:
        from dynenc import metrics
        from dynenc.imaging import tensors

        image, options, n_bytes = one.value, self.settings.encode, len(encoded.blob)
        width, height = image.size
        pair = [tensors.to_tensor(pixels.to_rgb(each)) for each in (decoded, image)]
        return Roundtrip(
            image=item.source,
            width=width,
            height=height,
            encoder=self.codec.encoder_name,
            decoder=self.codec.name_of_decoder(self.codec.model),
            quality=options.goal.value if options.goal.kind == "quality" else encoded.quality,
            effort=options.effort,
            n_bytes=n_bytes,
            bpp=bitstream.bpp(n_bytes, width, height),
            ratio_raw=width * height * 3 / n_bytes,
            ratio_file=one.n_bytes / n_bytes,
            psnr_db=metrics.psnr_db(*pair),
            ms_ssim=metrics.ms_ssim(*pair),
            encode_s=0.0,
            decode_s=0.0,
        )


class Export(Task[ParsedLat]):
    """.lat files to other programs' files of latents."""

    def load(self, item: Input) -> Loaded[ParsedLat]:
        """See `Task`."""
        self.prepare(item)
        return load_lat(item, self.settings)

    def make(self, items: Sequence[Input], group: Sequence[Loaded[ParsedLat]]) -> list[Made]:
        """See `Task`."""
        made = []
        for one in group:
            file = one.value.file
            if file.model.space.name not in SPACES:
                raise OtherLatents(
                    f"the latents are those of {file.model.space.title}: decode the file"
                )
            header, n_bytes = file.header, one.n_bytes
            data, note = latent_files.write(_form(self.settings), file, whole_latents.of(file))
            if one.value.extras.alpha:
                note = notes.joined(note, "alpha is dropped")
            made.append(Made(data, header.width, header.height, n_bytes, n_bytes, note=note))
        return made

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: Settings, *, whole: bool) -> bool:
        """See `Task`; the format is the only setting."""
        form = _form(settings)
        if form in ("npz", "pt"):
            if file.read(len(containers.ZIP)) != containers.ZIP:
                raise LatentsError("no zip archive")
            return True
        outline = containers.outline(file)
        return (caches.recognise(outline, "the output").layout.form or outline.form) == form


def _form(settings: Settings) -> str:
    """The form of exported latents; raises LatentsError if their suffix stands for none."""
    output = settings.output
    found = (form for form, suffix in LATENT_FORMS.items() if suffix == output.suffix.lower())
    if not (form := output.form or next(found, "")):
        raise LatentsError(
            f"no file of latents ends in {output.suffix!r}: use {', '.join(LATENT_SUFFIXES)}"
        )
    return form


class Import(Task[ImportedLatents]):
    """Other programs' files of latents to .lat files."""

    def load(self, item: Input) -> Loaded[ImportedLatents]:
        """See `Task`."""
        self.prepare(item)
        blob = inputs.read_foreign(item.source) if item.data is None else item.data
        options = self.settings.encode
        space = SPACES.get(options.space)
        foreign = latent_files.read(blob, names.shown(item.source), options.scale, space)
        return Loaded(foreign, len(blob), tuple(foreign.latents.shape[-2:]), foreign.note)

    def make(self, items: Sequence[Input], group: Sequence[Loaded[ImportedLatents]]) -> list[Made]:
        """See `Task`."""
        made = []
        for one in group:
            foreign = one.value
            size = foreign.width, foreign.height
            file = self.file(foreign, foreign.latents, size)
            file = replace(file, chunks=foreign.chunks(partial(self.nested, foreign)))
            blob = file.to_bytes()
            n_bytes = one.n_bytes
            made.append(Made(blob, *size, n_bytes, len(blob), quality=file.quality, note=one.note))
        return made

    def file(self, foreign: ImportedLatents, latents: Floats, size: tuple[int, int]) -> LatFile:
        """The .lat file of some of the latents of a foreign file, of an image of this size."""
        options, model = self.settings.encode, foreign.model
        if options.keep_step and foreign.step_q is not None:
            return LatFile.of_quantized(latents, size, foreign.step_q, model)
        step_q = quantize.quality_to_step(options.goal.value, has_trellis=model.has_trellis)
        return LatFile.of_latents(latents, size, step_q, model)

    def nested(self, foreign: ImportedLatents, latents: Floats) -> bytes:
        """The .lat file of further latents of a foreign file."""
        height, width = (min(PATCH * side, bitstream.MAX_SIDE) for side in latents.shape[-2:])
        return self.file(foreign, latents, (width, height)).to_bytes()

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: Settings, *, whole: bool) -> bool:
        """See `Task`."""
        lat, options = ExistingLat.open(file, n_bytes, whole=whole), settings.encode
        model = model_of(lat.header)
        if options.space and model.space.name != options.space:
            return False
        if whole and options.scale is not None and not _has_scale(lat.parse(), options.scale):
            return False
        has_kept_step = options.keep_step and model not in registry.FOREIGN.values()
        return has_kept_step or lat.meets(options.goal)


def _has_scale(file: LatFile, scale: float) -> bool:
    """Whether a file says that its latents were imported from a file in that scale."""
    kept = beside.of_chunks(file.chunks)
    return kept is not None and kept.scaling[0] == scale


TASKS: dict[records.Task, type[Task[Any]]] = {
    "encode": Encode,
    "decode": Decode,
    "roundtrip": RoundtripTask,
    "export": Export,
    "import": Import,
}

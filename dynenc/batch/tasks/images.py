"""Tasks whose inputs or outputs are images: encode and decode."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO, cast

from PIL import Image

from dynenc import registry
from dynenc.batch import inputs
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks.base import Item, LoadedItem, Output, T, Task
from dynenc.batch.tasks.existing_lat import ExistingLat
from dynenc.batch.tasks.load import ParsedLat, load_image, load_lat
from dynenc.batch.tasks.torch_use import needs_torch
from dynenc.codec import Codec
from dynenc.coding.rate_control import OnStep
from dynenc.encoding import Encoded
from dynenc.errors import ImageError
from dynenc.imaging import detail, formats, notes, save
from dynenc.imaging.extras import Extras
from dynenc.io import storage
from dynenc.io.names import suffix_of
from dynenc.io.storage import Readable
from dynenc.latent_space import SD1, LatentSpace
from dynenc.networks.decoder_choice import choose_decoder, possible_decoders


class CodecTask(Task[T]):
    """A task that encodes or decodes images."""

    def __init__(self, settings: ConversionSettings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        options = settings.codec
        decoder = options.tune_for if settings.task == "encode" else options.decoder
        self.codec = Codec(options.encoder, decoder, options.device)

    @property
    def device(self) -> str:
        """See `Task`."""
        return self.codec.device.type if needs_torch(self.settings) else "cpu"


class EncodeTask(CodecTask[Image.Image]):
    """Images to .lat files."""

    def load(self, item: Item) -> LoadedItem[Image.Image]:
        """See `Task`."""
        self.prepare(item)
        return load_image(item, self.settings)

    def make(self, items: Sequence[Item], group: Sequence[LoadedItem[Image.Image]]) -> list[Output]:
        """See `Task`."""
        images = [loaded.value for loaded in group]
        return [
            Output(
                encoded.blob,
                size=loaded.value.size,
                n_bytes_in=loaded.n_bytes,
                n_bytes_lat=len(encoded.blob),
                quality=encoded.quality,
                note=notes.joined(loaded.note, encoded.note, encoded.warning),
            )
            for encoded, loaded in zip(self.encode(images), group, strict=True)
        ]

    def encode(self, images: Sequence[Image.Image]) -> list[Encoded]:
        """The .lat files of images of equal shape."""
        return self.codec.encode_batch(images, self.settings.encode, self.on_step)

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: ConversionSettings, *, whole: bool) -> bool:
        """See `Task`."""
        lat = ExistingLat.open(file, n_bytes, whole=whole)
        same_encoder = lat.header.model_id == registry.encoder_model(settings.codec.encoder).number
        return (
            same_encoder
            and lat.meets(settings.encode.goal)
            and lat.may_have(settings.encode.detail)
        )


class ImageOutputTask(CodecTask[T]):
    """A task whose outputs are images."""

    def prepare(self, item: Item) -> None:
        """Also refuse names without the suffix of an image format."""
        if item.target and not item.member:
            save.image_format(self.format_name(item))
        super().prepare(item)

    def format_name(self, item: Item) -> str:
        """The name that decides the format; a stream, or a file without suffix, gets one here."""
        if not item.member and not suffix_of(item.target):
            return item.target + self.settings.output.suffix
        return item.name

    def image_bytes(
        self, item: Item, image: Image.Image, extras: Extras, decoder_name: str
    ) -> tuple[bytes, list[str]]:
        """The bytes of an image file that names its decoder, and notes on what is lost."""
        with notes.collected() as lost:
            name, view = self.format_name(item), self.settings.view
            data = save.image_bytes(image, extras, name, decoder_name, view)
        return data, lost

    def announce_decoder(self, space: LatentSpace = SD1) -> None:
        """Tell the user which decoder "auto" selected for latents of a space."""
        if self.settings.codec.decoder == "auto":
            choice = choose_decoder("auto", space, self.settings.codec.device)
            self.note = f"decoder: {choice.name}, {choice.note}"

    @staticmethod
    def matches(file: Readable, n_bytes: int, settings: ConversionSettings, *, whole: bool) -> bool:
        """See `Task`. With `whole`, an image that names no decoder was not made by dynenc."""
        if isinstance(file, io.IOBase) and file.seekable():
            seekable = cast(BinaryIO, file)
        else:  # a member of a shard
            data = storage.read_at_most(file, inputs.MAX_IMAGE_BYTES, "the output")
            seekable = io.BytesIO(data)
        made_by = formats.open_file(seekable, "the output").getexif().get(save.SOFTWARE)
        if whole and not str(made_by).startswith("dynenc"):
            raise ImageError("the output does not say that dynenc decoded it")
        allowed = possible_decoders(settings.codec.decoder, settings.codec.device)
        return any(made_by == save.software(name, settings.view) for name in allowed)


class DecodeTask(ImageOutputTask[ParsedLat]):
    """.lat files to images."""

    def __init__(self, settings: ConversionSettings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        self.announce_decoder()

    def load(self, item: Item) -> LoadedItem[ParsedLat]:
        """See `Task`."""
        self.prepare(item)
        loaded = load_lat(item, self.settings)
        header = loaded.value.file.header
        self.settings.view.within(header.size)
        return loaded

    def make(self, items: Sequence[Item], group: Sequence[LoadedItem[ParsedLat]]) -> list[Output]:
        """See `Task`."""
        view, files = self.settings.view, [loaded.value.file for loaded in group]
        images = self.codec.decode_latents(files, view)
        if all(detail.is_whole(file) for file in files):  # nothing was decoded
            options = self.settings.codec
            decoder_name = next(possible_decoders(options.decoder, options.device))
        else:
            decoder_name = self.codec.name_of_decoder(files[0].model)
        outputs = []
        for item, image, loaded in zip(items, images, group, strict=True):
            data, lost = self.image_bytes(item, image, loaded.value.extras, decoder_name)
            header = loaded.value.file.header
            output = Output(
                data,
                size=image.size,
                n_bytes_in=loaded.n_bytes,
                n_bytes_lat=loaded.n_bytes,
                coded_size=header.size,
                note=notes.joined(loaded.note, *lost),
            )
            outputs.append(output)
        return outputs

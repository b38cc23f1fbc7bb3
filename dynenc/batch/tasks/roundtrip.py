"""The task that encodes and decodes images in memory, and measures the result."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from PIL import Image

from dynenc.batch.results import RoundtripFigures
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks.base import Item, LoadedItem, Output
from dynenc.batch.tasks.images import EncodeTask, ImageOutputTask
from dynenc.batch.tasks.load import load_image
from dynenc.coding import bitstream
from dynenc.coding.rate_control import OnStep
from dynenc.encoding import Encoded
from dynenc.imaging import notes, pixels, preview
from dynenc.imaging.extras import Extras


class RoundtripTask(ImageOutputTask[Image.Image]):
    """Images to images through .lat files in memory, with measurements."""

    def __init__(self, settings: ConversionSettings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        self.encoding = EncodeTask(settings, on_step)
        self.encoding.codec = self.codec  # networks are loaded once
        self.is_warm = False
        self.announce_decoder(self.codec.model.space)

    def load(self, item: Item) -> LoadedItem[Image.Image]:
        """See `Task`."""
        self.prepare(item)
        return load_image(item, self.settings)

    def make(self, items: Sequence[Item], group: Sequence[LoadedItem[Image.Image]]) -> list[Output]:
        """See `Task`; images are encoded one by one, as each is timed."""
        return [self._measured(item, loaded) for item, loaded in zip(items, group, strict=True)]

    def _measured(self, item: Item, loaded: LoadedItem[Image.Image]) -> Output:
        image, codec = loaded.value, self.codec
        if not self.is_warm:  # the networks run once before the clock starts
            codec.decode(codec.encode(image.crop((0, 0, 64, 64))))
            self.is_warm = True
        start = time.perf_counter()
        [encoded] = self.encoding.encode([image])
        encoded_at = time.perf_counter()
        decoded = codec.decode(encoded.blob, max_pixels=sys.maxsize)
        decoded_at = time.perf_counter()
        seconds = encoded_at - start, decoded_at - encoded_at
        figures = self._figures(item, loaded, decoded, encoded, seconds)
        data, lost = b"", list[str]()
        if item.target:
            data, lost = self.image_bytes(item, decoded, Extras(), figures.decoder)
        columns = self.settings.run.preview
        return Output(
            data,
            size=image.size,
            n_bytes_in=loaded.n_bytes,
            n_bytes_lat=len(encoded.blob),
            quality=figures.quality,
            figures=figures,
            note=notes.joined(loaded.note, encoded.note, encoded.warning, *lost),
            preview=preview.side_by_side(image, decoded, columns) if columns else None,
        )

    def _figures(
        self,
        item: Item,
        loaded: LoadedItem[Image.Image],
        decoded: Image.Image,
        encoded: Encoded,
        seconds: tuple[float, float],
    ) -> RoundtripFigures:
        """The measurements. `seconds`: of encoding and of decoding."""
        from dynenc import metrics
        from dynenc.imaging import tensors

        image, options, n_bytes = loaded.value, self.settings.encode, len(encoded.blob)
        width, height = image.size
        pair = [tensors.to_tensor(pixels.to_rgb(each)) for each in (decoded, image)]
        encode_s, decode_s = seconds
        return RoundtripFigures(
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
            ratio_file=loaded.n_bytes / n_bytes,
            psnr_db=metrics.psnr_db(*pair),
            ms_ssim=metrics.ms_ssim(*pair),
            encode_s=encode_s,
            decode_s=decode_s,
        )

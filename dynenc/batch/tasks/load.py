"""Read and parse inputs: images and .lat files."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from dynenc.batch import inputs
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks.base import Item, LoadedItem
from dynenc.coding.lat_file import LatFile, read_bytes
from dynenc.imaging import extras, notes
from dynenc.imaging.extras import Extras
from dynenc.imaging.read import open_image
from dynenc.io import names, storage
from dynenc.latent_space import PATCH, ceil_div


@dataclass(frozen=True, slots=True)
class ParsedLat:
    """A .lat file and the alpha, metadata and detail of its image."""

    file: LatFile
    extras: Extras


def load_lat(item: Item, settings: ConversionSettings) -> LoadedItem[ParsedLat]:
    """Read and parse a .lat file. Raises: BitstreamError."""
    blob = read_bytes(item.source) if item.data is None else item.data
    file = LatFile.parse(blob, max_pixels=settings.input.max_pixels)
    height, width = file.symbols.shape[-2:]
    shape = PATCH * height, PATCH * width, file.header.model_id
    found = extras.from_chunks(file.chunks, file.size)
    return LoadedItem(ParsedLat(file, found), len(blob), shape)


def load_image(item: Item, settings: ConversionSettings) -> LoadedItem[Image.Image]:
    """Read an image; its note says what is lost of it. Raises: ImageError."""
    blob = item.data
    if blob is None and storage.is_sequential(item.source):
        blob = inputs.read_image(item.source)
    with notes.collected() as lost:
        image = open_image(
            item.source if blob is None else blob,
            name=names.display_name(item.source),
            max_pixels=settings.input.max_pixels,
            keep_metadata=settings.encode.keep_metadata,
            truncated=settings.input.truncated,
        )
    width, height = (ceil_div(side, PATCH) * PATCH for side in image.size)
    n_bytes = inputs.size_of(item.source) if blob is None else len(blob)
    return LoadedItem(image, n_bytes, (height, width), note=notes.joined(*lost))

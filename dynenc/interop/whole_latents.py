"""Latents of the whole image: those beneath a detail layer are encoded again."""

from functools import cache

import numpy as np

from dynenc.codec import Codec
from dynenc.coding.lat_file import LatFile
from dynenc.imaging import detail
from dynenc.latent_space import PATCH
from dynenc.native.kernel import TILE, Floats


def full_image_latents(file: LatFile) -> Floats:
    """The scaled latents [C, h, w] of the whole image.

    Latents beneath a detail layer are encoded again from the decoded image, with the encoder that
    wrote the file; all others are those of the file.
    Raises: BitstreamError, WeightsError.
    """
    layer = detail.from_chunks(file.chunks, file.size)
    if layer is None:
        return file.latents
    codec = _codec(file.model.name)
    [decoded] = codec.decode_latents([file])
    [found] = codec.latents([layer.composite_over(decoded)])
    side = TILE // PATCH
    height, width = file.latents.shape[-2:]
    beneath = layer.mask.repeat(side, 0).repeat(side, 1)[:height, :width]
    whole: Floats = np.where(beneath, found, file.latents)
    return whole


@cache
def _codec(encoder: str) -> Codec:
    return Codec(encoder, "embedded", "cpu")

"""The decoders of dynenc in integer arithmetic, in the native kernel: .lat files -> images.

Never imports torch.
"""

import logging
from functools import cache

from PIL import Image

from dynenc import registry, runtime
from dynenc.coding.lat_file import LatFile
from dynenc.latent_space import PATCH
from dynenc.native.decoder import PixelDecoder
from dynenc.native.kernel import Bytes
from dynenc.networks import integer_tensors
from dynenc.view import WHOLE, Region, View

logger = logging.getLogger(__name__)


@cache
def load(name: str) -> PixelDecoder:
    """The decoder that is a model of dynenc, with 8-bit weights; raises WeightsError."""
    model = registry.MODELS[name]
    logger.debug("decoder: %s, in integers on the CPU", name)
    return integer_tensors.load(integer_tensors.read(model), integer_tensors.Sizes.of(model))


def decode(
    file: LatFile, name: str, view: View = WHOLE, needed: Region | None = None
) -> Image.Image:
    """Decode the latents of a file.

    At 1/4 and 1/8 of the size, the thumbnail decoder takes the place of `embedded`; 1/8 is its
    output averaged 2x2. All other scales average the pixels of the full size.

    Args:
        name: of a decoder of their space that has integers.
        needed: the region in px of the full image to decode; the rest is black. None: all of it.
    Returns: RGB, of the size of the view.
    Raises: WeightsError.
    """
    size, divisor = file.size, view.divisor
    wanted = view.scaled(size)
    image = Image.new("RGB", wanted[2:])
    part = wanted.common(View(needed, divisor).scaled(size)) if needed else wanted
    if part.is_empty:
        return image
    decoder = load("thumbnail" if divisor >= 4 and name == "embedded" else name)
    means = View(divisor=divisor * decoder.side // PATCH)  # of the decoder's pixels
    whole = View(divisor=divisor // means.divisor).scaled(size)
    region = Region(*(means.divisor * side for side in part)).common(whole)

    def paste(strip: Bytes, left: int, top: int) -> None:
        pixels = means.reduced(Image.fromarray(strip))
        corner = part.left - wanted.left, part.top - wanted.top
        place = corner[0] + left // means.divisor, corner[1] + top // means.divisor
        image.paste(pixels, place)

    threads = runtime.native_threads(region.width * region.height * (PATCH // decoder.side))
    latents, step_q = file.fixed_point_latents(), file.header.step_q
    decoder.decode_strips(latents, region, paste, threads, step_q)
    return image

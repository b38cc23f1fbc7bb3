"""The integer decoder of pictures in the native kernel: latents -> pixels, the same everywhere."""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynenc.errors import WeightsError
from dynenc.native.kernel import VARIABLE, Bytes, aligned, library, path_of, pointer

UNIT = 2048  # integers of a latent of 1.0
LIMIT = 32767  # their largest magnitude
PATCH = 8  # pixels along a latent
LARGEST_WIDTH = 8192  # pixels that are decoded side by side, which bounds the memory
FEWEST_ROWS = 64  # pixels that a thread takes
BAD_SHAPE, INEXACT = -5, -6

Latents = npt.NDArray[np.int16]


class Call(ctypes.Structure):
    """`dynenc_pixels_call` of dynenc.h."""

    _fields_ = (
        ("decoder", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("latents", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class PixelDecoder:
    """The tables of an integer decoder, checked and packed; shared by all threads.

    Args:
        sizes: widths and blocks at 1/8, 1/4 and 1/2 of the size of the picture.
        numbers: what is no weight, layer by layer; see `dynenc_decoder_size`.
        weights: int8, [outputs, taps, channels] of each product.
    Raises: WeightsError if they do not make a decoder.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        numbers: Sequence[npt.NDArray[np.integer]],
        weights: Sequence[npt.NDArray[np.integer]],
    ) -> None:
        flat = np.concatenate([np.ravel(part) for part in (np.array(sizes), *numbers)])
        flat = flat.astype(np.int32)
        products = np.concatenate([np.ravel(part) for part in weights])
        lengths = ctypes.c_int64(len(flat)), ctypes.c_int64(len(products))
        tensors = pointer(flat), lengths[0], pointer(products), lengths[1]
        size = _checked(library().dynenc_decoder_size(*tensors))
        self._memory = aligned(size)
        init = library().dynenc_decoder_init
        _checked(init(pointer(self._memory), ctypes.c_int64(size), *tensors))

    def decode(self, latents: Latents, region: Region, threads: int = 1) -> Bytes:
        """The pixels of a region: latents [4, h, w] in 1/2048 -> uint8 [height, width, 3].

        They are those of the whole picture, and the same with any number of threads.
        """
        latents = np.ascontiguousarray(latents)
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        parts = [
            Region(top, left, bottom - top, right - left)
            for top, bottom in _split(region.height, _bands(region.height, threads))
            for left, right in _split(region.width, -(-region.width // LARGEST_WIDTH))
        ]

        def run(part: Region) -> None:
            rows = slice(part.top, part.top + part.height)
            to = pixels[rows, part.left : part.left + part.width]
            self._decode_part(latents, region, part, to)

        if len(parts) == 1 or threads == 1:
            for part in parts:
                run(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, parts))
        return pixels

    def _decode_part(self, latents: Latents, region: Region, part: Region, to: Bytes) -> None:
        top, left = region.top + part.top, region.left + part.left
        place = top, left, part.height, part.width
        path = path_of(os.environ.get(VARIABLE, ""))
        size = path, *latents.shape[1:], *place
        arrays = latents.ctypes.data, to.ctypes.data, to.strides[0]
        call = Call(self._memory.ctypes.data, *size, *arrays)
        call.workspace_size = _checked(library().dynenc_pixels_workspace(ctypes.byref(call)))
        workspace = aligned(call.workspace_size)
        call.workspace = workspace.ctypes.data
        _checked(library().dynenc_pixels(ctypes.byref(call)))


def to_integers(latents: npt.NDArray[np.floating]) -> Latents:
    """Latents in SD scale -> in 1/2048, rounded and saturated: int16."""
    whole: Latents = np.rint(latents * UNIT).clip(-LIMIT, LIMIT).astype(np.int16)
    return whole


def _bands(height: int, threads: int) -> int:
    return max(1, min(threads, height // FEWEST_ROWS))


def _split(length: int, count: int) -> list[tuple[int, int]]:
    """Parts of a side, which begin at whole latents but for the first."""
    edges = [i * length // count // PATCH * PATCH for i in range(count)]
    return list(zip(edges, [*edges[1:], length], strict=True))


def _checked(result: int) -> int:
    """What a function of the kernel returns, if it is no error."""
    if result == BAD_SHAPE:
        raise WeightsError("the decoder's tensors do not fit each other")
    if result == INEXACT:
        raise WeightsError("the decoder's weights exceed exact arithmetic")
    if result < 0:
        raise ValueError(f"the native kernel refuses its arguments ({result})")
    return result

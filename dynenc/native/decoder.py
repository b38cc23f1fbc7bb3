"""The integer decoder of images in the native kernel: latents -> pixels, the same everywhere."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynenc import runtime
from dynenc.errors import WeightsError
from dynenc.latent_space import PATCH, ceil_div
from dynenc.native.kernel import (
    Bytes,
    Memory,
    checked,
    library,
    pointer,
    selected_instruction_set,
    workspace,
)
from dynenc.view import Region

UNIT = 2048  # integers of a latent of 1.0
LIMIT = 32767  # their largest magnitude
LARGEST_WIDTH = 4096  # pixels that are decoded side by side, which bounds the memory
FEWEST_ROWS = 64  # that a thread takes
STRIP = 2**19  # pixels that are decoded at once by a thread, of an image that is taken in strips
FAULTS = {  # what an error code of the decoder's functions means: dynenc.h
    -5: WeightsError("the decoder's tensors do not fit each other"),
    -6: WeightsError("the decoder's weights exceed exact arithmetic"),
}

Latents = npt.NDArray[np.int16]
OnStrip = Callable[[Bytes, int, int], None]  # pixels [rows, columns, 3], and their left and top


class Call(ctypes.Structure):
    """`dynenc_pixels_call` of dynenc.h."""

    _fields_ = (
        ("decoder", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("step_q", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("done", ctypes.c_int32),
        ("room", ctypes.c_int32),
        ("latents", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The tensors of a decoder in rows, as `dynenc_decoder_init` takes them."""

    numbers: npt.NDArray[np.int32]
    weights: npt.NDArray[np.int8]

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        numbers: Sequence[npt.NDArray[np.integer]],
        weights: Sequence[npt.NDArray[np.integer]],
    ) -> "Packed":
        """Join tensors.

        Args:
            sizes: the header of `dynenc_decoder_size`.
            numbers: what is no weight, layer by layer; see `dynenc_decoder_size`.
            weights: int8, [outputs, taps, channels] of each product.
        """
        flat = np.concatenate([np.ravel(part) for part in (np.array(sizes), *numbers)])
        products = np.concatenate([np.ravel(part) for part in weights])
        return cls(flat.astype(np.int32), products.astype(np.int8))


class PixelDecoder:
    """The tables of an integer decoder, checked and packed; shared by all threads.

    Args:
        side: pixels for a latent, in one dimension; 2 for each size at which it has blocks.
    Raises: WeightsError if the tensors do not make a decoder.
    """

    def __init__(self, packed: Packed, side: int = PATCH) -> None:
        self.side = side
        self.channels = int(packed.numbers[0])  # of the latents
        numbers, weights = packed.numbers, packed.weights
        tensors = pointer(numbers), len(numbers), pointer(weights), len(weights)
        size = checked(library().dynenc_decoder_size(*tensors), FAULTS)
        self._memory = Memory(size)
        init = library().dynenc_decoder_init
        checked(init(self._memory.address, size, *tensors), FAULTS)

    def decode(self, latents: Latents, region: Region, threads: int = 1, step_q: int = 0) -> Bytes:
        """The pixels of a region: those of the whole image, with any number of threads.

        Args:
            latents: [C, h, w] int16, in 1/2048 latent unit.
            region: of the image, whose sides are h and w times `side`.
            step_q: quantiser step of the latents in 1/1024; 0: they were not quantised.
        Returns: [height, width, 3] uint8.
        Raises: ValueError for another number of channels.
        """
        pixels = np.empty((region.height, region.width, 3), np.uint8)

        def paste(strip: Bytes, left: int, top: int) -> None:
            rows, columns, _ = strip.shape
            pixels[top : top + rows, left : left + columns] = strip

        self.decode_strips(latents, region, paste, threads, step_q)
        return pixels

    def decode_strips(
        self,
        latents: Latents,
        region: Region,
        on_strip: OnStrip,
        threads: int = 1,
        step_q: int = 0,
    ) -> None:
        """As `decode`, but pass the pixels on in strips, which bounds the memory.

        Args:
            on_strip: called with each strip, which changes after it returns, and its corner in the
                region, a multiple of `side`. The calls come from all threads, and must not call
                the kernel.
        """
        latents = np.ascontiguousarray(latents)
        if len(latents) != self.channels:
            raise ValueError(f"latents have {len(latents)} channels, not {self.channels}")
        parts = [
            Region(left, top, right - left, bottom - top)
            for top, bottom in _split(region.height, min(threads, region.height // FEWEST_ROWS))
            for left, right in _split(region.width, ceil_div(region.width, LARGEST_WIDTH))
        ]

        def run(part: Region) -> None:
            place = part._replace(left=region.left + part.left, top=region.top + part.top)
            for strip, done in self._strips(latents, place, step_q):
                on_strip(strip, part.left, part.top + done)

        runtime.in_threads(run, parts, threads)

    def _strips(self, latents: Latents, place: Region, step_q: int) -> Iterator[tuple[Bytes, int]]:
        """The strips of a part of the image, each with the number of rows above it."""
        height, width = place.height, place.width
        room = min(height, max(2, STRIP // width // self.side) * self.side)
        strip = np.empty((room, width, 3), np.uint8)
        call = Call(self._memory.address, selected_instruction_set(), *latents.shape[1:])
        call.top, call.left, call.rows, call.columns = place.top, place.left, height, width
        call.step_q = step_q
        call.stride, call.latents = strip.strides[0], latents.ctypes.data
        call.workspace_size = checked(library().dynenc_pixels_workspace(ctypes.byref(call)), FAULTS)
        memory = workspace(call.workspace_size)
        call.workspace = memory.address
        done = 0  # rows passed on; those decoded after them are at the start of the strip
        while done < height:
            call.room = room - (call.done - done)
            call.pixels = strip[call.done - done :].ctypes.data
            checked(library().dynenc_pixels(ctypes.byref(call)), FAULTS)
            end = call.done if call.done == height else call.done // self.side * self.side
            yield strip[: end - done], done
            strip[: call.done - end] = strip[end - done : call.done - done].copy()
            done = end


def to_integers(latents: npt.NDArray[np.floating]) -> Latents:
    """Latents, scaled -> in 1/2048, rounded and saturated: int16."""
    whole: Latents = np.rint(latents * UNIT).clip(-LIMIT, LIMIT).astype(np.int16)
    return whole


def _split(length: int, count: int) -> list[tuple[int, int]]:
    """Split a side into parts; all but the first begin at a whole latent."""
    count = max(1, count)
    edges = [i * length // count // PATCH * PATCH for i in range(count)]
    return list(zip(edges, [*edges[1:], length], strict=True))

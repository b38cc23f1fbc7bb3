"""The native kernel through ctypes: coding and quantisation of latents, statistics of pixels.

Calls release the GIL, so threads code images at once. `DYNENC_SIMD` in the environment forces an
instruction set: avx512, avx2, sse2, neondot, neon or portable; all give the same bytes.
"""

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dynenc.errors import Corrupt, DynencError, WeightsError
from dynenc.latent_space import ceil_div
from dynenc.native import compile

Ints = npt.NDArray[np.int32]
Shorts = npt.NDArray[np.int16]
Symbols = npt.NDArray[np.signedinteger[Any]]  # int16 where the kernel makes them
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.uint16]

INSTRUCTION_SETS = {  # the fastest first
    **{"avx512": 3, "avx2": 2, "sse2": 1},
    **{"neondot": 5, "neon": 4, "portable": 0},
}
SIMD_VARIABLE = "DYNENC_SIMD"
ALIGNMENT = 64
MAX_SYMBOL = 32_767  # largest magnitude of a symbol
TILE = 16  # px, side of the tiles whose statistics are taken
KEPT = 2**23  # bytes of a workspace that a thread keeps for its next call, as fresh memory is slow
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
FUNCTIONS: dict[str, tuple[type, ...]] = {  # their arguments; see dynenc.h
    "has_path": (INT,),
    "coder_size": (POINTER, SIZE),
    "coder_init": (POINTER, SIZE, POINTER, SIZE),
    "workspace_size": (INT, INT, INT),
    "encode": (POINTER, POINTER, POINTER, SIZE),
    "decode": (POINTER, POINTER, SIZE, POINTER),
    "quantize": (POINTER, POINTER, ctypes.c_double, POINTER),
    "roughness": (POINTER, INT, INT, INT),
    "points": (POINTER, POINTER, POINTER),
    "integer_latents": (POINTER, POINTER, POINTER),
    "contexts": (POINTER, POINTER, POINTER, POINTER, POINTER, POINTER),
    "gradient": (POINTER, POINTER, POINTER, POINTER),
    "decoder_size": (POINTER, SIZE, POINTER, SIZE),
    "decoder_init": (POINTER, SIZE, POINTER, SIZE, POINTER, SIZE),
    "pixels_workspace": (POINTER,),
    "pixels": (POINTER,),
    "encoder_size": (INT, INT, INT),
    "encoder_init": (POINTER, SIZE, INT, INT, INT, POINTER, SIZE),
    "latents_workspace": (POINTER, INT),
    "latents": (POINTER, POINTER),
    "tiles": (POINTER, INT, INT, POINTER),
    "graphics": (POINTER, INT, INT, INT, POINTER, POINTER),
}
FAULTS: dict[int, DynencError] = {  # what an error code of the kernel means: dynenc.h
    -3: Corrupt("the payload is damaged, or does not end with the last symbol"),
    -4: Corrupt("the payload is damaged: an escape codes a residual that the table contains"),
    -5: WeightsError("the entropy coder's tensors do not fit each other"),
    -6: WeightsError("the entropy coder's weights exceed exact arithmetic"),
    -7: WeightsError("the entropy coder's contexts reach too far"),
    -8: WeightsError("the entropy coder's contexts use symbols that are not decoded yet"),
    -9: WeightsError("the entropy coder's frequencies do not sum to one"),
    -10: WeightsError("the encoder's weights are not finite, or beyond 256"),
}


class Call(ctypes.Structure):
    """`dynenc_call` of dynenc.h."""

    _fields_ = (
        ("coder", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("lattice", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("step_q", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    )


class InputImage(ctypes.Structure):
    """`dynenc_image` of dynenc.h."""

    _fields_ = (
        ("encoder", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("pixels", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    )


class Search(IntEnum):
    """`dynenc_search` of dynenc.h: what `find_graphics_tiles` looks for."""

    TEXT = 0
    EAGER = 1  # single tiles that resemble text by themselves, too
    HALVED = 2  # text in an image of half the sides, which has half the noise


@cache
def library() -> ctypes.CDLL:
    """The compiled library; in a checkout it is compiled first if a source is newer.

    Raises: DynencError if it is missing and cannot be compiled.
    """
    in_checkout = (compile.FOLDER.parents[1] / "pyproject.toml").is_file()
    try:
        if in_checkout and not compile.is_current():
            compile.build()
        found = ctypes.CDLL(str(compile.LIBRARY))
    except (compile.NoCompiler, OSError) as exc:
        hint = str(exc) if in_checkout else "reinstall dynenc"
        raise DynencError(f"{compile.LIBRARY} cannot be loaded", hint=hint) from exc
    for name, arguments in FUNCTIONS.items():
        function = getattr(found, f"dynenc_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_int64
    found.dynenc_has_path.restype, found.dynenc_roughness.restype = INT, ctypes.c_double
    return found


def available_instruction_sets() -> list[str]:
    """The instruction sets that this processor and library have, the fastest first."""
    return [name for name, number in INSTRUCTION_SETS.items() if library().dynenc_has_path(number)]


@cache
def instruction_set(name: str) -> int:
    """The number of an instruction set, or of the fastest one for ""; raises DynencError."""
    here = available_instruction_sets()
    if name and name not in here:
        raise DynencError(f"{SIMD_VARIABLE} is {name!r}", hint=f"here it may be {', '.join(here)}")
    return INSTRUCTION_SETS[name or here[0]]


def selected_instruction_set() -> int:
    """The number of the instruction set that DYNENC_SIMD names, else of the fastest."""
    return instruction_set(os.environ.get(SIMD_VARIABLE, ""))


class Memory:
    """Uninitialised memory with the alignment that the kernel needs."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._array = np.empty(size + ALIGNMENT, np.uint8)
        start = pointer(self._array)
        self.address = start + -start % ALIGNMENT

    def __reduce__(self) -> tuple[type["Memory"], tuple[int], bytes]:
        return Memory, (self.size,), ctypes.string_at(self.address, self.size)

    def __setstate__(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, self.size)


def workspace(size: int) -> Memory:
    """Scratch memory of a size in bytes, not zeroed; valid until the same thread calls again."""
    memory: Memory | None = getattr(_kept, "memory", None)
    if memory is None or memory.size < size:
        memory = Memory(size)
        if size <= KEPT:
            _kept.memory = memory
    return memory


_kept = threading.local()


def checked(result: int, faults: Mapping[int, DynencError] = FAULTS) -> int:
    """The return value of a kernel function; error codes raise, as described by `faults`."""
    if result in faults:
        fault = faults[result]
        raise type(fault)(str(fault))
    if result < 0:
        raise ValueError(f"the native kernel refuses its arguments ({result})")
    return result


def pointer(array: npt.NDArray[np.generic]) -> int:
    """Address of a contiguous array."""
    flags = array.flags
    assert flags.c_contiguous
    if flags.writeable and array.size:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))  # faster than array.ctypes
    return array.ctypes.data


def pack_tensors(
    channels: int,
    networks: Sequence[Sequence[npt.NDArray[np.integer]]],
    counts: npt.NDArray[np.integer],
    thresholds: npt.NDArray[np.integer],
) -> Ints:
    """The tensors of `Coder` in a row, as `dynenc_coder_init` takes them.

    Args:
        networks: stage by stage, in a stage channel by channel: the integer tensors neighbours
            [F, 3], hidden [H, F], middle [M, H], output [3, M + H + F] and bias [H + M + 3, 2].
        counts: [T, R].
        thresholds: [at most 256], the least numbers of the levels 1, 2, ...
    Raises: WeightsError if a number exceeds 32 bits.
    """
    sizes = [(len(n[0]), len(n[1]), len(n[2])) for n in networks]
    header = np.array([channels, *counts.shape, len(thresholds), *np.ravel(sizes)])
    parts = [header, *(tensor for network in networks for tensor in network), counts, thresholds]
    flat = np.concatenate([np.ravel(part) for part in parts])
    if max(int(flat.max()), -int(flat.min())) > np.iinfo(np.int32).max:
        raise WeightsError("the entropy coder's weights exceed exact arithmetic")
    return flat.astype(np.int32)


class Coder:
    """The tables of an entropy coder on one lattice, checked and packed; shared by all threads.

    Args:
        tensors: as `pack_tensors` returns them.
    Raises: WeightsError if they do not make an entropy coder.
    """

    def __init__(self, tensors: Ints, *, has_trellis: bool) -> None:
        given = pointer(tensors), len(tensors)
        size = checked(library().dynenc_coder_size(*given))
        self.channels, self.has_trellis = int(tensors[0]), has_trellis
        self._memory = Memory(size)
        checked(library().dynenc_coder_init(self._memory.address, size, *given))

    def encode(self, symbols: Symbols, step_q: int) -> bytes:
        """The payload of symbols [C, h, w]; ValueError if one exceeds 32767."""
        payload = np.empty(6 * symbols.size + 8, np.uint8)
        call = self._call(symbols.shape, step_q)
        length = call.run("encode", _as_int16(symbols), payload, len(payload))
        return payload[:length].tobytes()

    def decode(self, payload: bytes, height: int, width: int, step_q: int) -> Shorts:
        """The symbols [C, height, width] of a payload; Corrupt unless `encode` writes it."""
        symbols = np.empty((self.channels, height, width), np.int16)
        self._call(symbols.shape, step_q).run("decode", payload, len(payload), symbols)
        return symbols

    def quantize(self, latents: Floats, step_q: int, bit: float) -> Shorts:
        """Quantise latents to the symbols of least error and bits.

        Args:
            latents: [C, h, w] float32, scaled.
            step_q: quantiser step, 1/1024 latent unit.
            bit: squared error, in squared steps, that one bit is worth; 0: the nearest points.
        Returns: [C, h, w] int16.
        """
        return _quantize(self._call(latents.shape, step_q), latents, bit)

    def contexts(self, symbols: Symbols, step_q: int) -> tuple[Bytes, Ints, Ints, Ints]:
        """Tables, expected symbols and signs, [C, h, w], and outputs of the networks [3, C, h, w].

        See `dynenc_contexts` in dynenc.h.
        """
        tables = np.empty(symbols.shape, np.uint8)
        expected, signs = np.empty((2, *symbols.shape), np.int32)
        outputs = np.empty((3, *symbols.shape), np.int32)
        call = self._call(symbols.shape, step_q)
        call.run("contexts", _as_int16(symbols), tables, expected, signs, outputs)
        return tables, expected, signs, outputs

    def gradient(self, symbols: Symbols, by_output: Floats, step_q: int) -> Floats:
        """Backpropagate from the networks' outputs to context values.

        Args:
            by_output: [3, C, h, w], derivatives of the total bits.
        Returns: [C, h, w], derivatives by context value, 1/128 latent unit.
        """
        by_value = np.empty(symbols.shape, np.float32)
        call = self._call(symbols.shape, step_q)
        call.run(
            "gradient", _as_int16(symbols), np.ascontiguousarray(by_output, np.float32), by_value
        )
        return by_value

    def _call(self, shape: tuple[int, ...], step_q: int) -> "_Run":
        return _Run(shape, step_q, self._memory, has_trellis=self.has_trellis)


def quantize(latents: Floats, step_q: int, *, has_trellis: bool) -> Shorts:
    """Quantise latents [C, h, w] to the symbols of least squared error on a lattice: [C, h, w]."""
    return _quantize(_Run(latents.shape, step_q, None, has_trellis=has_trellis), latents, 0)


def roughness(latents: Floats) -> float:
    """Mean square of the differences of neighbours in latents [C, h, w]; 0 if there are none."""
    latents = np.ascontiguousarray(latents, np.float32)
    found = float(library().dynenc_roughness(pointer(latents), *latents.shape))
    if found < 0:
        raise ValueError(f"the native kernel refuses latents of shape {latents.shape}")
    return found


def reconstruction_points(symbols: Symbols, *, has_trellis: bool) -> Ints:
    """Reconstruction points of symbols [C, h, w] of a lattice, in half steps: [C, h, w]."""
    found = np.empty(symbols.shape, np.int32)
    call = _Run(symbols.shape, 1, None, has_trellis=has_trellis)
    call.run("points", _as_int16(symbols), found)
    return found


def integer_latents(symbols: Symbols, step_q: int, *, has_trellis: bool) -> Shorts:
    """Latents of symbols [C, h, w] of a lattice in 1/2048, saturated at 32767: [C, h, w]."""
    found = np.empty(symbols.shape, np.int16)
    call = _Run(symbols.shape, step_q, None, has_trellis=has_trellis)
    call.run("integer_latents", _as_int16(symbols), found)
    return found


def _as_int16(symbols: Symbols) -> Shorts:
    """Symbols as the kernel takes them; raises ValueError if one exceeds 16 bits."""
    if symbols.dtype != np.int16 and symbols.size and np.abs(symbols).max() > MAX_SYMBOL:
        raise ValueError(f"the native kernel refuses symbols beyond {MAX_SYMBOL}")
    return np.ascontiguousarray(symbols, np.int16)


def tile_statistics(pixels: Bytes, rows: int, divisor: int = 1) -> Counts:
    """Statistics of 16x16 tiles of an RGB image [H, W, 3]: [7, rows, ceil(W / 16)].

    Args:
        rows: tile rows to return; pixels below them may also be read.
        divisor: 2 for the tiles of the image of half the sides.
    See `dynenc_tiles` in dynenc.h.
    """
    found = np.empty((7, rows, ceil_div(pixels.shape[1], divisor * TILE)), np.uint16)
    given = with_contiguous_rows(pixels)
    call = library().dynenc_tiles
    checked(call(ctypes.byref(input_image(given)), rows, divisor, pointer(found)))
    return found


def find_graphics_tiles(statistics: Counts, search: Search) -> tuple[npt.NDArray[np.bool_], int]:
    """The tiles that hold text or graphics, [rows, columns], by `tile_statistics`.

    Returns: them, and how many others could be text in noise.
    """
    found = np.empty(statistics.shape[1:], np.bool_)
    scratch = workspace(8 * found.size)
    call = library().dynenc_graphics
    missed = call(pointer(statistics), *found.shape, search, scratch.address, pointer(found))
    return found, checked(missed)


def with_contiguous_rows(pixels: Bytes) -> Bytes:
    """Pixels [H, W, 3] with contiguous rows that do not overlap: the array itself, or a copy."""
    if pixels.strides[1:] != (3, 1) or pixels.strides[0] < 3 * pixels.shape[1]:
        return pixels.copy()
    return pixels


def input_image(pixels: Bytes, encoder: int = 0, scratch: Memory | None = None) -> InputImage:
    """The kernel's structure for pixels with contiguous rows; pixels and memory must outlive it."""
    height, width, _ = pixels.shape
    place = pointer(pixels) if pixels.flags.c_contiguous else pixels.ctypes.data
    size = height, width, place, pixels.strides[0]
    memory = (scratch.address, scratch.size) if scratch else (None, 0)
    return InputImage(encoder, selected_instruction_set(), *size, *memory)


def _quantize(call: "_Run", latents: Floats, bit: float) -> Shorts:
    symbols = np.empty(latents.shape, np.int16)
    latents = np.ascontiguousarray(latents, np.float32)
    call.run("quantize", latents, bit, symbols)
    return symbols


class _Run:
    """One call for latents of shape [C, h, w], with its scratch memory."""

    def __init__(
        self, shape: tuple[int, ...], step_q: int, coder: Memory | None, *, has_trellis: bool
    ) -> None:
        size = checked(library().dynenc_workspace_size(*shape))
        self.memory, self.coder = workspace(size), coder
        simd, memory = selected_instruction_set(), self.memory.address
        self.call = Call(coder and coder.address, simd, has_trellis, *shape, step_q, memory, size)

    def run(self, name: str, *arguments: object) -> int:
        """Call a function of the library; raises as `checked` does."""
        values = (pointer(a) if isinstance(a, np.ndarray) else a for a in arguments)
        return checked(getattr(library(), f"dynenc_{name}")(ctypes.byref(self.call), *values))

"""What a trainer's cache file holds beside the latents of a .lat file: the chunk `cach`.

A cache file may hold the latents of several sizes, of the flipped image or of a control image,
masks, sizes, crops and texts. All of it is kept: latents as .lat files of their own, which lose as
much as the image's do, and everything else as it is. The chunk is packed (see `packing`):

    length of the index (4 bytes) | index, JSON | data of the tensors, in their order
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from dynenc.coding.bitstream import Chunk
from dynenc.errors import Corrupt
from dynenc.imaging import extras
from dynenc.imaging.packing import pack, unpack
from dynenc.interop.containers import DTYPES, METADATA

TAG = extras.CACHE
MAX_BYTES = 2**28  # of the chunk, unpacked
MAX_DIMENSIONS, MAX_NAME = 32, 2**15  # of a tensor; bytes
LEAST_SCALE = 1e-3  # of latents; the inverse is the largest
LENGTH = struct.Struct("<I")
What = Literal["payload", "lat", "data"]
KINDS: tuple[What, ...] = ("payload", "lat", "data")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a cache file."""

    key: str
    dtype: str  # of containers.DTYPES
    shape: tuple[int, ...]
    what: What  # the file's own latents, those of a .lat file, or any tensor
    data: bytes = b""  # the .lat file; the values, little-endian; nothing for the file's own


@dataclass(frozen=True, slots=True)
class Beside:
    """A cache file, but for the latents of the .lat file that holds this."""

    form: str  # the program, of caches.Layout
    scaling: tuple[float, float]  # latents of the file are (raw - shift) * scale
    facts: dict[str, Any]  # texts beside the tensors; in .pt files, plain values
    parts: tuple[Part, ...]


def to_chunk(beside: Beside) -> Chunk:
    """The chunk that holds it."""
    contents = {
        "form": beside.form,
        "scaling": beside.scaling,
        "facts": beside.facts,
        "tensors": [[p.key, p.dtype, p.shape, p.what, len(p.data)] for p in beside.parts],
    }
    text = json.dumps(contents, separators=(",", ":")).encode()
    data = b"".join(part.data for part in beside.parts)
    return TAG, pack(LENGTH.pack(len(text)) + text + data)


def of_chunks(chunks: Sequence[Chunk]) -> Beside | None:
    """Undo `to_chunk`; None if there is no such chunk. Raises Corrupt."""
    found = [data for tag, data in chunks if tag == TAG]
    if not found:
        return None
    if len(found) > 1:
        raise Corrupt(f"chunk {TAG} occurs twice in the file")
    content = unpack(TAG, found[0], MAX_BYTES)
    try:
        return _parsed(content)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, struct.error) as exc:
        raise Corrupt(f"chunk {TAG} does not hold a cache: {exc}") from exc


def _parsed(content: bytes) -> Beside:
    (length,) = LENGTH.unpack_from(content)
    at = LENGTH.size + length
    contents = json.loads(content[LENGTH.size : at].decode())
    parts = []
    for key, dtype, shape, what, size in contents["tensors"]:
        data = content[at : at + size]
        shape = _shape(shape)
        needed = math.prod(shape) * int(DTYPES[dtype][2:]) if what == "data" else size
        if what not in KINDS or len(data) != size or size != needed:
            raise ValueError(f"tensor {key} is of another size")
        parts.append(Part(_name(key), dtype, shape, what, data))
        at += size
    own, names = sum(part.what == "payload" for part in parts), {part.key for part in parts}
    form, facts = contents["form"], contents["facts"]
    if at != len(content) or own != 1 or len(names) < len(parts) or ("" in names and parts[1:]):
        raise ValueError("its parts do not fit")
    if METADATA in names or not names.isdisjoint(facts):
        raise ValueError("a tensor has the name of something else")
    if not isinstance(facts, dict) or (
        form != "pt" and not all(isinstance(fact, str) for fact in facts.values())
    ):
        raise ValueError("its facts are not texts")
    scale, shift = map(float, contents["scaling"])
    if not (LEAST_SCALE < scale < 1 / LEAST_SCALE and abs(shift) < 1 / LEAST_SCALE):
        raise ValueError(f"its latents cannot be scaled by {scale} and {shift}")
    return Beside(str(form), (scale, shift), facts, tuple(parts))


def _shape(sides: Sequence[int]) -> tuple[int, ...]:
    """A shape that an array of numpy can have."""
    shape = tuple(map(index, sides))
    extent = math.prod(side for side in shape if side)  # of an empty one, numpy checks it too
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or extent > MAX_BYTES:
        raise ValueError(f"{len(shape)} sides are not those of a tensor")
    return shape


def _name(key: str) -> str:
    """The name of a tensor, which every container can hold."""
    if not isinstance(key, str) or len(key.encode()) > MAX_NAME:
        raise ValueError("a tensor has no name")
    return key

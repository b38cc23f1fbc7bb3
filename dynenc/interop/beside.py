"""What a trainer's cache file holds beside the latents of a .lat file: the chunk `cach`.

A cache file may hold the latents of several sizes, of the flipped picture or of a control image,
masks, sizes, crops and texts. All of it is kept: latents as .lat files of their own, which lose as
much as the picture's do, and everything else as it is. The chunk is packed (see `packing`):

    length of the index (4 bytes) | index, JSON | data of the tensors, in their order
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dynenc.coding.bitstream import Chunk
from dynenc.errors import Corrupt
from dynenc.imaging.packing import pack, unpack
from dynenc.interop.containers import DTYPES

TAG = "cach"
MAX_BYTES = 2**28  # of the chunk, unpacked
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
    index = {
        "form": beside.form,
        "scaling": beside.scaling,
        "facts": beside.facts,
        "tensors": [[p.key, p.dtype, p.shape, p.what, len(p.data)] for p in beside.parts],
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    data = b"".join(part.data for part in beside.parts)
    return TAG, pack(LENGTH.pack(len(text)) + text + data)


def of_chunks(chunks: Sequence[Chunk]) -> Beside | None:
    """Undo `to_chunk`; None if there is no such chunk. Raises Corrupt."""
    found = [data for tag, data in chunks if tag == TAG]
    if not found:
        return None
    if len(found) > 1:
        raise Corrupt(f"chunk {TAG} occurs twice in the file")
    try:
        return _parsed(unpack(TAG, found[0], MAX_BYTES))
    except (ValueError, TypeError, KeyError, struct.error) as exc:
        raise Corrupt(f"chunk {TAG} does not hold a cache: {exc}") from exc


def _parsed(content: bytes) -> Beside:
    (length,) = LENGTH.unpack_from(content)
    at = LENGTH.size + length
    index = json.loads(content[LENGTH.size : at].decode())
    parts = []
    for key, dtype, shape, what, size in index["tensors"]:
        data = content[at : at + size]
        needed = math.prod(shape) * int(DTYPES[dtype][2:]) if what == "data" else size
        if what not in KINDS or len(data) != size or size != needed or min(shape, default=0) < 0:
            raise ValueError(f"tensor {key} is of another size")
        parts.append(Part(str(key), dtype, tuple(map(int, shape)), what, data))
        at += size
    own = sum(part.what == "payload" for part in parts)
    if at != len(content) or own != 1 or not isinstance(index["facts"], dict):
        raise ValueError("its parts do not fit")
    scale, shift = map(float, index["scaling"])
    return Beside(str(index["form"]), (scale, shift), index["facts"], tuple(parts))

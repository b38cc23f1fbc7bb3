"""The chunk `cach`: all contents of a trainer's cache file but the latents of the .lat file.

A cache file may hold the latents of several sizes, of the flipped image or of a control image,
masks, sizes, crops and texts. All of it is kept: latents as .lat files of their own, which lose as
much as the image's do, and everything else as it is. The chunk is packed (see `packing`):

    length of the index (4 bytes) | index, JSON | data of the tensors, in their order
"""

from __future__ import annotations

import json
import math
import operator
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dynenc.coding.bitstream import Chunk, find_chunk
from dynenc.errors import Corrupt
from dynenc.imaging import extras
from dynenc.imaging.packing import pack, unpack
from dynenc.interop.containers import DTYPES, METADATA
from dynenc.interop.scaling import Scaling

TAG = extras.CACHE
MAX_CHUNK_BYTES = 2**28  # of the chunk, unpacked
MAX_DIMENSIONS, MAX_NAME = 32, 2**15  # of a tensor; bytes
LEAST_SCALE = 1e-3  # of latents; the inverse is the largest
INDEX_LENGTH = struct.Struct("<I")
TensorKind = Literal["payload", "lat", "data"]
TENSOR_KINDS: tuple[TensorKind, ...] = get_args(TensorKind)


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One tensor of a cache file."""

    key: str
    dtype: str  # of containers.DTYPES
    shape: tuple[int, ...]
    kind: TensorKind  # the file's own latents, those of another .lat file, or any tensor
    data: bytes = b""  # the .lat file; the values, little-endian; nothing for the file's own


@dataclass(frozen=True, slots=True)
class CacheContents:
    """A cache file without the latents of the .lat file that holds the chunk."""

    format_name: str  # of the program, as in recognition.Layout
    scaling: Scaling  # of the latents in the file
    metadata: dict[str, Any]  # texts; in .pt files, plain values
    tensors: tuple[CacheTensor, ...]


def to_chunk(contents: CacheContents) -> Chunk:
    """The chunk of these contents."""
    index = {
        "form": contents.format_name,
        "scaling": contents.scaling,
        "facts": contents.metadata,
        "tensors": [[t.key, t.dtype, t.shape, t.kind, len(t.data)] for t in contents.tensors],
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    data = b"".join(tensor.data for tensor in contents.tensors)
    return TAG, pack(INDEX_LENGTH.pack(len(text)) + text + data)


def from_chunks(chunks: Sequence[Chunk]) -> CacheContents | None:
    """Undo `to_chunk`; None if there is no such chunk. Raises Corrupt."""
    data = find_chunk(chunks, TAG)
    if data is None:
        return None
    content = unpack(TAG, data, MAX_CHUNK_BYTES)
    try:
        return _parsed(content)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, struct.error) as exc:
        raise Corrupt(f"chunk {TAG} does not hold a cache: {exc}") from exc


def _parsed(content: bytes) -> CacheContents:
    (length,) = INDEX_LENGTH.unpack_from(content)
    at = INDEX_LENGTH.size + length
    index = json.loads(content[INDEX_LENGTH.size : at].decode())
    tensors = []
    for key, dtype, shape, kind, size in index["tensors"]:
        data = content[at : at + size]
        shape = _shape(shape)
        needed = math.prod(shape) * int(DTYPES[dtype][2:]) if kind == "data" else size
        if kind not in TENSOR_KINDS or len(data) != size or size != needed:
            raise ValueError(f"tensor {key} is of another size")
        tensors.append(CacheTensor(_name(key), dtype, shape, kind, data))
        at += size
    n_own, names = sum(t.kind == "payload" for t in tensors), {t.key for t in tensors}
    format_name, metadata = index["form"], index["facts"]
    if n_own != 1 or len(names) < len(tensors) or ("" in names and tensors[1:]):
        raise ValueError("its tensors do not fit together")
    if at != len(content):
        raise ValueError("its length is not the sum of its tensors'")
    if METADATA in names or not names.isdisjoint(metadata):
        raise ValueError("a tensor has the name of something else")
    if not isinstance(metadata, dict) or (
        format_name != "pt" and not all(isinstance(text, str) for text in metadata.values())
    ):
        raise ValueError("its metadata are not texts")
    scale, shift = map(float, index["scaling"])
    if not (LEAST_SCALE < scale < 1 / LEAST_SCALE and abs(shift) < 1 / LEAST_SCALE):
        raise ValueError(f"its latents cannot be scaled by {scale} and {shift}")
    return CacheContents(str(format_name), Scaling(scale, shift), metadata, tuple(tensors))


def _shape(sides: Sequence[int]) -> tuple[int, ...]:
    """A shape that an array of numpy can have."""
    shape = tuple(map(operator.index, sides))
    extent = math.prod(side for side in shape if side)  # of an empty one, numpy checks it too
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or extent > MAX_CHUNK_BYTES:
        raise ValueError(f"{len(shape)} sides are not those of a tensor")
    return shape


def _name(key: str) -> str:
    """The name of a tensor, which every container can hold."""
    if not isinstance(key, str) or len(key.encode()) > MAX_NAME:
        raise ValueError("a tensor has no name")
    return key

"""The .lat container, version 1: header, payload and chunks <-> bytes. Never imports torch.

    file   = prefix | header | payload | chunks | CRC-32 of all bytes before it
    prefix = magic (4 bytes) | version (1 byte)      integers: unsigned, little-endian
    header = width (2) | height (2) | step (2) | model (1) | coder (1) | flags (1)
    chunk  = tag (4 ASCII letters) | length of data (4 bytes) | data

Without chunks, flag bit 0 is clear and the payload reaches up to the CRC. With chunks the bit is
set, the payload is preceded by its length (4 bytes), and chunks follow it up to the CRC. A reader
skips a chunk it does not know if its tag begins with a lower-case letter, and refuses the file if
it begins with a capital. Flag bit 1 says that symbols are on the trellis lattice. All other bits
are zero. docs/format.md is the specification.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import NamedTuple

from dynenc.errors import Corrupt, NotALatFile, TooLarge, UnknownModel, UnsupportedVersion

MAGIC = b"\x89LAT"  # a first byte above 127 marks the file as binary
VERSION = 1
HAS_CHUNKS, HAS_TRELLIS = 1, 2  # the flags of version 1
MAX_PIXELS = 178_956_970  # default limit, that of Pillow against decompression bombs
SUFFIX = ".lat"
MAX_SIDE = 65_535  # px
MAX_FILE_BYTES = 2**30  # of a file; MAX_PIXELS pixels take 67 MB at the very most
MAX_CHUNKS = 1024
PREFIX, LENGTH, CRC = struct.Struct("<4sB"), struct.Struct("<I"), struct.Struct("<I")
TAG = struct.Struct("<4sI")
Chunk = tuple[str, bytes]  # tag, data
DETAIL = "Detl"  # the detail layer, without which text is not legible: see imaging.detail
CRITICAL_TAGS = (DETAIL,)  # tags of chunks that readers must know, and this one knows


@dataclass(frozen=True, slots=True)
class Header:
    """One line per field, in the order on disk."""

    width: int = field(metadata={"fmt": "H"})  # px, before padding, 1..65535
    height: int = field(metadata={"fmt": "H"})  # px, before padding, 1..65535
    step_q: int = field(metadata={"fmt": "H"})  # quantiser step x 1024, 1..65535
    model_id: int = field(metadata={"fmt": "B"})  # registry.py: which model the latents are of
    coder_id: int = field(metadata={"fmt": "B"})  # registry.py: entropy coder of the payload
    flags: int = field(default=0, metadata={"fmt": "B"})  # HAS_CHUNKS, HAS_TRELLIS

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in px."""
        return self.width, self.height

    @property
    def has_trellis(self) -> bool:
        """Whether the symbols are on the trellis lattice, rather than the plain one."""
        return bool(self.flags & HAS_TRELLIS)


HEADER = struct.Struct("<" + "".join(f.metadata["fmt"] for f in fields(Header)))
IN_ORDER = attrgetter(*(f.name for f in fields(Header)))
FIXED_BYTES = PREFIX.size + HEADER.size  # bytes before the payload; with the CRC 18


def find_chunk(chunks: Sequence[Chunk], tag: str) -> bytes | None:
    """The data of the chunk with a tag, if there is one; raises Corrupt if there are several."""
    found = [data for other, data in chunks if other == tag]
    if len(found) > 1:
        raise Corrupt(f"chunk {tag} occurs twice in the file")
    return found[0] if found else None


class Parts(NamedTuple):
    """A .lat file, split."""

    header: Header
    payload: bytes
    chunks: list[Chunk]


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Bits per pixel: 8 times the whole file over the unpadded pixels."""
    return 8 * n_bytes / (width * height)


def write(header: Header, payload: bytes, chunks: Sequence[Chunk] = ()) -> bytes:
    """Serialise header, payload and chunks to the bytes of a .lat file."""
    if chunks:
        header = replace(header, flags=header.flags | HAS_CHUNKS)
        packed = [TAG.pack(tag.encode(), len(data)) + data for tag, data in chunks]
        payload = LENGTH.pack(len(payload)) + payload + b"".join(packed)
    body = PREFIX.pack(MAGIC, VERSION) + HEADER.pack(*IN_ORDER(header)) + payload
    return body + CRC.pack(zlib.crc32(body))


def read(blob: bytes, max_pixels: int = MAX_PIXELS) -> Parts:
    """Split a .lat file into header, payload and chunks, which are not decoded.

    Args:
        blob: the whole file.
        max_pixels: refuse images of more pixels; checked before anything is allocated.
    Raises: BitstreamError and nothing else, whatever the bytes.
    """
    _check_prefix(blob, FIXED_BYTES + CRC.size)
    if CRC.pack(zlib.crc32(blob[: -CRC.size])) != blob[-CRC.size :]:
        raise Corrupt("the checksum does not match: the file is damaged or cut short")
    header = _header(blob, max_pixels)
    rest = blob[FIXED_BYTES : -CRC.size]
    return Parts(header, *(_split(rest) if header.flags & HAS_CHUNKS else (rest, [])))


def read_header(start: bytes) -> Header:
    """Parse the header of a .lat file from its first FIXED_BYTES bytes; the rest is not checked.

    Raises: BitstreamError.
    """
    _check_prefix(start, FIXED_BYTES)
    return _header(start, MAX_SIDE**2)


def _check_prefix(blob: bytes, least: int) -> None:
    if not blob.startswith(MAGIC):
        raise NotALatFile("this is not a .lat file: it does not begin with the .lat signature")
    if len(blob) < least:
        raise Corrupt(f"the file is cut short: {len(blob)} bytes, at least {least} needed")
    if (version := PREFIX.unpack_from(blob)[1]) != VERSION:
        raise UnsupportedVersion(
            f"the file has format version {version} and this dynenc reads {VERSION}: update dynenc"
        )


def _header(blob: bytes, max_pixels: int) -> Header:
    header = Header(*HEADER.unpack_from(blob, PREFIX.size))
    if not (header.width and header.height and header.step_q):
        raise Corrupt("the header has a zero width, height or step")
    if header.width * header.height > max_pixels:
        raise TooLarge(
            f"the file declares {header.width}x{header.height} pixels, the limit is {max_pixels}",
            hint="raise --max-pixels if you trust it",
        )
    if header.flags & ~(HAS_CHUNKS | HAS_TRELLIS):
        raise Corrupt(f"the header holds unknown flags {header.flags:#x}")
    return header


def _split(rest: bytes) -> tuple[bytes, list[Chunk]]:
    """The payload and chunks of a file with chunks; each is complete, and known or skippable."""
    if len(rest) < LENGTH.size:
        raise Corrupt("the payload's length is missing")
    start = LENGTH.size
    end = position = start + LENGTH.unpack_from(rest)[0]
    chunks: list[Chunk] = []
    while position < len(rest):
        if len(chunks) == MAX_CHUNKS:
            raise Corrupt(f"the file has more than {MAX_CHUNKS} chunks")
        if position + TAG.size > len(rest):
            raise Corrupt("the file ends within a chunk")
        tag, length = TAG.unpack_from(rest, position)
        if not tag.isalpha():
            raise Corrupt("a chunk's tag is not made of letters")
        if tag[:1].isupper() and tag.decode() not in CRITICAL_TAGS:
            raise UnknownModel(f"the file needs chunk {tag.decode()}, unknown here: update dynenc")
        position += TAG.size
        chunks.append((tag.decode(), rest[position : position + length]))
        position += length
    if position != len(rest):
        raise Corrupt("a length in the file points past its end")
    return rest[start:end], chunks

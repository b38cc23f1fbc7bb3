"""PNG chunks that Pillow refuses or overlooks."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NEEDED = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs", b"eXIf"}  # and critical chunks
UNDERSTOOD = NEEDED | {
    b"iCCP",
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"acTL",
    b"fcTL",
    b"fdAT",
}  # used or kept
MAX_PROFILE = 2**24  # bytes
GREY_BITS = {"L;2": 2, "L;4": 4}  # raw modes whose transparent value Pillow does not scale


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset and length of each chunk of a PNG file, up to its end."""
    position = len(SIGNATURE)
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, position, length
        position += 12 + length


def is_png(file: BinaryIO) -> bool:
    """Whether a file starts like a PNG file."""
    file.seek(0)
    return file.read(len(SIGNATURE)) == SIGNATURE


def data_of(file: BinaryIO, wanted: bytes) -> bytes:
    """The data of the first chunk of a type before the pixels, b"" if there is none."""
    for kind, position, length in chunks(file):
        if kind == wanted:
            file.seek(position + 8)
            return file.read(length)
        if kind == b"IDAT":
            break
    return b""


def without_metadata(file: BinaryIO) -> tuple[BinaryIO, bytes]:
    """A PNG file without its texts, profile and unknown chunks, and the profile separately.

    Pillow refuses a file if one of these is damaged or exceeds a limit.
    """
    out = io.BytesIO()
    out.write(SIGNATURE)
    for kind, position, length in chunks(file):
        if not kind[:1].islower() or kind in NEEDED:
            file.seek(position)
            out.write(file.read(12 + length))
    packed = data_of(file, b"iCCP").partition(b"\0")[2][1:]
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_PROFILE)
    except zlib.error:
        profile = b""
    out.seek(0)
    return out, b"" if unpacker.unconsumed_tail else profile


def transparent_value(value: object, rawmode: str) -> object:
    """The transparent value of a file in the scale of Pillow's pixels.

    Pillow keeps the upper 8 of 16 bits, so all colours that share these become transparent.
    """
    if isinstance(value, int) and rawmode in GREY_BITS:
        return value * 255 // (2 ** GREY_BITS[rawmode] - 1)
    if isinstance(value, tuple) and rawmode.startswith("RGB;16"):
        return tuple(each >> 8 for each in value)
    return value

"""The declarations of an AVIF file, checked before a decoder allocates anything.

Boxes: ISO/IEC 14496-12 and 23008-12; sequence header: AV1 Bitstream Specification, 5.5.
"""

import struct
from collections.abc import Iterator

BOX = struct.Struct(">I4s")
MOST_META = 1024  # bytes of `meta`; Pillow writes about 240
PARTS = [b"ftyp", b"meta", b"mdat"]  # of a single image
TEMPORAL_DELIMITER, SEQUENCE_HEADER = 0x12, 0x0A  # first bytes of OBUs, which have a size
MOST_SEQUENCE = 64  # bytes of its sequence header; a dozen suffice


def fault(data: bytes, size: tuple[int, int]) -> str:
    """Why a file is not a single opaque 8-bit image of that width and height; "" if it is."""
    boxes = list(_boxes(data))
    if [kind for kind, _ in boxes] != PARTS:
        return "is no AVIF file of one image"
    (_, brands), (_, meta), (_, coded) = boxes
    if brands[:4] != b"avif":
        return "is an AVIF sequence, or not AVIF"
    if len(meta) > MOST_META:
        return "has an AVIF header that is too long"
    properties = [
        each
        for kind, content in _boxes(meta[4:])
        if kind == b"iprp"
        for inner, items in _boxes(content)
        if inner == b"ipco"
        for each in _boxes(items)
    ]
    kinds = [kind for kind, _ in properties]
    if b"auxC" in kinds:
        return "has alpha, or another auxiliary image"
    if kinds.count(b"av1C") != 1 or kinds.count(b"ispe") != 1:
        return "is no AVIF file of one image"
    sides = dict(properties)[b"ispe"][4:]
    if sides != struct.pack(">II", *size) or _declared(coded) != (*size, False):
        return f"does not have {size[0]}x{size[1]} px and 8 bits"
    return ""


def _declared(coded: bytes) -> tuple[int, int, bool] | None:
    """Width, height, and whether there are more than 8 bits, of a still image; else None."""
    if coded[:3] != bytes([TEMPORAL_DELIMITER, 0, SEQUENCE_HEADER]) or len(coded) < 4:
        return None
    length = coded[3]
    header = coded[4 : 4 + length]
    if len(header) < length or length > MOST_SEQUENCE:
        return None
    bits, position = int.from_bytes(header, "big"), 8 * length

    def read(count: int) -> int:
        nonlocal position
        position -= count
        return bits >> position & (1 << count) - 1 if position >= 0 else 0

    read(3)  # profile
    if not (read(1) and read(1)):  # still_picture, reduced_still_picture_header
        return None
    read(5)  # level
    sides = read(4) + 1, read(4) + 1
    width, height = (read(each) + 1 for each in sides)
    read(6)  # tools
    is_deep = bool(read(1))
    return None if position < 0 else (width, height, is_deep)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes in some data; one that does not fit is yielded last, with kind b""."""
    position = 0
    while position < len(data):
        if position + BOX.size > len(data):
            yield b"", b""
            return
        length, kind = BOX.unpack_from(data, position)
        if not BOX.size <= length <= len(data) - position:
            yield b"", b""
            return
        yield kind, data[position + BOX.size : position + length]
        position += length

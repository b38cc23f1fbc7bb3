"""The declarations of an AVIF file, checked before a decoder allocates anything.

Boxes: ISO/IEC 14496-12 and 23008-12; open bitstream units (OBUs): AV1 Bitstream Specification, 5.
Both are checked as a whole, because a decoder may take other data than those that were looked at.
"""

import struct
from collections.abc import Iterator

BOX = struct.Struct(">I4s")
MOST_META = 1024  # bytes of `meta`; Pillow writes about 240
PARTS = [b"ftyp", b"meta", b"mdat"]  # of a single image
META = [b"hdlr", b"iinf", b"iloc", b"iprp", b"pitm"]  # of a single image, sorted
PROPERTIES = {b"av1C", b"colr", b"ispe", b"pixi"}  # none crops, turns or mirrors the image
LOCATION = struct.Struct(">IBBHHHHII")  # `iloc` of one item whose data are in one piece
UNITS = [0x12, 0x0A, 0x32]  # first bytes of a temporal delimiter, a sequence header, a frame
MOST_SEQUENCE = 64  # bytes of a sequence header; a dozen suffice


def fault(data: bytes, size: tuple[int, int]) -> str:
    """Why a file is not a single opaque 8-bit image of that width and height; "" if it is."""
    boxes = list(_boxes(data))
    if [kind for kind, _ in boxes] != PARTS:
        return "is not an AVIF file of one image"
    (_, brands), (_, meta), (_, coded) = boxes
    if brands[:4] != b"avif":
        return "is an AVIF sequence, or not AVIF"
    if len(meta) > MOST_META:
        return "has an AVIF header that is too long"
    parts = list(_boxes(meta[4:]))
    if sorted(kind for kind, _ in parts) != META:
        return "is not an AVIF file of one image"
    described = dict(parts)
    if not (_is_one_item(described[b"iinf"]) and _is_all(described[b"iloc"], data, coded)):
        return "is not an AVIF file of one image"
    properties = _properties(described[b"iprp"])
    kinds = [kind for kind, _ in properties]
    if not PROPERTIES.issuperset(kinds) or (kinds.count(b"av1C"), kinds.count(b"ispe")) != (1, 1):
        return "has other AVIF properties than one size, its depth and its colours"
    sides = dict(properties)[b"ispe"][4:]
    if sides != struct.pack(">II", *size) or _declared(coded) != (*size, False):
        return f"does not have {size[0]}x{size[1]} px and 8 bits"
    return ""


def _is_one_item(described: bytes) -> bool:
    """Whether `iinf` has one item, which is coded in AV1 and not made of other items."""
    entries = list(_boxes(described[6:]))
    if [kind for kind, _ in entries] != [b"infe"]:
        return False
    entry = entries[0][1]
    return entry[:1] + entry[8:12] == b"\2av01"  # version, type


def _is_all(location: bytes, data: bytes, coded: bytes) -> bool:
    """Whether `iloc` names one item: all of the `mdat` at the end."""
    if len(location) != LOCATION.size:
        return False
    version, sizes, base_size, items, _, reference, pieces, *place = LOCATION.unpack(location)
    one = (version, sizes, base_size, items, reference, pieces) == (0, 0x44, 0, 1, 0, 1)
    return one and place == [len(data) - len(coded), len(coded)]


def _properties(described: bytes) -> list[tuple[bytes, bytes]]:
    """The properties in `iprp`."""
    parts = list(_boxes(described))
    if [kind for kind, _ in parts] != [b"ipco", b"ipma"]:
        return []
    return list(_boxes(parts[0][1]))


def _declared(coded: bytes) -> tuple[int, int, bool] | None:
    """Width, height, and whether there are more than 8 bits, of a still image; else None."""
    units = list(_units(coded))
    if [kind for kind, _ in units] != UNITS or units[0][1]:
        return None
    header = units[1][1]
    if len(header) > MOST_SEQUENCE:
        return None
    bits, position = int.from_bytes(header, "big"), 8 * len(header)

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


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The first bytes and contents of OBUs; one that does not fit is yielded last, with -1."""
    position = 0
    while position < len(data):
        first, size, shift = data[position], 0, 0
        for byte in data[position + 1 : position + 9]:  # leb128
            position, size, shift = position + 1, size | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        else:
            yield -1, b""
            return
        position += 1
        if size > len(data) - position:
            yield -1, b""
            return
        yield first, data[position : position + size]
        position += size


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

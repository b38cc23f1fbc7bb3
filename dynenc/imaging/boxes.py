"""Boxes of AVIF and HEIF files, which describe their images (ISO/IEC 14496-12, 23008-12)."""

from collections.abc import Iterator
from typing import BinaryIO

MOST_BYTES = 2**20  # of a description
DEEP_AV1 = {0x40: 10, 0x60: 12}  # bits high_bitdepth and twelve_bit of av1C


def description(file: BinaryIO) -> bytes:
    """The first MOST_BYTES of a file's meta box; b"" if there is none."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(16)
        length, kind, start = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, start = int.from_bytes(head[8:], "big"), 16
        if kind == b"meta":
            file.seek(position + start)
            return file.read(min(length - start if length else MOST_BYTES, MOST_BYTES))
        if len(head) < 8 or length < start:
            return b""
        position += length


def depth(described: bytes) -> int:
    """Bits per sample, the maximum over all images of a description; 8 if it does not say."""
    return max((8, *_depths(described)))


def _depths(described: bytes) -> Iterator[int]:
    for content in _contents(described, b"av1C"):  # AV1: marker and version, profile, depth
        if content[:1] == b"\x81" and len(content) > 2:
            yield DEEP_AV1.get(content[2] & 0x60, 8)
    for content in _contents(described, b"hvcC"):  # HEVC: the last of them luma and chroma
        if content[:1] == b"\x01" and len(content) > 18:
            yield from (8 + (byte & 7) for byte in content[17:19])
    for content in _contents(described, b"pixi"):  # version and flags, number of channels, depths
        if len(content) > 5:
            yield from content[5 : 5 + content[4]]


def _contents(described: bytes, kind: bytes) -> Iterator[bytes]:
    """The content of each box of a kind."""
    position = described.find(kind)
    while position >= 4:
        length = int.from_bytes(described[position - 4 : position], "big")
        yield described[position + 4 : position - 4 + length]
        position = described.find(kind, position + 4)

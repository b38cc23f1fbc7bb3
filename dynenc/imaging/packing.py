"""Packing of chunk data: a raw LZMA stream with an end marker. See docs/format.md."""

import lzma

from dynenc.errors import Corrupt

LZMA = {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
EFFORT = {"preset": 9, "nice_len": 273, "depth": 8}  # deeper: 2% smaller, half as fast


def pack(data: bytes) -> bytes:
    """The packed data."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[LZMA | EFFORT])


def unpack(tag: str, data: bytes, most: int) -> bytes:
    """Undo `pack`; uses memory for the actual output, at most `most` bytes.

    Raises: Corrupt, naming the chunk, if the data is damaged or unpacks to more.
    """
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA])
    try:
        unpacked = unpacker.decompress(data, most + 1)
    except (lzma.LZMAError, EOFError) as exc:
        raise Corrupt(f"chunk {tag} cannot be unpacked") from exc
    if len(unpacked) > most:
        raise Corrupt(f"chunk {tag} unpacks to more than its {most} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise Corrupt(f"chunk {tag} is cut short, or longer than what it holds")
    return unpacked

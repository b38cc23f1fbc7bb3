"""Packing of the data of chunks: a raw LZMA stream with an end marker. See docs/format.md."""

import lzma

from dynenc.errors import Corrupt

LZMA = {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
EFFORT = {"preset": 9, "nice_len": 273, "depth": 8}  # deeper: 2% smaller, half as fast


def pack(data: bytes) -> bytes:
    """The packed data."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[LZMA | EFFORT])


def unpack(tag: str, data: bytes, most: int) -> bytes:
    """Undo `pack`; memory grows with what comes out, and no further than `most` bytes.

    Raises: Corrupt, which names the chunk, if the data are damaged or unpack to more.
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

import struct
import zlib

import pytest

from dynenc.coding import bitstream
from dynenc.coding.bitstream import Header
from dynenc.errors import (
    BitstreamError,
    Corrupt,
    NotALatFile,
    TooLarge,
    UnknownModel,
    UnsupportedVersion,
)

HEADER = Header(width=451, height=300, step_q=307, model_id=2, coder_id=1)
PAYLOAD = bytes(range(40))


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def with_chunks(*chunks: bytes, length: int = len(PAYLOAD)) -> bytes:
    plain = bitstream.write(Header(8, 8, 307, 2, 1, flags=bitstream.HAS_CHUNKS), b"")
    return sealed(plain[:-4] + struct.pack("<I", length) + PAYLOAD + b"".join(chunks))


def chunk(tag: bytes, data: bytes) -> bytes:
    return tag + struct.pack("<I", len(data)) + data


def test_bytes_are_those_of_the_specification():
    blob = bitstream.write(HEADER, b"")
    assert blob[:14] == b"\x89LAT\x01" + struct.pack("<HHHBBB", 451, 300, 307, 2, 1, 0)
    assert len(blob) == 18


def test_read_undoes_write():
    assert bitstream.read(bitstream.write(HEADER, PAYLOAD)) == (HEADER, PAYLOAD, [])


def test_every_truncation_is_noticed():
    blob = bitstream.write(HEADER, PAYLOAD)
    for length in range(len(blob)):
        with pytest.raises(BitstreamError):
            bitstream.read(blob[:length])


def test_every_bit_flip_is_noticed():
    blob = bitstream.write(HEADER, PAYLOAD)
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            bitstream.read(bytes(damaged))


@pytest.mark.parametrize("blob", [b"", b"\x89PNG\r\n\x1a\n" + bytes(50), b"LAT" + bytes(50)])
def test_foreign_files(blob):
    with pytest.raises(NotALatFile):
        bitstream.read(blob)


def test_newer_version():
    body = bytearray(bitstream.write(HEADER, PAYLOAD)[:-4])
    body[4] = 2
    with pytest.raises(UnsupportedVersion, match=r"version 2.*update"):
        bitstream.read(sealed(bytes(body)))


def test_pixel_limit():
    blob = bitstream.write(Header(60_000, 60_000, 307, 2, 1), b"")
    with pytest.raises(TooLarge, match="60000x60000"):
        bitstream.read(blob)
    header, _, _ = bitstream.read(blob, max_pixels=60_000**2)
    assert header.width == 60_000


@pytest.mark.parametrize("name", ["width", "height", "step_q"])
def test_zero_fields(name):
    values = {"width": 8, "height": 8, "step_q": 307, "model_id": 2, "coder_id": 1} | {name: 0}
    with pytest.raises(Corrupt):
        bitstream.read(bitstream.write(Header(**values), b""))


def test_unknown_flags():
    with pytest.raises(Corrupt, match="flags"):
        bitstream.read(bitstream.write(Header(8, 8, 307, 2, 1, flags=4), PAYLOAD))


def test_unknown_chunks_are_skipped():
    blob = with_chunks(chunk(b"exif", b"abc"), chunk(b"icc ".replace(b" ", b"p"), b""))
    assert bitstream.read(blob)[1] == PAYLOAD


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (with_chunks(chunk(b"Need", b"abc")), UnknownModel),
        (with_chunks(chunk(b"ex f", b"abc")), Corrupt),
        (with_chunks(chunk(b"exif", b"abc")[:-1]), Corrupt),
        (with_chunks(b"exi"), Corrupt),
        (with_chunks(b"exif" + b"\xff" * 4), Corrupt),
        (with_chunks(length=len(PAYLOAD) + 1), Corrupt),
        (with_chunks(length=0xFFFFFFFF), Corrupt),
        (bitstream.write(Header(8, 8, 307, 2, 1, flags=1), b"abc"), Corrupt),
    ],
)
def test_bad_chunks(blob, error):
    with pytest.raises(error):
        bitstream.read(blob)

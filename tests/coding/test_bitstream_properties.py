import contextlib
import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from dynenc.coding import bitstream
from dynenc.coding.bitstream import MAGIC, VERSION, Header
from dynenc.errors import BitstreamError

U8, U16 = st.integers(0, 255), st.integers(1, 65_535)


@given(st.builds(Header, U16, U16, U16, U8, U8), st.binary(max_size=200))
def test_read_undoes_write(header, payload):
    assert bitstream.read(bitstream.write(header, payload), 2**32) == (header, payload, [])


@given(st.binary(max_size=80))
def test_any_bytes_raise_only_bitstream_errors(junk):
    with contextlib.suppress(BitstreamError):
        bitstream.read(MAGIC + bytes([VERSION]) + junk)


@given(st.binary(min_size=9, max_size=120))
def test_any_sealed_bytes_raise_only_bitstream_errors(junk):
    body = MAGIC + bytes([VERSION]) + junk
    with contextlib.suppress(BitstreamError):
        bitstream.read(body + struct.pack("<I", zlib.crc32(body)))

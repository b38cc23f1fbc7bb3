"""Files made by hand to hurt a reader of .lat files: most have a right checksum."""

import io
import lzma
import struct
import zlib

import numpy as np
from PIL import Image

from dynenc.coding import bitstream
from dynenc.coding.bitstream import FIXED_BYTES, HAS_CHUNKS, MAGIC, Header

SOUND = {"width": 8, "height": 8, "step_q": 307, "model_id": 2, "coder_id": 1}
MANY = 3_000_000  # bytes


def sealed(body: bytes) -> bytes:
    """A file with a right checksum."""
    return body + struct.pack("<I", zlib.crc32(body))


def made(payload: bytes = b"", **fields: int) -> bytes:
    """A file with these fields of the header."""
    return bitstream.write(Header(**SOUND | fields), payload)


def chunk(tag: bytes, data: bytes, length: int | None = None) -> bytes:
    """A chunk, with another length than its own if one is given."""
    return tag + struct.pack("<I", len(data) if length is None else length) + data


def with_chunks(payload: bytes, *chunks: bytes, length: int | None = None) -> bytes:
    """A file with chunks, and with another length of the payload than its own if one is given."""
    size = struct.pack("<I", len(payload) if length is None else length)
    return made(size + payload + b"".join(chunks), flags=HAS_CHUNKS)


def packed(data: bytes, **settings: int) -> bytes:
    """Data as the known chunks hold it, or packed with other settings."""
    own = {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[own | settings])


def image(form: str = "AVIF", side: int = 8, **options: object) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, form, **options)
    return file.getvalue()


def layer(coded: bytes, mask: bytes = b"\x80", form: int = 1, quality: int = 50) -> bytes:
    """A detail layer."""
    bits = packed(mask)
    return chunk(b"Detl", struct.pack("<BBI", form, quality, len(bits)) + bits + coded)


def declaring(coded: bytes, side: int) -> bytes:
    """An AVIF file whose boxes declare another size than the coded image has."""
    place = coded.index(b"ispe") + 8
    return coded[:place] + struct.pack(">II", side, side) + coded[place + 8 :]


def before(coded: bytes, decoy: bytes, *, hidden: bool) -> bytes:
    """An AVIF file whose `mdat` begins with the headers of another one: skipped by it, or not."""
    start, end = coded.index(b"mdat") + 4, decoy.index(b"mdat") + 4
    headers = decoy[end : end + 4 + decoy[end + 3]]
    place = coded.index(struct.pack(">II", start, len(coded) - start))
    first, length = start, len(coded) - start + len(headers)
    if hidden:
        first, length = start + len(headers), len(coded) - start
    data = coded[:place] + struct.pack(">II", first, length) + coded[place + 8 : start - 8]
    content = headers + coded[start:]
    return data + struct.pack(">I4s", len(content) + 8, b"mdat") + content


def with_property(coded: bytes, kind: bytes, content: bytes) -> bytes:
    """An AVIF file whose image has one more property."""
    box = struct.pack(">I4s", 8 + len(content), kind) + content
    changed = bytearray(coded)
    start = coded.index(b"mdat") + 4
    [place] = struct.unpack_from(">I", coded, coded.index(b"ipco") - 4)
    for at in (coded.index(name) - 4 for name in (b"meta", b"iprp", b"ipco")):
        [length] = struct.unpack_from(">I", coded, at)
        struct.pack_into(">I", changed, at, length + len(box))
    struct.pack_into(">I", changed, coded.index(struct.pack(">I", start)), start + len(box))
    end = coded.index(b"ipco") - 4 + place
    return bytes(changed[:end]) + box + bytes(changed[end:])


LARGE = image(side=4096)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
BAD_CHUNKS = {  # of an 8x8 image, each whole, by what is wrong with it
    "grey with data": [chunk(b"grey", b"1")],
    "grey twice": [chunk(b"grey", b"")] * 2,
    "alpha twice": [chunk(b"alph", packed(bytes(64)))] * 2,
    "alpha empty": [chunk(b"alph", b"")],
    "alpha of another size": [chunk(b"alph", packed(bytes(63)))],
    "alpha of a pixel more": [chunk(b"alph", packed(bytes(65)))],
    "alpha of 100 megapixels": [chunk(b"alph", packed(bytes(100_000_000)))],
    "alpha not packed": [chunk(b"alph", bytes(range(64)))],
    "alpha cut short": [chunk(b"alph", packed(bytes(64))[:-3])],
    "alpha with more behind it": [chunk(b"alph", packed(bytes(64)) + b"x")],
    "EXIF of 100 MB": [chunk(b"exif", packed(bytes(100_000_000)))],
    "XMP of noise": [chunk(b"xmpp", np.random.default_rng(2).bytes(3000))],
    "XMP of other settings": [chunk(b"xmpp", packed(b"some text" * 99, lc=3, pb=2))],
    "profile of 100 MB": [chunk(b"iccp", packed(bytes(100_000_000)))],
    "text that is no UTF-8": [chunk(b"text", packed(b"key\0\xff\0"))],
    "text of a keyword alone": [chunk(b"text", packed(b"key\0"))],
    "text without its end": [chunk(b"text", packed(b"key\0text"))],
    "resolution of one side": [chunk(b"resl", bytes(range(1, 5)))],
    "resolution of zero": [chunk(b"resl", struct.pack("<II", 2835, 0))],
    "detail layer empty": [chunk(b"Detl", b"")],
    "detail layer without an image": [layer(b"")],
    "detail layer twice": [layer(image())] * 2,
    "detail layer of an unknown form": [layer(image(), form=9)],
    "detail layer of quality 255": [layer(image(), quality=255)],
    "detail layer with a mask of nothing": [layer(image(), b"\0")],
    "detail layer with a mask of too much": [layer(image(), b"\xc0")],
    "detail layer with a mask of 100 MB": [layer(image(), bytes(100_000_000))],
    "detail layer of another size": [layer(image(side=9))],
    "detail layer of 16 megapixels": [layer(LARGE)],
    "detail layer of 16 megapixels that declares 8x8": [layer(declaring(LARGE, 8))],
    "detail layer of 16 megapixels behind the headers of 8x8": [
        layer(declaring(before(LARGE, image(), hidden=True), 8))
    ],
    "detail layer of 16 megapixels after the headers of 8x8": [
        layer(declaring(before(LARGE, image(), hidden=False), 8))
    ],
    "detail layer with a long AVIF header": [layer(image(icc_profile=bytes(3000)))],
    "detail layer that is a sequence": [layer(image(**FRAMES))],
    **{
        f"detail layer in AVIF with {kind.decode()}": [layer(with_property(image(), kind, content))]
        for kind, content in (
            (b"irot", b"\1"),
            (b"imir", b"\0"),
            (b"clap", struct.pack(">8I", 4, 1, 4, 1, 0, 1, 0, 1)),
            (b"ispe", struct.pack(">III", 0, 8, 8)),
        )
    },
    "detail layer in AVIF of a grid": [layer(image().replace(b"av01Color", b"gridColor", 1))],
    "detail layer in WebP that is a sequence": [layer(image("WEBP", **FRAMES), form=2)],
    "detail layer in WebP of another size": [layer(image("WEBP", side=4096), form=2)],
    "detail layer in PNG": [layer(image("PNG"))],
    "detail layer of noise": [layer(np.random.default_rng(3).bytes(3000))],
    "detail layer cut short": [layer(image()[:-5])],
    "cache twice": [chunk(b"cach", b"")] * 2,
    "profile twice": [chunk(b"iccp", packed(b"")), chunk(b"skip", b""), chunk(b"iccp", b"")],
}


def files(payload: bytes) -> dict[str, bytes]:
    """Every file, by what is wrong with it, from the payload of a sound 8x8 image."""
    sound = made(payload)
    noise = np.random.default_rng(0).bytes
    most = 0xFFFF_FFFF
    return {
        "empty": b"",
        "only the signature": MAGIC,
        "only the start": sound[:FIXED_BYTES],
        "shorter than a header, sealed": sealed(MAGIC + b"\1"),
        "another format": b"\x89PNG\r\n\x1a\n" + sound[8:],
        "version 0": sealed(MAGIC + b"\0" + sound[5:-4]),
        "version 255": sealed(MAGIC + b"\xff" + sound[5:-4]),
        "no checksum": sound[:-4],
        "checksum of another file": sound[:-4] + made(payload, width=9)[-4:],
        "checksum twice": sealed(sound),
        "a file behind the file": sound + sound,
        "width 0": made(payload, width=0),
        "height 0": made(payload, height=0),
        "step 0": made(payload, step_q=0),
        "all fields at most": made(payload, **dict.fromkeys(SOUND, 255) | {"width": 65_535}),
        "largest sides": made(payload, width=65_535, height=65_535),
        "a pixel beyond the limit": made(payload, width=65_535, height=2731),
        "largest side, one row": made(payload, width=65_535, height=1),
        "169 megapixels in 4 bytes": made(payload, width=13_000, height=13_000),
        "169 megapixels in no bytes": made(width=13_000, height=13_000),
        "169 megapixels in 4000 zeros": made(bytes(4000), width=13_000, height=13_000),
        "169 megapixels in noise": made(noise(4000), width=13_000, height=13_000),
        "unknown encoder": made(payload, model_id=0),
        "unknown coder": made(payload, coder_id=255),
        "coder 1 with a trellis": made(payload, flags=bitstream.HAS_TRELLIS),
        "unknown flags": made(payload, flags=0xFE),
        "payload missing": made(),
        "payload a word short": made(payload[:-4]),
        "payload not in words": made(payload + b"\0"),
        "payload a word longer": made(payload + bytes(4)),
        "payload twice": made(payload * 2),
        "payload of a bomb": made(bytes(MANY)),
        "payload of ones": made(b"\xff" * len(payload)),
        "payload of noise": made(noise(20)),
        "noise for half a megapixel": made(noise(4000), width=800, height=600),
        "no length of the payload": made(b"\0\0", flags=HAS_CHUNKS),
        "payload past the end": with_chunks(payload, length=len(payload) + 1),
        "payload of 4 GiB": with_chunks(payload, length=most),
        "chunk past the end": with_chunks(payload, chunk(b"exif", b"abc", length=4)),
        "chunk of 4 GiB": with_chunks(payload, chunk(b"exif", b"abc", length=most)),
        "chunk that runs back to itself": with_chunks(
            payload, chunk(b"exif", b"", length=most - 7)
        ),
        "half a chunk": with_chunks(payload, b"exi"),
        "tag of no letters": with_chunks(payload, chunk(b"\0\xff\r\n", b"abc")),
        "unknown critical chunk": with_chunks(payload, chunk(b"Need", b"abc")),
        "critical chunk behind others": with_chunks(
            payload, *[chunk(b"exif", b"")] * 99, chunk(b"Need", b"")
        ),
        "100,000 chunks, the last cut": with_chunks(
            payload, *[chunk(b"exif", b"")] * 100_000, b"e"
        ),
        **{name: with_chunks(payload, *chunks) for name, chunks in BAD_CHUNKS.items()},
        "a chunk too many": with_chunks(payload, *[chunk(b"skip", b"")] * 1025),
        "nested files, the outer one cut": with_chunks(payload, chunk(b"file", sound)[:-1]),
    }

"""EXIF comes back byte for byte, but for what says how the pixels lay in their file."""

import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dynenc import Codec
from dynenc.errors import ImageWarning
from dynenc.imaging import exif, ifd, save
from dynenc.imaging.ifd import Node, Structure, written
from dynenc.imaging.read import open_image

ASCII, SHORT, LONG, RATIONAL, BYTE, UNDEFINED = 2, 3, 4, 5, 1, 7
JAPANESE = "© 田中".encode()
GERMAN = "Müller".encode("latin-1")
MAKER_NOTE = bytes(range(256))


def block(order="<", turn=6, more=(), exif_more=(), thumbnail=b"") -> bytes:
    """EXIF as cameras write it: pointers, private tags, text that is not ASCII, a thumbnail."""

    def number(value, letter="H"):
        return struct.pack(order + letter, value)

    interop = (Node(1, ASCII, 4, b"R98\0"), Node(2, UNDEFINED, 4, b"0100"))
    camera = (
        Node(0x829A, RATIONAL, 1, number(1, "I") + number(0, "I")),  # a shutter of 1/0 s
        Node(0x927C, UNDEFINED, len(MAKER_NOTE), MAKER_NOTE),
        Node(0x9286, UNDEFINED, 8 + len(JAPANESE), bytes(8) + JAPANESE),
        Node(0xA002, SHORT, 1, number(40)),
        Node(0xA003, LONG, 1, number(20, "I")),
        Node(0xA005, LONG, 1, b"", interop),
        *exif_more,
    )
    nodes = [
        Node(0x0100, LONG, 1, number(40, "I")),
        Node(0x010D, ASCII, 7, b"page 7\0"),
        Node(0x0112, SHORT, 1, number(turn)),
        Node(0x013B, ASCII, len(GERMAN) + 1, GERMAN + b"\0"),
        Node(0x4746, SHORT, 1, number(5)),
        Node(0x8298, ASCII, len(JAPANESE) + 1, JAPANESE + b"\0"),
        Node(0x830E, 12, 3, struct.pack(order + "3d", 1, 2, 3)),  # of GeoTIFF
        Node(0x8769, LONG, 1, b"", camera),
        Node(0x8825, LONG, 1, b"", (Node(1, ASCII, 2, b"N\0"),)),
        Node(0x9C9B, BYTE, 10, "Titel".encode("utf-16le")),
        *more,
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    made = bytearray(head + written(nodes, 8, order))
    if thumbnail:
        made += bytes(len(made) % 2)
        start = len(made)
        count = struct.unpack_from(order + "H", made, 8)[0]
        struct.pack_into(order + "I", made, 10 + 12 * count, start)
        place = start + 2 + 24 + 4
        entries = [
            Node(0x0201, LONG, 1, number(place, "I")),
            Node(0x0202, LONG, 1, number(len(thumbnail), "I")),
        ]
        made += written(entries, start, order) + thumbnail
    return bytes(made)


def values(data: bytes) -> dict[tuple[int, ...], bytes]:
    """Every value of a block by the tags that lead to it."""
    structure = Structure.of(data[:16])
    found = {}

    def walk(start, path):
        def read(offset, size):
            return data[offset : offset + size]

        for entry in structure.directory(read, start)[0]:
            here = (*path, entry.tag)
            if entry.tag in (0x8769, 0x8825, 0xA005):
                walk(structure.integers(read, entry)[0], here)
            else:
                found[here] = read(entry.start, entry.n_bytes)

    walk(structure.first, ())
    return found


@pytest.fixture(scope="module")
def nano():
    return Codec("nano", decoder="embedded", device="cpu")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_comes_back_as_it_was(nano, order, form):
    given = block(order, thumbnail=b"\xff\xd8 small")
    image = Image.new("RGB", (40, 20), "teal")
    image.save(file := io.BytesIO(), "JPEG", exif=b"Exif\0\0" + given)
    opened = open_image(file.getvalue(), keep_metadata=True)
    assert opened.size == (20, 40)
    decoded = nano.decode(nano.encode(opened, keep_metadata=True))
    data = save.save(decoded, form, "a test")
    if form == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as read:
            tags = read.pages[0].tags
            assert tags[0x9C9B].value == "Titel".encode("utf-16le")
            assert tags[0x830E].value == (1, 2, 3)
            assert tags[0x8769].value["MakerNote"] == MAKER_NOTE
        assert JAPANESE + b"\0" in data
        return
    with Image.open(io.BytesIO(data)) as read:
        back = values(read.info["exif"].removeprefix(b"Exif\0\0"))
    number = struct.pack(order + "H", 20), struct.pack(order + "I", 40)
    expected = values(given) | {(0x0131,): b"a test\0"}
    expected |= {(0x8769, 0xA002): number[0], (0x8769, 0xA003): number[1]}
    del expected[(0x0100,)], expected[(0x0112,)]
    assert back == expected
    assert b"small" not in data


def test_only_damaged_tags_are_left_out():
    bad = Node(0x9003, 99, 4, b"abcd")
    given = bytearray(block(more=[bad], exif_more=[Node(0xA420, ASCII, 40, b"x" * 40)]))
    entry = given.index(struct.pack("<HHI", 0xA420, ASCII, 40))
    struct.pack_into("<I", given, entry + 8, 0xFFFFFF00)  # its value is nowhere
    image = Image.new("RGB", (40, 20), "teal")
    image.save(file := io.BytesIO(), "JPEG", exif=b"Exif\0\0" + bytes(given))
    with pytest.warns(ImageWarning) as caught:
        opened = open_image(file.getvalue(), keep_metadata=True)
    told = " ".join(str(each.message) for each in caught)
    assert "DateTimeOriginal" in told
    assert "ImageUniqueID" in told
    assert opened.size == (20, 40)  # turned, whatever else is wrong
    back = values(opened.info["exif"][6:])
    assert back[(0x8298,)] == JAPANESE + b"\0"
    assert (0x8769, 0xA005, 1) in back
    assert (0x8769, 0xA420) not in back


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(turn, form):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    tagged = Image.Exif()
    tagged[0x0112] = turn
    Image.fromarray(pixels).save(file := io.BytesIO(), form, exif=tagged)
    opened = open_image(file.getvalue())
    upright = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    row, column = upright[turn]
    width, height = opened.size
    assert (width, height) == ((32, 16) if turn < 5 else (16, 32))
    grey = np.asarray(opened.convert("L"))
    corner = grey[row * height // 2 :][: height // 2, column * width // 2 :][:, : width // 2]
    assert corner.min() > 240
    assert grey.mean() < 80


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
@pytest.mark.parametrize("turn", [3, 6])
def test_turned_images_keep_their_exif_and_have_resolutions_that_agree(form, turn):
    across, down = struct.pack("<2I", 100, 1), struct.pack("<2I", 200, 1)
    resolution = [Node(0x011A, RATIONAL, 1, across), Node(0x011B, RATIONAL, 1, down)]
    given = block(turn=turn, more=[*resolution, Node(0x0128, SHORT, 1, struct.pack("<H", 2))])
    Image.new("RGB", (40, 20), "teal").save(file := io.BytesIO(), form, dpi=(100, 200))
    data = file.getvalue()
    if form == "TIFF":
        data = exif.into_tiff(data, given, [])
    else:
        data = (
            data[:20]
            + b"\xff\xe1"
            + struct.pack(">H", len(given) + 8)
            + exif.PREFIX
            + given
            + data[20:]
        )
    opened = open_image(data, keep_metadata=True)
    back = values(opened.info["exif"][6:])
    assert back[(0x8769, 0x927C)] == MAKER_NOTE
    if turn == 6:
        across, down = down, across
    assert (back[(0x011A,)], back[(0x011B,)]) == (across, down)
    assert opened.info["dpi"] == ((200, 100) if turn == 6 else (100, 200))


def test_an_image_of_a_host_program_keeps_its_orientation(nano):
    """Its pixels are not turned, so the tag still holds."""
    image = Image.new("RGB", (40, 20), "teal")
    image.info["exif"] = b"Exif\0\0" + block()
    decoded = nano.decode(nano.encode(image, keep_metadata=True))
    assert decoded.size == (40, 20)
    assert decoded.getexif()[0x0112] == 6


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8), st.integers(0, 700)
)
@example([(30, 22)], 130)  # the first value overlaps the directory that it is an entry of
def test_every_damage_is_survived(changes, length):
    damaged = bytearray(block(thumbnail=b"small"))[: max(length, 8) if length < 650 else None]
    for place, value in changes:
        if 8 <= place < len(damaged):
            damaged[place] = value
    exif.orientation(bytes(damaged))
    try:
        clean, _ = exif.cleaned(bytes(damaged), 3, 4, is_upright=True)
    except ValueError:
        return
    if clean:
        block_of = exif.with_software(clean, "a test")
        assert exif.orientation(block_of) in (None, *range(1, 9))
        assert b"a test\0" in block_of
        assert exif.cleaned(clean, 3, 4, is_upright=True) == (clean, [])
        Image.new("RGB", (3, 4)).save(file := io.BytesIO(), "TIFF")
        with tifffile.TiffFile(io.BytesIO(exif.into_tiff(file.getvalue(), clean, []))) as read:
            assert read.pages[0].shape == (4, 3, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_directories_that_point_to_each_other_often_are_read_once(form):
    count = 2000
    # every entry of the first directory, and of the one it points to, is a pointer
    start = 8
    below = start + 2 + 12 * count + 4
    table = struct.pack("<H", count)
    first = table + struct.pack("<HHII", 0x8769, 4, 1, below) * count + bytes(4)
    second = table + struct.pack("<HHII", 0xA005, 4, 1, below) * count + bytes(4)
    block = b"II*\0" + struct.pack("<I", start) + first + second
    if form == "PNG":
        cleaned, damaged = exif.cleaned(block, 8, 8, is_upright=True)
        assert len(damaged) >= count - 1
        assert len(cleaned) <= len(block)
    else:
        reader = ifd.Reader(ifd.Structure.of(block[:16]), exif._reader(block), 2**20)
        assert len(reader.tree(start)) == 1
        assert len(reader.dropped) >= 2 * count - 2

"""TIFF files as an independent reader, tifffile, understands them, or refused."""

import io
import struct

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from dynenc.errors import ImageError, ImageWarning
from dynenc.imaging import pixels
from dynenc.imaging.read import open_image

pytestmark = pytest.mark.filterwarnings("ignore::dynenc.errors.ImageWarning")
Y, X = np.mgrid[:24, :40]
GREY = (X * 5 + Y) / 255
COLOURS = np.stack([GREY, GREY[::-1], 1 - GREY], -1)
TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
KINDS = {
    "black is 0": (GREY, {"photometric": "minisblack"}),
    "white is 0": (GREY, {"photometric": "miniswhite"}),
    "colours": (COLOURS, {"photometric": "rgb", "planarconfig": "contig"}),
    "planes": (np.moveaxis(COLOURS, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
}
KINDS |= {
    f"alpha {kind}": (
        np.concatenate([COLOURS, np.full_like(GREY, 0.5)[..., None]], -1),
        {"photometric": "rgb", "planarconfig": "contig", "extrasamples": [kind]},
    )
    for kind in (0, 1, 2)
}
KINDS |= {
    f"grey alpha {kind}": (
        np.stack([GREY, np.full_like(GREY, 0.5)], -1),
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [kind]},
    )
    for kind in (0, 1, 2)
}


def expected(data: bytes) -> np.ndarray:
    """What tifffile reads, over white, as RGB in 0..1."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        read = page.asarray()
        if read.ndim == 3 and page.planarconfig == 2:
            read = np.moveaxis(read, 0, -1)
        top = np.iinfo(read.dtype).max if read.dtype.kind in "ui" else 1
        read = read.astype(float) / top
        if page.photometric == 0:
            read = 1 - read
        if read.ndim == 2:
            read = read[..., None]
        alpha = 1.0
        if page.extrasamples:
            if page.extrasamples[0] == 1:
                read, alpha = read / 0.5, 0.5
            elif page.extrasamples[0] == 2:
                alpha = 0.5
            read = read[..., :-1]
        return np.broadcast_to(read.clip(0, 1) * alpha + (1 - alpha), (*GREY.shape, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_samples_as_their_tags_say(kind, order, compression):
    """Every type of samples is read as tifffile reads it, or refused with a reason."""
    values, options = KINDS[kind]
    if kind.endswith("alpha 1"):
        values = np.concatenate([values[..., :-1] * 0.5, values[..., -1:]], -1)
    n_read = 0
    for name in TYPES:
        top = 1 if name[0] == "f" else np.iinfo(name).max
        samples = (values * top).astype(name)
        file = io.BytesIO()
        tifffile.imwrite(
            file, samples, byteorder=order, compression=compression, metadata=None, **options
        )
        try:
            read = open_image(file.getvalue())
        except ImageError as exc:
            assert "cannot be read" in str(exc) or "no known format" in str(exc)  # noqa: PT017
            continue
        n_read += 1
        shown = np.asarray(pixels.to_rgb(read)) / 255
        assert abs(shown - expected(file.getvalue())).max() < 0.02, name
    if kind.startswith("grey alpha") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this Pillow reads no grey TIFF files with alpha")
    assert n_read >= 1


def by_hand(bits: int, width: int, data: bytes, order: int = 1) -> bytes:
    """A TIFF file of one row of grey samples, in an order of bits that tifffile does not write."""
    entries = [
        (256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 1), (266, 3, order),
        (273, 4, 200), (277, 3, 1), (278, 3, 1), (279, 4, len(data)),
    ]  # fmt: skip
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return (b"II*\0\x08\0\0\0" + ifd + bytes(4)).ljust(200, b"\0") + data


def test_bits_in_reverse():
    ramp = np.array([0, 12_345, 54_321, 65_535], "<u2")
    data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in ramp.tobytes())
    read = open_image(by_hand(16, 4, data, order=2))
    assert list(read.tobytes()) == [0, 48, 211, 255]


def test_twelve_bits():
    read = open_image(by_hand(12, 4, bytes.fromhex("000800fff0f0")))
    assert list(read.tobytes()) == [round(v * 255 / 4095) for v in (0, 0x800, 0xFFF, 0x0F0)]


def pages(*sizes: tuple[int, int], kinds=(), below=()) -> bytes:
    """A TIFF file with pages of these sizes (width, height), subfile types, and SubIFDs."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for i, (width, height) in enumerate(sizes):
            writer.write(
                np.full((height, width, 3), 40 * i + 40, np.uint8),
                photometric="rgb",
                subfiletype=kinds[i] if kinds else 0,
                subifds=len(below) if i == 0 and below else None,
                metadata=None,
            )
            if i == 0:
                for width, height in below:
                    writer.write(np.zeros((height, width, 3), np.uint8), photometric="rgb")
    return file.getvalue()


def test_a_reduced_copy_is_not_taken_for_the_image():
    read = open_image(pages((16, 12), (64, 48), kinds=(1, 0)))
    assert read.size == (64, 48)
    assert read.getpixel((0, 0)) == 80
    with pytest.raises(ImageError, match=r"x\.dng: it has a larger image of 64x48 px"):
        open_image(pages((16, 12), kinds=(1,), below=[(64, 48)]), name="x.dng")
    with pytest.raises(ImageError, match="the limit is 200"):
        open_image(pages((16, 12), (64, 48), kinds=(1, 0)), max_pixels=200)
    assert open_image(pages((64, 48), below=[(32, 24), (16, 12)])).size == (64, 48)


@pytest.mark.filterwarnings("error")
def test_pages_that_are_left_out_are_told():
    with pytest.warns(ImageWarning, match="pages after the first are dropped: 2"):
        assert open_image(pages((16, 12), (16, 12), (8, 6))).size == (16, 12)
    open_image(pages((64, 48), (32, 24), kinds=(0, 1)))  # a pyramid


def test_float_image_of_white_is_zero_in_bytes():
    file = io.BytesIO()
    tifffile.imwrite(file, np.float32([[0, 1]]), photometric="miniswhite", metadata=None)
    assert list(open_image(file.getvalue()).tobytes()) == [255, 0]


def test_bigtiff_is_read():
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((4, 6), np.uint8), bigtiff=True, description="a text")
    assert open_image(file.getvalue(), keep_metadata=True).size == (6, 4)
    assert isinstance(Image.open(io.BytesIO(file.getvalue())), Image.Image)

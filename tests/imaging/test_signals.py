"""What image files say about their pixels: colours by numbers, frames, cut ends."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dynenc.errors import ImageError, ImageWarning
from dynenc.imaging import pixels
from dynenc.imaging.read import open_image

LEVELS = np.arange(0, 256, 5, dtype=np.uint8)
RAMP = np.stack([LEVELS, LEVELS[::-1], LEVELS], -1)[None]


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of grey or RGB samples of 8 or 16 bits with chunks before the pixels."""
    depth, colour = 8 * array.dtype.itemsize, 2 if array.ndim == 3 else 0
    header = struct.pack(">2I5B", array.shape[1], array.shape[0], depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{array.dtype.itemsize}").tobytes() for row in array)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in parts
    )


def shown(data: bytes) -> np.ndarray:
    return np.asarray(pixels.to_rgb(open_image(data)), float)


def as_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("gamma", [1.0, 0.55])
def test_gamma_of_png_is_applied(gamma):
    read = shown(png(RAMP, (b"gAMA", struct.pack(">I", round(gamma * 100_000)))))
    assert abs(read - as_srgb((RAMP / 255) ** (1 / gamma))).max() < 3


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 45_455))],
        [(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")],
        [(b"cICP", bytes([1, 13, 0, 1])), (b"gAMA", struct.pack(">I", 100_000))],
    ],
)
def test_what_means_srgb_changes_nothing(chunks):
    assert np.array_equal(shown(png(RAMP, *chunks)), RAMP)


def test_chromaticities_are_applied():
    """Red of Display P3 is beyond sRGB's; grey stays grey."""
    p3 = (31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000)
    colours = np.uint8([[[200, 100, 100], [128, 128, 128]]])
    by_numbers = shown(png(colours, (b"cHRM", struct.pack(">8I", *p3))))
    by_code = shown(png(colours, (b"cICP", bytes([12, 13, 0, 1]))))
    assert abs(by_numbers - by_code).max() <= 1
    assert by_code[0, 0, 0] > 208
    assert by_code[0, 0, 1] < 97
    assert abs(by_code[0, 1] - 128).max() <= 1


def test_hdr_is_reduced_with_a_note():
    """203 cd/m2 is white; PQ codes it as 0.58."""
    levels = np.uint8([[[0] * 3, [round(255 * 0.3804)] * 3, [round(255 * 0.5807)] * 3, [255] * 3]])
    with pytest.warns(ImageWarning, match=r"HDR \(PQ\) is reduced"):
        read = shown(png(levels, (b"cICP", bytes([9, 16, 0, 1]))))
    expected = as_srgb(np.array([0, 27.4 / 203, 1, 1]))
    assert abs(read[0, :, 1] - expected).max() < 4


def test_unknown_colours_are_named():
    with pytest.warns(ImageWarning, match="CICP 99/13 are unknown"):
        assert np.array_equal(shown(png(RAMP, (b"cICP", bytes([99, 13, 0, 1])))), RAMP)
    with pytest.warns(ImageWarning, match="gamma of 0"):
        assert np.array_equal(shown(png(RAMP, (b"gAMA", bytes(4)))), RAMP)


@pytest.mark.filterwarnings("ignore::dynenc.errors.ImageWarning")  # of 16 bits
@pytest.mark.parametrize(
    ("array", "key", "alpha"),
    [
        (np.uint16([[0x1234, 0x1235]]), [0x1234], [0, 255]),
        (np.uint8([[18, 19]]), [18], [0, 255]),
        (np.uint8([[[1, 2, 3], [1, 2, 4]]]), [1, 2, 3], [0, 255]),
        (np.uint16([[[300, 2, 3], [900, 2, 4]]]), [300, 2, 3], [0, 255]),
    ],
)
def test_transparent_colours(array, key, alpha):
    read = open_image(png(array, (b"tRNS", struct.pack(f">{len(key)}H", *key))))
    assert list(read.getchannel("A").tobytes()) == alpha


def test_transparent_grey_of_few_bits():
    rows = zlib.compress(bytes([0, 0b00011011]))  # 0, 1, 2, 3
    parts = {b"IHDR": struct.pack(">2I5B", 4, 1, 2, 0, 0, 0, 0), b"tRNS": b"\0\2", b"IDAT": rows}
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in [*parts.items(), (b"IEND", b"")]
    )
    assert list(open_image(data).getchannel("A").tobytes()) == [255, 255, 0, 255]


def test_a_huge_profile_does_not_refuse_the_image():
    profile = b"ICC\0\0" + zlib.compress(bytes(3_000_000))
    texts = [(b"zTXt", b"key\0\0" + zlib.compress(bytes(2_000_000))), (b"iCCP", profile)]
    for chunk in texts:
        with pytest.warns(ImageWarning):
            assert np.array_equal(shown(png(RAMP, chunk)), RAMP)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_frames_that_are_left_out_are_told(form):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    frames[0].save(file := io.BytesIO(), form, save_all=True, append_images=frames[1:])
    with pytest.warns(ImageWarning, match="frames after the first are dropped"):
        read = open_image(file.getvalue())
    assert read.getpixel((5, 5))[0] > 200


def test_gain_maps_are_named():
    main, gains = Image.new("RGB", (20, 10), "red"), Image.new("L", (10, 5), 9)
    xmp = b"<rdf hdrgm:Version='1.0' xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'/>"
    main.save(file := io.BytesIO(), "MPO", save_all=True, append_images=[gains], xmp=xmp)
    with pytest.warns(ImageWarning) as caught:
        open_image(file.getvalue())
    assert [str(each.message) for each in caught] == ["an HDR gain map is dropped"]


def test_565_is_no_reduction():
    """A BMP of 16 bits a pixel has 5 or 6 bits a channel."""
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    data = struct.pack("<2H", 0xF800, 0x001F)
    file = b"BM" + struct.pack("<IHHI", 66 + 4, 0, 0, 66) + header + masks + data
    read = open_image(file)
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_what_a_cut_file_still_holds(photo_path, form):
    photo = Image.open(photo_path).convert("RGB")
    photo.save(file := io.BytesIO(), form)
    cut = file.getvalue()[: len(file.getvalue()) * 2 // 3]
    with pytest.raises(ImageError):
        open_image(cut)
    with pytest.warns(ImageWarning, match="truncated or damaged"):
        read = open_image(cut, truncated=True)
    assert read.size == photo.size
    width, height = photo.size
    box = (0, height // 2, width, height) if form == "BMP" else (0, 0, width, height // 2)
    difference = np.asarray(read.crop(box), int) - np.asarray(photo.crop(box))  # BMP: bottom first
    assert abs(difference).mean() < 4


def test_pngs_of_a_text_with_a_bad_checksum_are_read():
    texts = PngInfo()
    texts.add_text("key", "value")
    Image.fromarray(RAMP).save(file := io.BytesIO(), "PNG", pnginfo=texts)
    damaged = file.getvalue().replace(b"value", b"valu!")
    with pytest.warns(ImageWarning, match="texts of the PNG file are dropped"):
        assert np.array_equal(shown(damaged), RAMP)

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from dynenc.errors import ImageError, ImageWarning
from dynenc.imaging import arrays, notes, pixels, tensors
from dynenc.imaging.read import open_image


def saved(image: Image.Image, form: str = "PNG", **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


@pytest.fixture
def photo(photo_path):
    photo = Image.open(photo_path).convert("RGB")
    photo.info.clear()
    return photo


MODES = {"1": "L", "L": "L"} | dict.fromkeys(("P", "RGB", "YCbCr", "LAB", "HSV", "CMYK"), "RGB")


@pytest.mark.parametrize("mode", MODES)
def test_modes_become_plain(photo, mode):
    assert pixels.to_plain(photo.convert(mode)).mode == MODES[mode]
    assert pixels.to_rgb(photo.convert(mode)).mode == "RGB"


def test_a_plain_image_is_not_copied(photo):
    assert pixels.to_plain(photo) is photo


def test_cmyk_jpeg_looks_the_same(photo):
    read = open_image(saved(photo.convert("CMYK"), "JPEG", quality=95))
    difference = np.abs(np.asarray(read, int) - np.asarray(photo, int))
    assert difference.mean() < 6


def test_sixteen_bit_grey_is_scaled():
    ramp = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    with pytest.warns(ImageWarning, match="reduced to 8"):
        read = open_image(saved(Image.fromarray(ramp)))
    assert read.mode == "L"
    assert np.asarray(read)[0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colours_are_told():
    header = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(">3H", 65_535, 32_896, 0))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in chunks
    )
    with pytest.warns(ImageWarning, match="reduced to 8"):
        read = open_image(io.BytesIO(png))
    assert read.getpixel((0, 0)) == (255, 128, 0)


def test_float_grey_is_clipped():
    values = Image.fromarray(np.array([[-5.0, 100.4, 300.0]], np.float32))
    with pytest.warns(ImageWarning, match="range of 0 to 255"):
        assert np.asarray(pixels.to_plain(values))[0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "YCbCr", "CMYK"])
def test_equal_channels_are_grey(mode):
    """However they are stored; what cannot be seen does not count."""
    ramp = Image.linear_gradient("L").resize((40, 30))
    image = ramp.convert("RGB")
    if mode == "RGBA":
        image.putalpha(255)
        image.putpixel((3, 4), (200, 0, 0, 0))
    read = pixels.to_plain(ramp.convert("P") if mode == "P" else image.convert(mode))
    assert read.mode == ("LA" if mode == "RGBA" else "L")
    shown = abs(np.asarray(read.getchannel(0), int) - np.asarray(ramp))
    assert np.delete(shown.ravel(), 4 * 40 + 3).max() <= 1
    image = ramp.convert("RGB")
    image.putpixel((39, 17), (10, 11, 10))
    assert pixels.to_plain(image).mode == "RGB"


@pytest.mark.filterwarnings("ignore::dynenc.errors.ImageWarning")  # of samples of many bits
def test_every_mode_of_pillow_is_read():
    for mode in Image.MODES:
        image = Image.new(mode, (2, 2))
        assert pixels.to_plain(image).mode in ("L", "LA", "RGB", "RGBA"), mode
        assert pixels.to_rgb(image).mode == "RGB"
    grey = Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 128)])
    pre = pixels.to_plain(grey.convert("La"))
    assert pre.mode == "LA"
    assert abs(pre.getpixel((0, 0))[0] - 100) <= 1
    ramp = np.array([[0, 257 * 100, 65_535]], np.uint16)
    for mode in ("I;16", "I;16N", "I;16L", "I;16B"):
        data = ramp.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
        read = pixels.to_plain(Image.frombytes(mode, (3, 1), data))
        assert list(read.tobytes()) == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),
        (np.float32([0, 0.5, 1.2]), [0, 128, 255]),
        (np.float32([0, 100, 65_535]), [0, 0, 255]),
        (np.int32([0, 128, 255]), [0, 128, 255]),
        (np.int32([0, 257 * 128, 65_535]), [0, 128, 255]),
    ],
)
def test_samples_are_scaled_by_what_they_say(values, expected):
    with pytest.warns(ImageWarning, match="as their values suggest"):
        assert list(pixels.to_plain(Image.fromarray(values[None])).tobytes()) == expected


@pytest.mark.parametrize("values", [[0, np.nan], [0, np.inf], [-3, 1], [0, 1e9]])
def test_samples_that_say_nothing_are_refused(values):
    with pytest.raises(ImageError, match="samples"):
        pixels.to_plain(Image.fromarray(np.float32([values])))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept(mode):
    colour = (40, 40, 40 if mode == "LA" else 50)
    image = Image.new("RGBA", (2, 1), (*colour, 255))
    image.putpixel((1, 0), (9, 9, 9, 0))
    read = open_image(saved(image.convert(mode)))
    assert read.mode == mode
    assert read.getchannel("A").tobytes() == b"\xff\0"
    assert pixels.to_rgb(read).tobytes() == bytes([*colour] + [255] * 3)


def test_alpha_of_an_opaque_image_is_not(photo):
    assert open_image(saved(photo.convert("RGBA"))).tobytes() == photo.tobytes()


def test_alpha_of_a_palette_is_kept():
    image = Image.new("P", (1, 1), 3)
    image.putpalette([0] * 768)
    read = open_image(saved(image, transparency=3))
    assert read.mode == "LA"
    assert pixels.to_rgb(read).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGB", b"\0\1"), ("RGB", (1, 2)), ("L", 1.5), ("P", (1, 2, 3)), ("RGBA", (1, 2, 3))],
)
def test_a_transparent_colour_of_other_pixels_is_named_and_dropped(photo, mode, colour):
    image = photo.convert(mode)
    expected = pixels.to_plain(image)
    image.info["transparency"] = colour
    with pytest.warns(ImageWarning, match="transparent colour is dropped"):
        read = pixels.to_plain(image)
    assert (read.mode, read.tobytes(), read.info) == (expected.mode, expected.tobytes(), {})
    assert image.info["transparency"] == colour


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (37, 50), (64, 48)])
def test_what_is_transparent_gets_the_colours_around_it(photo, size):
    photo = photo.crop((100, 60, 100 + size[0], 60 + size[1]))
    seen = np.zeros(size[::-1], bool)
    seen[: size[1] // 2 + 1, : size[0] // 2 + 1] = True
    garbage = np.where(seen[..., None], photo, [0, 255, 0]).astype(np.uint8)
    image = Image.fromarray(garbage)
    image.putalpha(Image.fromarray(seen))
    filled = np.asarray(pixels.to_plain(image).convert("RGB")).astype(int)
    assert np.array_equal(filled[seen], np.asarray(photo)[seen])
    part = np.asarray(photo)[seen]
    assert filled.min() >= part.min() - 1
    assert filled.max() <= part.max() + 1


def test_an_image_of_nothing(photo):
    photo.putalpha(0)
    assert pixels.to_plain(photo).getextrema() == ((0, 0),) * 2  # grey, as nothing says otherwise


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert open_image(saved(image, "JPEG", exif=exif)).size == (10, 20)


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_not_an_image(tmp_path, data):
    (path := tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png (cannot be read as an image|is empty)"):
        open_image(path)


def test_truncated_image(photo, tmp_path):
    (path := tmp_path / "x.png").write_bytes(saved(photo).getvalue()[:5000])
    with pytest.raises(ImageError):
        open_image(path)


def test_limit_of_pixels(tmp_path):
    (path := tmp_path / "x.png").write_bytes(saved(Image.new("RGB", (20, 20))).getvalue())
    assert open_image(path, max_pixels=400).size == (20, 20)
    with pytest.raises(ImageError, match=r"x\.png declares 400 pixels"):
        open_image(path, max_pixels=399)


def test_only_the_given_limit_of_pixels_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (path := tmp_path / "x.png").write_bytes(saved(Image.new("RGB", (20, 20))).getvalue())
    assert open_image(path).size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_an_image_that_is_rgb_is_not_copied(photo):
    assert pixels.to_rgb(photo) is photo


def test_tensor_round_trip_is_exact(photo):
    tensor = tensors.to_tensor(photo)
    assert tensor.shape == (1, 3, photo.height, photo.width)
    assert tensor.dtype == torch.float32
    assert tensor.abs().max() <= 1
    assert tensors.to_image(tensor).tobytes() == photo.tobytes()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64 is not an image"),
        (torch.full((1, 3, 8, 8), torch.nan), "NaN or infinite"),
        (torch.full((1, 3, 8, 8), -torch.inf), "NaN or infinite"),
        (torch.full((1, 3, 8, 8), 255.0), "range from 255 to 255"),
    ],
)
def test_tensors_that_are_no_images(tensor, message):
    with pytest.raises(ImageError, match=message):
        arrays.as_rgb(tensor)


def test_to_image_clamps():
    tensor = torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1)
    assert tensors.to_image(tensor).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (8, 16), (9, 8)])
def test_pad_repeats_the_edge(height, width):
    tensor = (torch.rand(1, 3, height, width) * 255).byte()
    padded = tensors.pad(tensor)
    assert [side % 8 for side in padded.shape[-2:]] == [0, 0]
    assert torch.equal(padded[..., :height, :width], tensor)
    assert torch.equal(padded[..., -1, :width], tensor[..., -1, :])
    assert torch.equal(padded[..., :height, -1], tensor[..., -1])


def test_pixels_stay_beside_each_other_in_memory(photo):
    """The encoder is several times as fast on them."""
    height, width = 300, 451
    parts = [tensors.part_of(arrays.as_rgb(photo), 0, 0, 500, 500) for _ in range(2)]
    for made in (*parts, tensors.batch(parts), tensors.batch(parts[:1])):
        assert made.permute(0, 2, 3, 1).is_contiguous()
        assert torch.equal(
            made[:1, :, :height, :width],
            tensors.part_of(photo, 0, 0, width, height)[..., :height, :width],
        )


def test_reading_leaves_the_process_as_it_was(photo):
    """From many threads, and each thread gets its own notes."""
    ramp = Image.fromarray(np.array([[0, 257, 65_535]], np.uint16))
    files = [saved(photo, "JPEG").getvalue(), saved(ramp).getvalue()]
    before = warnings.filters[:], Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES

    def read(number: int) -> list[str]:
        with notes.collected() as lost:
            open_image(files[number % 2], keep_metadata=True, max_pixels=10**9)
        return lost

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(40)))
    assert found == [[], ["more than 8 bits per channel are reduced to 8"]] * 20
    after = warnings.filters[:], Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    assert after == before

"""Text and graphics are found in screens, and photographs are left alone."""

from pathlib import Path

import numpy as np
import pytest
from oracles import graphics as graphics_oracle
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dynenc.imaging import graphics
from dynenc.native import kernel

PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"
SIZE = 320, 208
HERE = [
    name for name, path in kernel.INSTRUCTION_SETS.items() if kernel.library().dynenc_has_path(path)
]


def screen(size=SIZE, ink="black", paper="white"):
    image = Image.new("RGB", size, paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for y in range(8, size[1] - 16, 18):
        draw.text((8, y), "The quick brown fox jumps over 1234567890", ink, font)
    return image


def photo():
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


def page(size=(320, 256)):
    """Text beside a photograph, which gets a detail layer."""
    image = screen(size)
    image.paste(photo().crop((60, 40, 220, 168)), (80, 64))
    return image


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("shape", [(1, 1), (16, 48), (61, 32), (40, 275), (33, 513), (70, 1031)])
@pytest.mark.parametrize("most", [2, 60, 256])
def test_statistics_are_those_counted_slowly(path, shape, most, monkeypatch):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, path)
    pixels = np.random.default_rng(most).integers(0, most, (*shape, 3), np.uint8)
    pixels[:, ::3] = pixels[:, :1]
    strided = np.zeros((shape[0], shape[1] + 5, 3), np.uint8)[:, :-5]
    strided[:] = pixels
    for divisor in (1, 2):  # Pillow's halves are means, too
        given = np.asarray(Image.fromarray(pixels).reduce(divisor))
        found = graphics_oracle.statistics(given)
        assert np.array_equal(kernel.tile_statistics(pixels, found.shape[1], divisor), found)
        assert np.array_equal(kernel.tile_statistics(strided, 1, divisor), found[:, :1])


@pytest.mark.parametrize("search", kernel.Search)
@pytest.mark.parametrize("seed", range(40))
def test_tiles_of_any_statistics_are_those_found_slowly(search, seed):
    """Statistics about the thresholds, in patches, so that each rule applies to some tiles."""
    random = np.random.default_rng(seed)
    sides = random.integers(1, 40, 2)
    tiles = [  # still, calm, sharp, bright, dark, high and low; some count all pixels
        *random.choice([0, 20, 40, 70, 200, 256], (1, *sides)),
        *random.choice([30, 50, 100, 120, 220, 256], (1, *sides)),
        *random.choice([0, 1, 5, 12, 20, 60], (1, *sides)),
        *random.choice([0, 30, 90, 110, 150], (2, *sides)),
        *random.choice([253, 254, 240, 255], (1, *sides)),
        *random.choice([0, 10, 11], (1, *sides)),
    ]
    patches = random.integers(0, sides.prod(), -(-sides // 5)).repeat(5, 0).repeat(5, 1)
    rows, columns = np.divmod(patches[: sides[0], : sides[1]], sides[1])
    alike = random.random(sides) < random.random()
    given = np.where(alike, np.array(tiles)[:, rows, columns], tiles).astype(np.uint16)
    found, missed = kernel.find_graphics_tiles(given, search)
    expected, also_missed = graphics_oracle.graphics(given, search)
    assert np.array_equal(found, expected)
    assert missed == also_missed


def test_images_have_the_text_that_is_found_slowly():
    noise = np.random.default_rng(0).normal(0, 8, (420, 311, 3))
    noisy = (np.asarray(screen((311, 420))) * 0.6 + 20 + noise).clip(0, 255).astype(np.uint8)
    images = [np.asarray(each) for each in (screen(), photo(), page())]
    for image in (*images, noisy):
        assert np.array_equal(graphics.find(image), graphics_oracle.find(image))


def test_strips_and_arrays_have_the_tiles_of_the_whole(monkeypatch):
    image = photo()
    whole = graphics.find(screen(), eager=True), graphics.find(image, eager=True)
    monkeypatch.setattr(graphics, "STRIP", 16 * image.width + 1)
    for given, mask in zip((screen(), image), whole, strict=True):
        assert np.array_equal(graphics.find(given, eager=True), mask)
        assert np.array_equal(graphics.find(np.asarray(given), eager=True), mask)


@pytest.mark.parametrize(
    "colours", [("black", "white"), ("white", "black"), ("#d6dade", "#15181c"), ("navy", "#eee")]
)
def test_a_screen_is_all_graphics(colours):
    assert graphics.find(screen(SIZE, *colours)).all()


def test_photographs_noise_gradients_and_one_colour_are_not():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    for image in (
        photo(),
        Image.fromarray(noise),
        Image.linear_gradient("L").convert("RGB"),
        Image.new("RGB", SIZE, "teal"),
    ):
        assert not graphics.find(image).any()


def test_of_a_photograph_in_a_page_the_page_is_found():
    image = screen((640, 480))
    image.paste(photo().crop((0, 0, 320, 256)), (160, 112))
    mask = graphics.find(image)
    assert mask[:6].all()
    assert mask[24:].all()
    assert not mask[9:21, 13:28].any()


def test_a_scan_with_noise_is_found():
    pixels = np.asarray(screen((480, 480), "#222", "#e8e4da"), float)
    pixels += np.random.default_rng(0).normal(0, 3, pixels.shape)
    mask = graphics.find(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert mask[2:-3, 2:16].mean() > 0.95


@pytest.mark.parametrize(("size", "blur"), [(17, 0.8), (20, 0.8), (17, 0.6)])
def test_noise_hides_no_text(size, blur):
    image = Image.new("RGB", (480, 481), "#e8e4da")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for y in range(8, 460, 26):
        draw.text((8, y), "The quick brown fox jumps over 1234567890 twice", "#222", font)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), float)
    pixels += np.random.default_rng(0).normal(0, 7, pixels.shape)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    mask = graphics.find(Image.fromarray(pixels))
    assert mask[2:-4, 2:16].mean() > 0.95
    assert np.array_equal(graphics.find(pixels), mask)


def test_sparse_graphics_on_flats_are_found():
    image = np.full((320, 400, 3), (90, 125, 206), np.uint8)
    corners = np.random.default_rng(0).integers(0, 40, (30, 2)) * 8
    for number, (top, left) in enumerate(corners):
        image[top : top + 8, left : left + 8] = 17 * number % 256, 200, 40
    assert graphics.find(image).all()


def test_outlined_type_upon_a_photograph_is_found():
    image = photo()
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(34)
    draw.text((24, 20), "Owner Water", "white", font, stroke_width=2, stroke_fill="black")
    mask = graphics.find(image)
    assert mask[2, 2:13].all()
    assert not mask[5:].any()


def test_single_words_are_found_if_eager():
    image = photo()
    draw = ImageDraw.Draw(image)
    draw.rectangle((32, 32, 63, 47), "white")
    draw.text((33, 33), "word", "black", ImageFont.load_default(11))
    assert not graphics.find(image).any()
    mask = graphics.find(image, eager=True)
    assert mask[2, 2:4].any()
    assert mask.mean() < 0.2


@pytest.mark.parametrize("size", [(1, 1), (17, 1), (5, 40), (161, 203)])
def test_masks_cover_images_of_any_size(size):
    mask = graphics.find(Image.new("RGB", size, "red"), eager=True)
    assert mask.shape == (-(-size[1] // 16), -(-size[0] // 16))

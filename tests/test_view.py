"""Views: regions have the pixels of the whole image, and smaller images those of its parts."""

import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from imaging.test_graphics import page, photo
from PIL import Image, ImageCms, features
from typer.testing import CliRunner

from dynenc import Codec, convert
from dynenc.cli.main import app
from dynenc.coding.lat_file import LatFile
from dynenc.errors import ImageWarning, UsageError
from dynenc.imaging import detail
from dynenc.imaging.packing import unpack
from dynenc.view import DIVISORS, Region, View

SCALES = [Fraction(1, divisor) for divisor in DIVISORS]
SIZE = (321, 258)  # which 8 does not divide
REGIONS = [(0, 0, 1, 1), (37, 21, 100, 90), (200, 150, 121, 108), (0, 100, 321, 9)]


@pytest.fixture(scope="module")
def codec():
    return Codec("nano", decoder="embedded", device="cpu")


def with_alpha():
    image = page(SIZE).convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def with_profile():
    image = photo().crop((0, 0, 321, 258))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info["icc_profile"] = lab
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
    return image


IMAGES = {
    "photo": lambda: photo().crop((0, 0, 321, 258)),
    "page": lambda: page(SIZE),
    "alpha": with_alpha,
    "grey": lambda: with_alpha().convert("LA"),
    "profile": with_profile,
}


@pytest.fixture(scope="module", params=IMAGES)
def file(request, codec):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        blob = codec.encode(IMAGES[request.param](), keep_metadata=True)
    file = LatFile.parse(blob)
    assert detail.has_layer(file) == (request.param in ("page", "alpha", "grey"))
    return file


def test_a_region_has_the_pixels_of_the_whole(codec, file):
    whole = codec.decode(file)
    for x, y, width, height in REGIONS:
        part = codec.decode(file, region=(x, y, width, height))
        expected = whole.crop((x, y, x + width, y + height))
        assert (part.mode, part.size, part.info) == (whole.mode, expected.size, whole.info)
        assert part.tobytes() == expected.tobytes()


@pytest.mark.parametrize("scale", SCALES[1:], ids=str)
def test_a_region_of_a_smaller_image_has_its_pixels(codec, file, scale):
    divisor = scale.denominator
    small = codec.decode(file, scale=scale)
    assert small.size == (-(-321 // divisor), -(-258 // divisor))
    for x, y, width, height in REGIONS:
        part = codec.decode(file, region=(x, y, width, height), scale=float(scale))
        right, bottom = -(-(x + width) // divisor), -(-(y + height) // divisor)
        expected = small.crop((x // divisor, y // divisor, right, bottom))
        assert part.size == expected.size
        assert part.tobytes() == expected.tobytes()


@pytest.mark.parametrize("divisor", DIVISORS[1:])
def test_a_smaller_image_is_made_grey_last_and_its_opacity_is_that_of_the_whole(codec, divisor):
    """As docs/decoder.md specifies."""
    coloured = LatFile.parse(codec.encode(with_alpha().crop((60, 40, 159, 115))))
    file = replace(coloured, chunks=[("grey", b""), *coloured.chunks])
    assert detail.has_layer(file)
    colours = np.asarray(codec.decode(coloured, scale=1 / divisor), int)[..., :3]
    grey = (colours @ [19595, 38470, 7471] + 32768) >> 16
    opacity = np.frombuffer(unpack("alph", dict(file.chunks)["alph"], 99 * 75), np.uint8)
    [total, n] = (
        np.add.reduceat(np.add.reduceat(each, range(0, 75, divisor), 0), range(0, 99, divisor), 1)
        for each in (opacity.reshape(75, 99).astype(int), np.ones((75, 99), int))
    )
    found = np.asarray(codec.decode(file, scale=1 / divisor), int)
    assert np.array_equal(found[..., 0], grey)
    assert np.array_equal(found[..., 1], ((total + n // 2) * (2**24 // n)) >> 24)


def test_a_layer_in_a_smaller_image_is_the_mean_of_what_it_covers(codec):
    """Where the image beneath is flat, it makes no difference when the layer is laid over it."""
    mask = np.zeros((17, 21), bool)
    mask[2:5, 3:9] = mask[16, 20] = True
    layer = detail.from_chunks([detail.to_chunk(page(SIZE), mask, 50)], (321, 258))
    whole = np.asarray(layer.composite_over(Image.new("RGB", (321, 258), (90, 10, 200))), int)
    for divisor in DIVISORS:
        view = View(divisor=divisor)
        small = Image.new("RGB", view.scaled((321, 258))[2:], (90, 10, 200))
        found = np.asarray(layer.composite_over(small, view), int)
        expected = np.asarray(Image.fromarray(whole.astype(np.uint8)).reduce(divisor), int)
        assert abs(found - expected).max() <= 1
        assert found.std() > 3


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 322, 5), "not within the image of 321x258 px"),
        ((0, 255, 5, 4), "not within"),
        ((2**40, 0, 1, 1), "not within"),
        ((-1, 0, 5, 4), "left must be an integer, 0 or more"),
        ((0, 0, 0, 4), "width must be an integer, 1 or more"),
        ((0, 0, 4, -4), "not -4"),
        ((0, 0.5, 4, 4), "top must be an integer"),
        ((0, True, 4, 4), "top must be an integer"),
        ((0, 0, 4), "a region is four numbers"),
        ("0,0,4,4", "a region is four numbers"),
        (7, "a region is four numbers"),
    ],
)
def test_bad_regions_are_refused(codec, file, region, reason):
    with pytest.raises(UsageError, match=reason):
        codec.decode(file, region=region)


@pytest.mark.parametrize("scale", [0, 2, -1, 1 / 3, float("nan"), "1/2", True, None, 1 / 16])
def test_bad_scales_are_refused(codec, file, scale):
    with pytest.raises(UsageError, match="scale must be 1, 1/2, 1/4 or 1/8"):
        codec.decode(file, scale=scale)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, codec):
    for name, size in (("a", (75, 50)), ("b", (40, 66))):
        image = photo().crop((100, 60, 100 + size[0], 60 + size[1]))
        (tmp_path / f"{name}.lat").write_bytes(codec.encode(image))
    return tmp_path


def test_the_command_decodes_views(folder, codec):
    source, target = folder / "a.lat", folder / "a.png"
    options = ["-d", "embedded", "--region", "3,4,50,20"]
    assert run("decode", source, *options).exit_code == 0
    with Image.open(target) as image:
        assert image.tobytes() == codec.decode(source, region=Region(3, 4, 50, 20)).tobytes()
        assert image.getexif()[305] == "dynenc, decoder embedded, region 3,4,50,20"
    assert run("decode", source, "-f", *options, "--scale", "1/4").exit_code == 0
    with Image.open(target) as image:
        assert image.size == (14, 5)


def test_smaller_images_of_a_folder_are_made_again_at_another_scale(folder):
    options = dict(decoder="embedded", existing="update")
    view = View.of(None, 1 / 8)
    assert convert("decode", folder, view=view, **options).done == 2
    assert convert("decode", folder, view=view, **options).skipped == 2
    with Image.open(folder / "b.png") as image:
        assert image.size == (5, 9)
    results = []
    summary = convert(
        "decode",
        folder,
        view=View.of(None, 1 / 2),
        on_result=lambda result, _: results.append(result),
        **options,
    )
    assert summary.done == 2
    sizes = {result.source[-5:]: (result.width, result.height) for result in results}
    assert sizes == {"a.lat": (38, 25), "b.lat": (20, 33)}
    bits = [8 * r.n_bytes_in / r.bpp for r in results]
    assert sorted(round(pixels) for pixels in bits) == [40 * 66, 75 * 50]  # of the whole images


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("a.lat --region 0,0,76,5", "region 0,0,76,5 is not within the image of 75x50 px"),
        ("a.lat b.lat --region 0,0,5,5", "a region needs a single image"),
        (". --region 0,0,5,5", "a region needs a single image"),
        ("a.lat --region 0,0,5", "a region is four numbers"),
        ("a.lat --region 0,0,5,", "height must be an integer"),
        ("a.lat --region -1,0,5,5", "left must be an integer, 0 or more, not -1"),
        ("a.lat --region 0,0,5,5.0", "height must be an integer, 1 or more, not '5.0'"),
        ("a.lat --scale 1/3", "'1/3' is not one of 1, 1/2, 1/4, 1/8"),
        ("a.lat --scale 1/0", "'1/0' is not one of"),
    ],
)
def test_the_command_refuses_bad_views(folder, monkeypatch, arguments, reason):
    monkeypatch.chdir(folder)
    result = run("decode", *arguments.split())
    assert result.exit_code == 2
    assert reason in result.stderr
    assert not list(folder.glob("*.png"))

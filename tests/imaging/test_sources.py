"""Images as measurements and training see them."""

import tarfile

import pytest
from PIL import Image, ImageCms

from dynenc.errors import ImageError
from dynenc.imaging.sources import iter_images


@pytest.fixture
def folder(tmp_path):
    """An image that lies on its side, one of transparent pixels, and one with a profile."""
    (folder := tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    Image.new("RGB", (40, 20), "red").save(folder / "a.jpg", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "b.png")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.new("RGB", (8, 8), "blue").save(folder / "c.png", icc_profile=srgb.tobytes())
    return folder


def test_images_are_upright_opaque_and_without_metadata(folder):
    first, second, third = (image for _, image in iter_images(folder))
    assert first.size == (20, 40)
    assert second.getpixel((0, 0)) == (255, 255, 255)
    assert all(image.mode == "RGB" and not image.info for image in (first, second, third))


def test_a_tar_gives_the_same_images(folder):
    with tarfile.open(shard := folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, "x")
    pairs = zip(iter_images(folder), iter_images(shard), strict=True)
    assert all(one.tobytes() == two.tobytes() for (_, one), (_, two) in pairs)


def test_a_damaged_image_in_a_tar_is_named(folder):
    (folder / "b.png").write_bytes(b"no image")
    with tarfile.open(shard := folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, "x")
    with pytest.raises(ImageError, match=r"images\.tar/x/b\.png cannot be read"):
        list(iter_images(shard))

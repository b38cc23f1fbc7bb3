"""Which files are opened, and by what."""

import io
import stat
import tarfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from typer.testing import CliRunner

from dynenc import Codec
from dynenc.cli.main import app
from dynenc.errors import ImageError, OutputError
from dynenc.imaging import extras, formats, jxl, save
from dynenc.imaging.read import open_image
from dynenc.imaging.sources import iter_images


def encoded(image: Image.Image, form: str, **options) -> bytes:
    image.save(buffer := io.BytesIO(), form, **options)
    return buffer.getvalue()


EPS = encoded(Image.new("RGB", (20, 10), "red"), "EPS")
IPTC = (  # an image within IPTC, which Pillow would open with any plugin
    b"\x1c\x03\x3c\x00\x02\x01\x01"
    + b"\x1c\x03\x14\x00\x02\x00\x14\x1c\x03\x1e\x00\x02\x00\x0a"
    + b"\x1c\x03\x78\x00\x01\x01"
    + b"\x1c\x08\x0a"
    + len(EPS).to_bytes(2, "big")
    + EPS
)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A file that appears if anything starts Ghostscript."""
    (folder := tmp_path / "bin").mkdir()
    (script := folder / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return tmp_path / "trace"


def test_ghostscript_would_have_left_a_trace(trace):
    with Image.open(io.BytesIO(EPS)) as image, pytest.raises(OSError):  # noqa: PT011
        image.load()
    assert trace.exists()


@pytest.mark.parametrize("data", [EPS, IPTC], ids=["EPS", "IPTC"])
def test_no_file_starts_a_program(trace, tmp_path, data):
    (folder := tmp_path / "in").mkdir()
    good = encoded(Image.new("RGB", (20, 10), "blue"), "PNG")
    (folder / "good.png").write_bytes(good)
    for name in ("holiday.jpg", "x.png", "y.tif"):
        (folder / name).write_bytes(data)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(folder / "holiday.jpg", "a.jpg")
        tar.add(folder / "good.png", "b.png")
    bad = str(folder / "holiday.jpg")
    runner = CliRunner()
    for command in (
        ["encode", str(folder), "-e", "nano", "-o", str(tmp_path / "out")],
        ["encode", str(tmp_path / "0.tar"), "-e", "nano", "-o", str(tmp_path / "tars")],
        ["encode", bad, "-o", str(tmp_path / "x.lat")],
        ["roundtrip", bad],
        ["compare", bad, str(folder / "good.png"), "-o", str(tmp_path / "c.html")],
        ["compare", str(folder / "good.png"), bad, "-o", str(tmp_path / "d.html")],
    ):
        result = runner.invoke(app, command)
        assert result.exit_code in (1, 3), command
        assert isinstance(result.exception, SystemExit)
    result = runner.invoke(app, ["encode", "-", "-o", str(tmp_path / "y.lat")], input=data)
    assert result.exit_code == 3
    with pytest.raises(ImageError):
        open_image(data)
    with pytest.raises(ImageError):
        list(iter_images(folder))
    assert not trace.exists()
    assert (tmp_path / "out" / "good.lat").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (EPS, "PostScript, a program that is not run"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=", "SVG"),
        (b"", "is empty"),
        (b"some text", "no known format"),
    ],
)
def test_what_is_not_opened_is_named(data, message):
    with pytest.raises(ImageError, match=message):
        open_image(data, name="x.png")


def test_plugins_are_named_when_they_are_missing(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k[0] not in "HJ"})
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    with pytest.raises(ImageError, match=r"x is HEIC/HEIF.*pip install pillow-heif"):
        open_image(heic, name="x")
    with pytest.raises(ImageError, match=r"JPEG XL.*pip install pillow-jxl-plugin"):
        open_image(b"\xff\x0a" + bytes(40))
    formats.suffixes.cache_clear()
    assert formats.why_ignored(".HEIC") == "pip install pillow-heif"
    assert formats.why_ignored(".txt") is None
    formats.suffixes.cache_clear()


def test_formats_of_plugins(photo_path):
    pytest.importorskip("pillow_heif")
    pytest.importorskip("pillow_jxl")
    photo = Image.open(photo_path).convert("RGB")
    for plugin in formats.PLUGINS:
        assert plugin.load()
        read = open_image(encoded(photo, plugin.form, quality=90))
        assert read.size == photo.size
        assert set(plugin.suffixes) <= formats.suffixes()
        assert Codec("nano").encode(read)


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (300, 200), (640, 480), (5000, 3), (1000, 1000)])
@pytest.mark.parametrize("boxes", [False, True])
def test_declared_size_of_jxl(size, boxes):
    pytest.importorskip("pillow_jxl")
    formats.JXL.load()
    data = encoded(Image.new("RGB", size), "JXL", effort=1, use_container=boxes)
    assert jxl.declared_size(data[: 2**16]) == size
    with pytest.raises(ImageError, match="the limit is 0"):
        open_image(data, max_pixels=0)


def test_declared_size_of_jxl_by_hand():
    """SizeHeader of 2**30 x 2**30 px: a bomb of 12 bytes."""
    side = (2**30 - 1) << 2 | 3
    bits = 0 | side << 1 | 0 << 33 | side << 36
    data = b"\xff\x0a" + bits.to_bytes(10, "little")
    assert jxl.declared_size(data) == (2**30, 2**30)
    with pytest.raises(ImageError, match="the limit is"):
        open_image(data)


@pytest.mark.parametrize("form", ["ICO", "QOI"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_small_formats_keep_size_and_pixels(form, mode):
    image = Image.effect_noise((200, 170), 50).convert(mode)
    name = f"a.{form.lower()}"
    alpha = image.getchannel("A") if "A" in mode else None
    extra = extras.Extras(is_grey=mode[0] == "L", alpha=alpha)
    data = save.image_bytes(image.convert("RGB"), extra, name, "embedded")
    back = Image.open(io.BytesIO(data))
    assert back.size == (200, 170)
    assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(image.convert("RGB")))
    large = Image.new("RGB", (300, 20))
    for other, why in (("a.ico", "a side exceeds"), ("a.icns", "suffix of an image format")):
        with pytest.raises(OutputError, match=why):
            save.image_bytes(large, extras.Extras(), other, "embedded")

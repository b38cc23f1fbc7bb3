"""Alpha, grey and metadata through the command."""

import csv
import json

import numpy as np
import pytest
from helpers import hostile
from PIL import Image, ImageCms
from typer.testing import CliRunner

from dynenc.cli.main import app
from dynenc.coding.entropy import load_coder

runner = CliRunner()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def photo(photo_path):
    """A 75x50 piece of a photograph, transparent at its border."""
    photo = Image.open(photo_path).convert("RGB").crop((100, 60, 175, 110))
    photo.info.clear()
    photo.putalpha(Image.radial_gradient("L").resize(photo.size))
    return photo


@pytest.fixture
def image(photo, tmp_path):
    """That piece on disk, with EXIF and a colour profile."""
    exif = Image.Exif()
    exif[0x013B] = "the artist"
    photo.save(path := tmp_path / "photo.png", exif=exif, icc_profile=SRGB)
    return path


def test_all_of_it_comes_back(image, tmp_path):
    lat, back = tmp_path / "photo.lat", tmp_path / "back.png"
    assert run("encode", image, "--keep-metadata", "-e", "nano").stderr == ""
    fields = json.loads(run("info", lat, "--json").stdout)
    assert list(fields["chunks"]) == ["alph", "exif"]  # a profile of sRGB costs nothing
    assert f"alph {fields['chunks']['alph']} bytes, exif" in run("info", lat).stdout
    assert run("verify", lat).exit_code == 0
    assert run("decode", lat, "-o", back, "-d", "embedded").stderr == ""
    with Image.open(back) as decoded, Image.open(image) as original:
        assert decoded.mode == "RGBA"
        assert decoded.getchannel("A").tobytes() == original.getchannel("A").tobytes()
        assert decoded.getexif()[0x013B] == "the artist"
        assert "icc_profile" not in decoded.info


def test_metadata_is_not_kept_unasked(image, tmp_path):
    run("encode", image, "-e", "nano")
    fields = json.loads(run("info", tmp_path / "photo.lat", "--json").stdout)
    assert list(fields["chunks"]) == ["alph"]


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_formats_without_alpha_get_white_and_a_word(image, tmp_path, suffix):
    back = tmp_path / f"back.{suffix}"
    run("encode", image, "--keep-metadata", "-e", "nano")
    result = run("decode", tmp_path / "photo.lat", "-o", back, "-d", "embedded")
    assert result.exit_code == 0
    assert "no alpha" in result.stderr
    assert ("cannot store this metadata" in result.stderr) == (suffix == "bmp")
    with Image.open(back) as decoded:
        assert decoded.mode == "RGB"
        assert min(decoded.getpixel((37, 25))) > 240  # where it is transparent


def test_each_word_names_its_file(photo, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(tmp_path / "deep.png")
    photo.save(tmp_path / "plain.png")
    result = run("encode", tmp_path, "-e", "nano", "--report", tmp_path / "report.csv")
    words = [line for line in result.stderr.splitlines() if "reduced" in line]
    assert words == [
        f"dynenc: {tmp_path / 'deep.png'}: more than 8 bits per channel are reduced to 8"
    ]
    with (tmp_path / "report.csv").open(newline="") as file:
        notes = {row["source"].rpartition("/")[2]: row["note"] for row in csv.DictReader(file)}
    assert notes == {"deep.png": "more than 8 bits per channel are reduced to 8", "plain.png": ""}
    assert run("encode", tmp_path, "-e", "nano", "-fq").stderr == ""


def test_roundtrip_of_a_transparent_image(image, tmp_path):
    kept = tmp_path / "kept.png"
    result = run("roundtrip", image, "-o", kept, "-d", "embedded", "--json")
    assert json.loads(result.stdout)["psnr_db"] > 15
    with Image.open(kept) as decoded:
        assert decoded.mode == "RGBA"


@pytest.mark.parametrize("command", ["decode", "info", "verify"])
def test_bad_chunks(tmp_path, command):
    payload = load_coder("fast", has_trellis=False).encode(np.zeros((4, 1, 1), np.int32), 307)
    path = tmp_path / "bad.lat"
    path.write_bytes(hostile.with_chunks(payload, *hostile.BAD_CHUNKS["alpha of 100 megapixels"]))
    result = run(command, path)
    assert result.exit_code == (1 if command == "verify" else 4)
    assert "chunk alph unpacks to more" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["bad.lat"]


def test_truncated_takes_what_a_cut_file_holds(photo, tmp_path):
    path, lat = tmp_path / "photo.png", tmp_path / "photo.lat"
    photo.save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert run("encode", path, "-e", "nano").exit_code == 3
    result = run("encode", path, "-e", "nano", "--truncated")
    assert (result.exit_code, "truncated or damaged" in result.stderr) == (0, True)
    assert lat.exists()

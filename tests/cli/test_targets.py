import json

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from dynenc.cli.main import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def image(photo_path, tmp_path):
    """A 160x120 piece of a photograph, on disk."""
    path = tmp_path / "photo.png"
    Image.open(photo_path).crop((100, 60, 260, 180)).save(path)
    return path


def test_encode_to_a_size(image):
    result = run("encode", image, "-e", "nano", "--target-size", "0.4KB")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert 388 <= image.with_suffix(".lat").stat().st_size <= 400
    quality = json.loads(run("info", image.with_suffix(".lat"), "--json").stdout)["quality"]
    assert result.stdout.endswith(f"  quality {quality:g}\n")
    again = run("encode", image, "-e", "nano", "-Q", quality, "-f", "--json")
    assert json.loads(again.stdout)["n_bytes_out"] == pytest.approx(400, rel=0.03)
    assert json.loads(again.stdout)["quality"] == quality


def test_roundtrip_to_a_psnr(image):
    result = run("roundtrip", image, "-e", "nano", "-d", "embedded", "--target-psnr", 22, "--json")
    figures = json.loads(result.stdout)
    assert 22 <= figures["psnr_db"] <= 22.3
    assert 0 < figures["quality"] < 50


def test_a_missed_target_is_told_and_no_failure(image):
    result = run("encode", image, "-e", "nano", "--target-size", "3")
    assert result.exit_code == 0
    assert result.stderr == "dynenc: target 3 bytes not reached, closest is 22\n"
    assert run("encode", image, "-e", "nano", "-f", "-q", "--target-size", "3").stderr == ""


def test_a_missed_target_is_a_failure_if_it_is_strict(image):
    result = run("encode", image, "-e", "nano", "--target-size", "3", "--strict")
    assert result.exit_code == 12
    assert "not reached, closest is 22" in result.stderr
    assert not image.with_suffix(".lat").exists()
    met = run("encode", image, "-e", "nano", "--target-size", "400B", "--strict")
    assert (met.exit_code, met.stderr) == (0, "")


def test_the_quality_of_text_has_coarse_steps(tmp_path):
    image = Image.new("RGB", (240, 96), "white")
    for top in range(4, 96, 16):
        ImageDraw.Draw(image).text((6, top), "The five boxing wizards jump quickly.", "navy")
    image.save(tmp_path / "text.png")
    options = ("-e", "nano", "-d", "embedded", "--target-psnr", 21, "--strict", "--json")
    figures = json.loads(run("roundtrip", tmp_path / "text.png", *options).stdout)
    assert 1.03 < figures["psnr_db"] / 21 < 1.08


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quality", "50", "--target-bpp", "0.1"], "cannot be combined"),
        (["--target-psnr", "25", "--target-size", "5KB"], "cannot be combined"),
        (["--target-size", "big"], "is not a size"),
        (["--target-bpp", "0"], "is not a positive"),
        (["--target-psnr", "nan"], "is not a positive"),
    ],
)
def test_targets_that_make_no_sense(image, options, words):
    result = run("encode", image, *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not image.with_suffix(".lat").exists()


def test_folders_meet_targets_too(image):
    for name in ("a", "b"):
        Image.open(image).save(image.parent / f"{name}.png")
    latents = image.parent / "latents"
    arguments = ("encode", image.parent, "-o", latents, "-e", "nano", "--update", "--target-bpp")
    first = run(*arguments, 0.2)
    assert first.exit_code == 0
    sizes = [path.stat().st_size for path in sorted(latents.iterdir())]
    assert all(0.97 * 480 <= size <= 480 for size in sizes)
    assert "0 done" in run(*arguments, 0.2).stderr
    assert "3 done" in run(*arguments, 0.1).stderr
    missed = run(*arguments, 1e-4)
    assert missed.stderr.count("not reached, closest") == 3
    assert "a.png: target" in missed.stderr


def test_an_effort_gives_another_file_that_is_no_larger(image):
    target = image.with_suffix(".lat")
    arguments = ("encode", image, "-e", "nano", "-f", "--effort")
    assert run(*arguments, 0).exit_code == 0
    plain = target.read_bytes()
    result = run(*arguments, 3)
    assert result.exit_code == 0
    assert "effort 3: " in result.stderr
    assert "% less distortion" in result.stderr
    assert target.read_bytes() != plain
    assert len(target.read_bytes()) <= len(plain)
    assert run(*arguments, 10).exit_code == 2


def test_an_effort_for_a_decoder_that_is_not_there(image):
    result = run("encode", image, "--effort", 1, "--tune-for", image.parent / "none")
    assert result.exit_code == 5
    assert not image.with_suffix(".lat").exists()


def test_too_little_memory_fails_one_image_and_not_the_others(image, monkeypatch):
    Image.open(image).crop((0, 0, 8, 8)).save(image.parent / "small.png")
    monkeypatch.setattr("dynenc.refine.free_memory", lambda _: 2e6)
    arguments = ("encode", image.parent, "-e", "nano", "--effort", 1)
    result = run(*arguments, "--jobs", 1)
    assert result.exit_code == 1
    assert "photo.png: the effort needs about" in result.stderr
    assert [path.name for path in image.parent.glob("*.lat")] == ["small.lat"]
    assert run("encode", image, "-e", "nano", "--effort", 1).exit_code == 11

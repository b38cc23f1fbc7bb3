import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from dynenc.cli.main import app
from dynenc.codec import Codec
from dynenc.coding.lat_file import LatFile
from dynenc.evaluation import curves
from dynenc.evaluation.curves import Curve, Evaluation
from dynenc.imaging.detail import has_layer

runner = CliRunner()
PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"
RATES = [0.1, 0.2, 0.3, 0.4]


def run(*arguments):
    return runner.invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two parts of a photograph, a tiny one, a broken one and a text."""
    folder = tmp_path_factory.mktemp("eval")
    photo = Image.open(PHOTO)
    (images := folder / "images").mkdir()
    photo.crop((100, 60, 261, 221)).save(images / "b.png")
    photo.crop((0, 0, 161, 161)).save(images / "a.png")
    photo.crop((0, 0, 20, 30)).save(folder / "tiny.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    (images / "notes.txt").write_text("not an image")
    return folder


def lines_of_text(width, height):
    image = Image.new("RGB", (width, height), "white")
    for y in range(0, height, 16):
        ImageDraw.Draw(image).text((4, y), "The quick brown fox 1234567890", "black")
    return image


def curve(name, values, metric="psnr-rgb", rates=RATES):
    return Curve(name, "", {"q": list(range(len(rates))), "bpp": list(rates), metric: values})


def test_json_is_what_compressai_reads(folder):
    result = run(folder / "images", "-e", "nano", "-Q", 20, "-Q", 60, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows][:2] == ["nano -> embedded", "JPEG"]
    for row in rows:
        points = row["results"]
        assert set(points) == {
            *("q", "bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time"),
        }
        assert len({len(values) for values in points.values()}) == 1
        assert points["bpp"] == sorted(points["bpp"])
        assert points["psnr-rgb"] == sorted(points["psnr-rgb"])
        assert all(0 < value < 1 for value in points["ms-ssim-rgb"])
    assert rows[0]["results"]["q"] == [20, 60]


def test_table_of_several_encoders(folder):
    result = run(folder / "images", "-e", "nano", "-e", "light", "-Q", 50, "--no-others")
    lines = result.stdout.splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:6] == ["codec", "quality", "bpp", "PSNR", "MS-SSIM", "encode, s"]
    assert [row[:2] for row in cells[2:]] == [
        ["nano -> embedded", "50"],
        ["light -> embedded", "50"],
    ]


def test_bad_images_are_left_out_with_a_message(folder, tmp_path):
    for path in (*(folder / "images").iterdir(), folder / "tiny.png", folder / "broken.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    result = run(tmp_path, "-e", "nano", "-Q", 50, "--no-others")
    assert result.exit_code == 1
    assert "broken.png cannot be read as an image" in result.stderr
    assert "tiny.png: skipped, MS-SSIM needs sides of 161 px, not 20x30" in result.stderr
    assert "nano -> embedded" in result.stdout


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_notes_on_images_are_told_once_with_their_names(command, tmp_path):
    frames = [lines_of_text(200, 176), Image.new("RGB", (200, 176), "red")]
    (path := tmp_path / "in" / "a.gif").parent.mkdir()
    frames[0].save(path, save_all=True, append_images=frames[1:])
    options = ["--no-others"] if command == "eval" else ["-o", str(tmp_path / "page.html")]
    options += ["-Q", "30", "-Q", "50", "-e", "nano", "-d", "embedded", "--detail", "off"]
    result = runner.invoke(app, [command, str(path.parent), *options])
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == f"dynenc: {path}: frames after the first are dropped"
    assert f"dynenc: {path}: 100 % of it is text or graphics" in lines[1]
    assert len(lines) == 2
    quiet = ["-q"] if command == "eval" else ["-qf"]
    assert runner.invoke(app, [command, str(path.parent), *options, *quiet]).stderr == ""


def test_folders_without_images(folder, tmp_path):
    for path, words in (
        (tmp_path, "has no image"),
        (tmp_path / "none", "is not a folder"),
        (folder / "tiny.png", "is not a folder"),
    ):
        result = run(path)
        assert result.exit_code == 3
        assert words in result.stderr
        assert result.stdout == ""


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    """The folder of an untrained TAESD."""
    from diffusers import AutoencoderTiny
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    sides = {f"{part}_block_out_channels": (8, 8, 8, 8) for part in ("encoder", "decoder")}
    counts = {f"num_{part}_blocks": (1, 1, 1, 1) for part in ("encoder", "decoder")}
    path = tmp_path_factory.mktemp("latents") / "taesd"
    AutoencoderTiny(**sides, **counts).save_pretrained(path)
    return path


def test_latents_of_another_encoder_and_perceptual_distances(folder, taesd, lpips_path, vgg_path):
    options = ("-e", "nano", "-Q", 50, "--no-others", "--latents-of", taesd)
    options = (folder / "images", *options, "--lpips", lpips_path, "--vgg", vgg_path)
    result = run(*options, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["nano -> embedded", "taesd -> taesd"]
    assert rows[0]["results"]["psnr-rgb"] > rows[1]["results"]["psnr-rgb"]  # untrained
    for name in ("lpips", "lpips-vgg", "dists"):
        assert 0 < rows[0]["results"][name][0] < rows[1]["results"][name][0]
    head = run(*options).stdout.splitlines()[0]
    assert [c.strip() for c in head.split("|")[6:9]] == ["LPIPS-Alex", "LPIPS-VGG", "DISTS"]


@pytest.mark.parametrize("detail", ["off", "on"])
def test_files_of_another_encoder_have_layers_as_asked_for(taesd, tmp_path, monkeypatch, detail):
    lines_of_text(200, 176).save(tmp_path / "a.png")
    blobs, encode = [], Codec.encode

    def kept(*arguments, **options):
        blobs.append(encode(*arguments, **options))
        return blobs[-1]

    monkeypatch.setattr(Codec, "encode", kept)
    options = ("-e", "nano", "-Q", 50, "--no-others", "--latents-of", taesd, "--detail", detail)
    assert run(tmp_path, *options).exit_code == 0
    files = [LatFile.parse(blob) for blob in blobs[-2:]]
    assert [file.model.name for file in files] == ["nano", "imported"]
    assert [has_layer(file) for file in files] == [detail == "on"] * 2


def test_wrong_options_fail_before_anything_is_measured(folder, tmp_path):
    assert run(folder / "images", "--lpips", tmp_path / "none").exit_code == 5
    assert run(folder / "images", "--vgg", tmp_path / "none").exit_code == 5
    assert run(folder / "images", "--latents-of", tmp_path / "none").exit_code == 5
    assert run(folder / "images", "-e", "huge").exit_code == 5
    assert run(folder / "images", "-Q", 101).exit_code == 2


def test_bd_rate_of_half_the_bits():
    pytest.importorskip("bjontegaard")
    one = curve("one", [24.0, 27.0, 28.5, 29.5])
    half = curve("half", [24.0, 27.0, 28.5, 29.5], rates=[rate / 2 for rate in RATES])
    assert curves.bd_rate(half, one, "psnr-rgb") == pytest.approx(-50, abs=0.01)
    assert curves.bd_rate(one, half, "psnr-rgb") == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("metric", ["lpips", "lpips-vgg", "dists"])
def test_bd_rate_by_a_distance_of_half_the_bits(metric):
    pytest.importorskip("bjontegaard")
    one = curve("one", [0.4, 0.3, 0.22, 0.2], metric)
    half = curve("half", [0.4, 0.3, 0.22, 0.2], metric, [rate / 2 for rate in RATES])
    assert curves.bd_rate(half, one, metric) == pytest.approx(-50, abs=0.01)
    rates = json.loads(Evaluation([half], [one], 0).as_json().splitlines()[0])["bd-rate"]
    assert rates[metric]["one"] == pytest.approx(-50, abs=0.01)


def test_bd_rate_of_curves_that_share_nothing():
    pytest.importorskip("bjontegaard")
    low, high = curve("low", [20.0, 21, 22, 23]), curve("high", [30.0, 31, 32, 33])
    assert math.isnan(curves.bd_rate(low, high, "psnr-rgb"))
    flat = curve("flat", [24.0, 24, 24, 24])
    assert math.isnan(curves.bd_rate(flat, low, "psnr-rgb"))
    evaluation = Evaluation([low], [high], 0)
    assert json.loads(evaluation.as_json().splitlines()[0])["bd-rate"] == {
        "psnr-rgb": {"high": None}
    }
    last = evaluation.as_tables().splitlines()[-1]
    assert last.split() == ["|", "low", "|", "PSNR", "|", "-", "|"]


def test_points_that_are_no_gain_do_not_count():
    falling = curve("falling", [24.0, 27.0, 26.9, 28.0])
    assert curves._monotonic(falling, "psnr-rgb") == ([0.1, 0.2, 0.4], [24, 27, 28])


def test_without_the_package_there_are_no_bd_rates(monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda _: None)
    both = Evaluation([curve("one", [1.0, 2, 3, 4])], [curve("two", [1.0, 2, 3, 4])], 0)
    assert "pip install 'dynenc[eval]'" in both.as_tables()
    assert json.loads(both.as_json().splitlines()[0])["bd-rate"] == {}


def test_plot(folder, tmp_path):
    pytest.importorskip("matplotlib")
    options = (folder / "images", "-e", "nano", "-Q", 20, "-Q", 50, "--no-others")
    assert run(*options, "--plot", tmp_path / "out.png").exit_code == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 600
    assert run(*options, "--plot", tmp_path / "out.png").exit_code == 6
    assert run(*options, "--plot", tmp_path / "out.png", "--force").exit_code == 0
    assert run(*options, "--plot", tmp_path / "out.doc").exit_code == 2
    assert run(*options, "--plot", tmp_path / "no" / "out.png").exit_code == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_plot_without_matplotlib_is_refused_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(folder / "images", "--plot", tmp_path / "out.png")
    assert result.exit_code == 2
    assert "pip install 'dynenc[eval]'" in result.stderr


def test_json_has_no_infinity():
    one = curves.Curve("one", "", {"bpp": [1.0, 2.0], "psnr-rgb": [30.0, float("inf")]})
    found = json.loads(curves.Evaluation([one], [], 0).as_json())
    assert found["results"]["psnr-rgb"] == [30.0, None]

"""The page of `dynenc compare`, and the images of `roundtrip --show`."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dynenc.cli import terminal
from dynenc.cli.main import app
from dynenc.imaging import preview

runner = CliRunner()
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def images(page):
    """What stands in a page."""
    found = re.findall(r'<script type="application/json" class="image">(.*?)</script>', page)
    return [json.loads(each) for each in found]


def pixels(version):
    data = base64.b64decode(version["data"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def photo(photo_path, tmp_path):
    """A 75x50 piece of a photograph, on disk."""
    path = tmp_path / "photo.png"
    Image.open(photo_path).crop((100, 60, 175, 110)).save(path)
    return path


def test_qualities_and_codecs_side_by_side(photo, tmp_path):
    page = tmp_path / "page.html"
    options = ["-Q", 20, "-Q", 80, "--codec", "jpeg:30", "--codec", "webp:30"]
    result = run("compare", photo, *options, "-e", "nano", "-d", "embedded", "-o", page)
    assert result.stdout == f"{page}\n"
    [entry] = images(page.read_text())
    assert (entry["name"], entry["width"], entry["height"]) == ("photo.png", 75, 50)
    original, *versions = entry["versions"]
    assert np.array_equal(pixels(original), np.asarray(Image.open(photo)))
    assert [v["name"] for v in versions] == [
        *("nano, quality 20", "nano, quality 80", "jpeg, quality 30", "webp, quality 30")
    ]
    for version in versions:
        assert version["bpp"] == pytest.approx(8 * version["n_bytes"] / (75 * 50))
        error = pixels(version).astype(float) - pixels(original)
        assert version["psnr_db"] == pytest.approx(10 * np.log10(255**2 / (error**2).mean()))
    assert versions[0]["n_bytes"] < versions[1]["n_bytes"]


def test_perceptual_distances_where_their_weights_are_given(photo, tmp_path, lpips_path, vgg_path):
    Image.open(photo).crop((0, 0, 31, 31)).save(tmp_path / "small.png")
    page = tmp_path / "page.html"
    for option, weights, names in (
        ("--lpips", lpips_path, {"lpips"}),
        ("--vgg", vgg_path, {"lpips_vgg", "dists"}),
    ):
        run("compare", photo, photo, "-Q", 0, "-d", "embedded", option, weights, "-fo", page)
        [entry] = images(page.read_text())
        _, equal, coarse = entry["versions"]
        for name in ("lpips", "lpips_vgg", "dists"):
            assert equal[name] == (0 if name in names else None)
            assert coarse[name] is None if name not in names else coarse[name] > 0.001
    run("compare", tmp_path / "small.png", "-d", "embedded", "--vgg", vgg_path, "-fo", page)
    assert images(page.read_text())[0]["versions"][1]["dists"] is None


def test_folders_without_common_names(photo, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(photo, tmp_path / name / f"{name}.png")
    result = run("compare", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "two has the name of an image in" in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_page_asks_the_network_for_nothing(photo, tmp_path):
    run("compare", photo, "-e", "nano", "-d", "embedded", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'; img-src data:" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|https?://|import\s""", page)


def test_files_given_and_names_that_are_code(photo, tmp_path):
    run("encode", photo, "-e", "nano", "-o", tmp_path / "a.lat")
    evil = tmp_path / "<script>alert(1)<!--.png"
    photo.rename(evil)
    page = tmp_path / "page.html"
    run("compare", evil, tmp_path / "a.lat", evil, "-d", "embedded", "-o", page)
    [entry] = images(page.read_text())
    assert entry["name"] == evil.name
    assert [v["name"] for v in entry["versions"]] == ["original", "a.lat", evil.name]
    assert entry["versions"][1]["n_bytes"] == (tmp_path / "a.lat").stat().st_size
    assert "<script>alert" not in page.read_text()


def test_folders_make_a_gallery(photo, tmp_path):
    (folder := tmp_path / "images").mkdir()
    for name in ("b", "a"):
        shutil.copy(photo, folder / f"{name}.png")
    (folder / "damaged.png").write_bytes(b"no image")
    shutil.copy(photo, folder / "c.png")
    run("encode", folder, "-e", "nano", "-o", tmp_path / "latents")
    (cut := tmp_path / "latents" / "c.lat").write_bytes(cut.read_bytes()[:-9])
    page = tmp_path / "page.html"
    result = run("compare", folder, tmp_path / "latents", "-d", "embedded", "-o", page)
    assert result.exit_code == 1
    assert "damaged.png cannot be read" in result.stderr
    assert f"{cut}: the checksum does not match" in result.stderr
    entries = images(page.read_text())
    assert [e["name"] for e in entries] == ["a.png", "b.png"]
    assert [e["versions"][1]["name"] for e in entries] == ["a.lat", "b.lat"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.png"], 3, "does not exist"),
        (["."], 3, "has no image"),
        (["photo.png", "small.png"], 3, "9x9 and 75x50 px"),
        (["photo.png", "."], 2, "cannot compare the file photo.png with the folder ."),
        (["photo.png", "none.lat"], 4, "cannot be read"),
        (
            ["photo.png", "--codec", "gif:3"],
            2,
            "unknown codec 'gif': choose one of jpeg, webp, avif, jxl",
        ),
        (["photo.png", "--codec", "jpeg:300"], 2, "jpeg:300 needs a quality from 0 to 100"),
        (["photo.png", "--codec", "jpeg"], 2, "jpeg needs a quality from 0 to 100"),
        (["photo.png", "--lpips", "none.safetensors"], 5, "LPIPS"),
        (["photo.png", "--vgg", "none.safetensors"], 5, "VGG-16"),
        (["photo.png", "-o", "there.html"], 6, "--force"),
        (["photo.png", "-o", "photo.png", "-f"], 2, "must end in .html, not photo.png"),
        (["photo.png", "-o", "no/page.html"], 7, "cannot be written"),
    ],
)
def test_nothing_is_left_of_a_page_that_fails(photo, monkeypatch, arguments, code, words):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "there.html").write_text("keep")
    if arguments == ["."]:
        photo.unlink()
    else:
        Image.new("RGB", (9, 9)).save("small.png")
    before = {path: path.read_bytes() for path in photo.parent.iterdir()}
    result = run("compare", *arguments, "-e", "nano", "-d", "embedded")
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert {path: path.read_bytes() for path in photo.parent.iterdir()} == before


def browse(page, folder, size, *options):
    """Show a page in a browser window of "width,height"; its standard output."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={size}", "--virtual-time-budget=2000", f"--user-data-dir={folder}"]
    command += [*options, page.as_uri()]
    return subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout


def screenshot(page, folder):
    """A page of 800x600 as a browser draws it."""
    browse(page, folder, "800,600", f"--screenshot={folder / 'shot.png'}")
    return np.asarray(Image.open(folder / "shot.png").convert("RGB")).astype(int)


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [500, 1200])  # a phone, as narrow as Chromium allows, and a desk
def test_all_figures_fit_into_the_window(photo, tmp_path, lpips_path, vgg_path, width):
    page = tmp_path / "page.html"
    weights = ["--lpips", lpips_path, "--vgg", vgg_path]
    (long := tmp_path / f"{'a long name ' * 8}.png").write_bytes(photo.read_bytes())
    run("compare", photo, long, "-Q", 50, *weights, "-d", "embedded", "-o", page)
    script = """show(0); document.title = JSON.stringify([innerWidth,
        document.documentElement.scrollWidth, ...[...document.querySelectorAll("td, .tools > *")]
        .map(e => e.getBoundingClientRect().right)].map(Math.round));"""
    page.write_text(page.read_text().replace("\nshow(0);", f"\n{script}"))
    dom = browse(page, tmp_path / "profile", f"{width},800", "--dump-dom")
    window, scrolled, *right = json.loads(re.search("<title>(.*?)</title>", dom)[1])
    assert scrolled == window == width
    assert len(right) == 2 * 7 + 5  # no MS-SSIM of so small an image
    assert max(right) <= width, right


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_browser_shows_both_sides_and_their_difference(tmp_path):
    Image.new("RGB", (300, 200), (200, 40, 40)).save(tmp_path / "red.png")
    Image.new("RGB", (300, 200), (40, 40, 100)).save(tmp_path / "blue.png")
    page = tmp_path / "page.html"
    run("compare", tmp_path / "red.png", tmp_path / "blue.png", "-o", page, "-d", "embedded")
    shot = screenshot(page, tmp_path)
    red, blue = ((abs(shot - c).max(2) < 3).nonzero() for c in ([200, 40, 40], [40, 40, 100]))
    assert len(red[0]) > 10_000
    assert len(blue[0]) > 10_000
    assert max(red[1]) <= 402
    assert min(blue[1]) >= 398
    page.write_text(page.read_text().replace("\nshow(0);", '\nshow(0); $("difference").click();'))
    shot = screenshot(page, tmp_path)
    assert (abs(shot - [255, 0, 240]).max(2) < 3).sum() > 20_000  # 4 times (160, 0, 60)


def test_small_images_for_a_terminal(photo):
    image = Image.open(photo).convert("RGB")
    both = preview.side_by_side(image, image, columns=60)
    assert both.size == (2 * 29 + 2, 20)
    left, right = both.crop((0, 0, 29, 20)), both.crop((31, 0, 60, 20))
    assert left.tobytes() == right.tobytes()
    for size in ((1, 3000), (3000, 1), (1, 1)):
        tiny = Image.new("RGB", size)
        assert preview.side_by_side(tiny, tiny, columns=2).height in range(2, 82, 2)
    text = terminal.half_blocks(both)
    assert len(text.plain.splitlines()) == 10
    assert text.plain.count("\u2580") == 60 * 10


def test_show_needs_a_terminal(photo):
    result = run("roundtrip", photo, "--show", "-e", "nano", "-d", "embedded")
    assert result.exit_code == 0
    assert result.stderr == "dynenc: no preview: --show needs a terminal with colours\n"
    assert "\u2580" not in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals here")
def test_show_in_a_terminal(photo):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dynenc", "roundtrip", photo, "--show", "-d", "embedded"]
    env = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "60"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert shown.decode().count("\u2580") == 600
    assert b"38;2;" in shown

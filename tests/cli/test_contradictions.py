"""Options that contradict each other are refused in one sentence; nothing is written."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dynenc.cli.main import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(photo_path, tmp_path, monkeypatch):
    """The current folder, with an image and its .lat file."""
    monkeypatch.chdir(tmp_path)
    Image.open(photo_path).crop((100, 60, 140, 100)).save("a.png")
    assert run("encode", "a.png", "-e", "nano").exit_code == 0
    return tmp_path


CONTRADICTIONS = [
    "decode a.lat -o x.png --suffix jpg",
    "roundtrip a.png -o x.webp --suffix .png",
    "encode a.png -o x.lat --suffix bin",
    "export a.lat --to comfy -o x.npz",
    "encode a.png --suffix jpg",
    "encode a.png a.png --suffix .PNG -o out",
    "encode a.png -o x.jpg",
    "decode a.lat --suffix a/../../x",
    "decode a.lat --suffix .",
    "encode a.png -o x.tar",
    "encode a.png -o x.zip",
    "encode a.png a.lat -o x.tar",
    "encode a.png -o - --shard-size 2",
    "encode a.png --shard-size 2",
    "encode a.png -f --update",
    "encode a.png -f -Q 50 --target-bpp 1",
    "encode a.png -f --strict",
    "encode a.png -f -Q 50 --strict",
    "encode a.png -f --address auto",
    "encode a.png -f --quiet --verbose",
    "roundtrip a.png --suffix jpg",
    "roundtrip a.png --keep-mtime",
    "roundtrip a.png --name keep",
    "roundtrip a.png --update",
    "roundtrip a.png --show --quiet",
    "roundtrip a.png --show --json",
]


@pytest.mark.parametrize("command", CONTRADICTIONS)
def test_contradictions_are_refused(folder, command):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = run(*command.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("dynenc: ")
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("command", "target", "form"),
    [
        ("decode a.lat -o x.jpeg --suffix jpg", "x.jpeg", "JPEG"),
        ("decode a.lat -o x.JPG --suffix .jpg", "x.JPG", "JPEG"),
        ("decode a.lat -o x.tif --suffix tiff", "x.tif", "TIFF"),
        ("decode a.lat -o bare --suffix webp", "bare", "WEBP"),
        ("roundtrip a.png -e nano -o x.webp --suffix WEBP", "x.webp", "WEBP"),
    ],
)
def test_what_agrees_is_done(folder, command, target, form):
    result = run(*command.split(), "-d", "embedded")
    assert result.exit_code == 0, result.stderr
    with Image.open(folder / target) as image:
        assert image.format == form


def test_a_single_file_is_packed_into_a_folder_of_shards(folder):
    assert run("encode", "a.png", "-e", "nano", "-o", "out", "--shard-size", 2).exit_code == 0
    assert [path.name for path in (folder / "out").iterdir()] == ["000000.tar"]


def test_latents_are_exported_in_the_format_of_the_name(folder):
    """By the library; the command always names a format."""
    import dynenc

    dynenc.convert("export", folder / "a.lat", folder / "x.npz")
    with np.load(folder / "x.npz") as arrays:
        assert any(name.startswith("latents") for name in arrays)

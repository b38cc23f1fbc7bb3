"""Reports are continued, never lost; and what the last line says of skipped outputs."""

import csv
import json
import signal

import pytest
from imaging.test_graphics import screen
from PIL import Image
from typer.testing import CliRunner

from dynenc.cli.main import app
from dynenc.io.writing import writing

runner = CliRunner()


def run(*arguments, code=0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture
def images(tmp_path):
    (folder := tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16), "green").save(folder / f"{name}.png")
    return folder


def rows(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_resumed_run_keeps_what_the_report_says(images, tmp_path, name):
    report = tmp_path / name
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    run(*arguments, "--report", report)
    first = rows(report)
    assert [row["status"] for row in first] == ["done", "done"]
    assert float(first[0]["bpp"]) > 0
    Image.new("RGB", (16, 16), "red").save(images / "c.png")
    (images / "a.png").unlink()
    run(*arguments, "--report", report)
    second = rows(report)
    assert second[0] == first[1]
    assert (second[1]["source"], second[1]["status"]) == (str(images / "c.png"), "done")
    assert second[2] == first[0]
    run(*arguments, "--report", report, "--force")
    assert [row["source"] for row in rows(report)] == [f"{images}/b.png", f"{images}/c.png"]


def test_figures_that_nobody_measured_are_empty(images, tmp_path):
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    run(*arguments)
    run(*arguments, "--report", tmp_path / "r.csv")
    assert {row["bpp"] for row in rows(tmp_path / "r.csv")} == {""}


def test_json_has_no_infinity(tmp_path):
    """The PSNR of an image without visible pixels."""
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.png")
    report = tmp_path / "r.jsonl"
    line = run("roundtrip", tmp_path / "a.png", "--json", "--report", report).stdout
    for text in (line, report.read_text()):
        assert json.loads(text, parse_constant=pytest.fail)["psnr_db"] is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("r.csv", "name,age\nme,7\n"), ("r.csv", "x"), ("r.jsonl", "[1]\n")),
        *(("r.jsonl", "no JSON"), ("r.jsonl", '{"source": "a.png", "target": "a.lat"}\n')),
    ],
)
def test_another_file_is_no_report(images, tmp_path, name, text):
    (report := tmp_path / name).write_text(text)
    result = run("encode", images, "-e", "nano", "-j", 1, "--report", report, code=6)
    assert "is not a report of this command" in result.stderr
    assert report.read_text() == text
    assert not (images / "a.lat").exists()
    run("encode", images, "-e", "nano", "-j", 1, "--report", report, "--force")
    assert len(rows(report)) == 2


@pytest.mark.parametrize("change", [{"source": ["a"]}, {"psnr_db": 30.0}])
def test_rows_of_another_kind_are_no_report(images, tmp_path, change):
    report = tmp_path / "r.jsonl"
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    run(*arguments, "--report", report)
    text = json.dumps(rows(report)[0] | change) + "\n"
    report.write_text(text)
    run(*arguments, "--report", report, code=6)
    assert report.read_text() == text


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files have no limit of size here")
def test_a_report_that_cannot_be_written_is_none(images, tmp_path):
    import resource

    for number in range(60):
        Image.new("RGB", (8, 8)).save(images / f"{number}{'x' * 200}.png")
    (report := tmp_path / "reports" / "r.csv").parent.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        result = run("encode", images, "-e", "nano", "-j", 1, "--report", report, code=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "r.csv cannot be written" in result.stderr
    assert not list(report.parent.iterdir())


def test_what_a_killed_run_left_of_a_report_is_removed(images, tmp_path):
    (folder := tmp_path / "reports").mkdir()
    with writing(str(folder / "r.csv"), overwrite=True):
        [left] = folder.iterdir()
        data = left.name
    (folder / data).touch()
    run("encode", images, "-e", "nano", "-j", 1, "--report", folder / "r.csv")
    assert [each.name for each in folder.iterdir()] == ["r.csv"]


def test_a_run_that_fails_at_once_leaves_the_report(images, tmp_path):
    report = tmp_path / "r.csv"
    run("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1, "--report", report)
    before = rows(report)
    run("encode", tmp_path / "none", "--report", report, code=3)
    assert [row["status"] for row in rows(report)] == ["failed", "done", "done"]
    assert rows(report)[1:] == before


def test_skipped_outputs_of_other_settings_are_told(images, tmp_path):
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    run(*arguments)
    assert "other settings" not in run(*arguments).stderr
    told = run(*arguments, "-Q", 70).stderr
    assert "2 of the skipped outputs were made with other settings; --update" in told


def test_names_and_times_can_be_kept(images, tmp_path):
    Image.new("RGB", (16, 16)).save(images / "a.jpg")
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    assert "--name keep" in run(*arguments, code=2).stderr
    run(*arguments, "--name", "keep", "--keep-mtime")
    written = tmp_path / "out" / "a.jpg.lat"
    assert abs(written.stat().st_mtime - (images / "a.jpg").stat().st_mtime) < 1e-3


def test_images_that_cannot_be_opened_are_named(images, tmp_path):
    (images / "raw.CR2").write_bytes(b"II")
    (images / "notes.txt").write_text("")
    arguments = ("encode", images, "-o", tmp_path / "out", "-e", "nano", "-j", 1)
    result = run(*arguments, "--report", tmp_path / "r.csv", "-v")
    assert "raw.CR2 ignored: raw sensor data" in result.stderr
    assert "2 ignored" in result.stderr
    (row,) = [row for row in rows(tmp_path / "r.csv") if row["status"] == "ignored"]
    assert row["note"].startswith("raw sensor data")
    (tmp_path / "raws").mkdir()
    (images / "raw.CR2").rename(tmp_path / "raws" / "raw.CR2")
    assert "develop it first" in run("encode", tmp_path / "raws", code=3).stderr


def test_illegible_text_is_told_once_and_stands_in_every_row(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for name in "abc":
        screen().save(folder / f"{name}.png")
    report = tmp_path / "report.jsonl"
    result = run("encode", folder, "-e", "nano", "-j", 1, "--detail", "off", "--report", report)
    assert result.stderr.count("100 % of it is text or graphics") == 1
    assert "not be legible in 2 more images" in result.stderr
    found = rows(report)
    assert all("use --detail auto" in row["note"] for row in found)
    alone = run("encode", folder / "a.png", "-e", "nano", "-f", "--detail", "off")
    assert alone.stderr.startswith(f"dynenc: {folder / 'a.png'}: 100 % of it is text")


def test_a_layer_of_the_whole_image_needs_no_decoder(tmp_path):
    screen().save(tmp_path / "a.png")
    run("encode", tmp_path / "a.png", "-e", "light-sdxl", "-o", tmp_path / "a.lat")
    decode = ("decode", tmp_path / "a.lat", "-o", tmp_path / "b.png", "-d", "fine", "-u")
    assert run(*decode).stdout
    assert not run(*decode).stdout  # skipped

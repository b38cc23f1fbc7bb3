import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import dynenc
from dynenc.cli.main import app

runner = CliRunner()


def run(*arguments, code=0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def sentence(*arguments, code):
    """The one line on stderr of a command that failed before it did anything."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def encode(*arguments, code=0):
    return run("encode", *arguments, "-e", "nano", "-j", 1, code=code)


def decode(*arguments, code=0):
    return run("decode", *arguments, "-d", "embedded", "-j", 1, code=code)


@pytest.fixture
def photos(photo_path, tmp_path):
    """A folder of three images, one of them in a sub-folder, and a text."""
    (folder := tmp_path / "photos").mkdir()
    (folder / "sub").mkdir()
    photo = Image.open(photo_path).convert("RGB")
    photo.crop((100, 60, 140, 84)).save(folder / "a.png")
    photo.crop((120, 60, 160, 90)).save(folder / "b.JPG")
    photo.crop((140, 60, 164, 84)).save(folder / "sub" / "c.webp")
    (folder / "notes.txt").write_text("no image")
    return folder


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_to_a_folder(photos, tmp_path):
    result = encode(photos, "-o", tmp_path / "new" / "out")
    assert tree(tmp_path / "new" / "out") == ["a.lat", "b.lat"]
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / "new" / "out" / name) for name in ("a.lat", "b.lat")
    ]
    assert "2 done, 0 failed, 0 skipped, 1 ignored" in result.stderr


def test_sub_folders_are_kept_and_come_back(photos, tmp_path):
    encode(photos, "-r", "-o", tmp_path / "lat")
    assert tree(tmp_path / "lat") == ["a.lat", "b.lat", "sub/c.lat"]
    decode(tmp_path / "lat", "-r", "-o", tmp_path / "back", "--suffix", "webp")
    assert tree(tmp_path / "back") == ["a.webp", "b.webp", "sub/c.webp"]
    with Image.open(tmp_path / "back" / "b.webp") as image:
        assert image.size == (40, 30)


def test_beside_the_images(photos):
    encode(photos)
    assert tree(photos) == ["a.lat", "a.png", "b.JPG", "b.lat", "notes.txt", "sub/c.webp"]


def test_a_folder_gives_the_bytes_that_single_files_give(photos, tmp_path):
    encode(photos, "-o", tmp_path / "out")
    encode(photos / "a.png", "-o", tmp_path / "a.lat")
    assert (tmp_path / "a.lat").read_bytes() == (tmp_path / "out" / "a.lat").read_bytes()


def test_several_files_and_patterns(photos, tmp_path):
    encode(photos / "a.png", photos / "sub" / "*", "-o", tmp_path / "out")
    assert tree(tmp_path / "out") == ["a.lat", "c.lat"]
    encode(str(photos / "**" / "*"), "-o", tmp_path / "all")
    assert tree(tmp_path / "all") == ["a.lat", "b.lat", "c.lat"]


def test_one_file_into_a_folder(photos, tmp_path):
    (tmp_path / "out").mkdir()
    encode(photos / "a.png", "-o", tmp_path / "out")
    assert tree(tmp_path / "out") == ["a.lat"]


def test_include_and_exclude(photos, tmp_path):
    encode(photos, "-r", "-o", tmp_path / "1", "--include", "*.png", "--include", "sub/*")
    assert tree(tmp_path / "1") == ["a.lat", "sub/c.lat"]
    encode(photos, "-r", "-o", tmp_path / "2", "--exclude", "*.png")
    assert tree(tmp_path / "2") == ["b.lat", "sub/c.lat"]


def test_dry_run_tells_that_an_output_exists(photos):
    encode(photos / "a.png")
    assert "a.lat exists" in encode(photos / "a.png", "--dry-run", code=6).stderr


def test_dry_run_touches_nothing(photos, tmp_path):
    before = tree(tmp_path)
    result = encode(photos, "-r", "-o", tmp_path / "out", "--dry-run")
    assert result.stdout.splitlines()[2] == f"{photos}/sub/c.webp -> {tmp_path}/out/sub/c.lat"
    assert "3 to do, 0 skipped, 1 ignored" in result.stderr
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_quiet(photos, tmp_path):
    result = encode(photos, "-o", tmp_path / "out", "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_finished_outputs_are_left_alone(photos, tmp_path):
    encode(photos, "-o", tmp_path / "out")
    (tmp_path / "out" / "a.lat").unlink()
    (tmp_path / "out" / "b.lat").write_bytes(b"keep")
    result = encode(photos, "-o", tmp_path / "out", code=1)
    assert "1 done, 1 failed, 0 skipped" in result.stderr
    assert "b.lat exists, and has no record of being made by this command" in result.stderr
    assert (tmp_path / "out" / "b.lat").read_bytes() == b"keep"
    encode(photos, "-o", tmp_path / "out", "--force")
    assert (tmp_path / "out" / "b.lat").read_bytes() != b"keep"


def test_one_file_can_be_skipped_too(photos):
    encode(photos / "a.png")
    encode(photos / "a.png", code=6)
    result = encode(photos / "a.png", "--skip-existing")
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_update_makes_again_what_is_old_damaged_or_of_other_settings(photos, tmp_path):
    out = tmp_path / "out"

    def update(*options):
        return encode(photos, "-r", "-o", out, "--update", *options).stderr.split(" done")[0]

    assert update() == "dynenc: 3"
    assert update() == "dynenc: 0"
    os.utime(photos / "a.png", (time.time() + 60,) * 2)
    assert update() == "dynenc: 1"
    assert update() == "dynenc: 1"  # its output is still older: the input is from the future
    time.sleep(0.05)  # file systems keep coarse clocks
    os.utime(photos / "a.png", (1e9, 1e9))
    (out / "b.lat").write_bytes((out / "b.lat").read_bytes()[:-3])
    assert update() == "dynenc: 2"  # a.png changed: perhaps an older file took its name
    assert update("-Q", 70) == "dynenc: 3"
    assert update("-Q", 70) == "dynenc: 0"


def test_update_knows_which_decoder_made_an_image(photos, tmp_path):
    encode(photos, "-o", tmp_path / "lat")
    for suffix in ("png", "jpg", "webp", "tif", "avif"):
        arguments = (tmp_path / "lat", "-o", tmp_path / suffix, "--suffix", suffix, "--update")
        assert "2 done" in decode(*arguments).stderr
        assert "0 done" in decode(*arguments).stderr
    with Image.open(tmp_path / "png" / "a.png") as image:
        assert image.getexif()[0x0131] == "dynenc, decoder embedded"
        image.save(tmp_path / "png" / "a.png", exif=b"")
    result = decode(tmp_path / "lat", "-o", tmp_path / "png", "--update", code=1)
    assert "0 done, 1 failed" in result.stderr  # it might be anyone's


def test_flags_that_exclude_each_other(photos):
    assert "choose one" in sentence("encode", photos, "--force", "--update", code=2)


def test_a_bad_file_does_not_stop_the_others(photos, tmp_path):
    (photos / "bad.png").write_text("no image")
    report = tmp_path / "report.csv"
    result = encode(photos, "-o", tmp_path / "out", "--report", report, code=1)
    assert tree(tmp_path / "out") == ["a.lat", "b.lat"]
    assert "bad.png" in result.stderr.splitlines()[0]
    assert "2 done, 1 failed" in result.stderr
    rows = {
        Path(row["source"]).name: row for row in csv.DictReader(report.read_text().splitlines())
    }
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "done",
        "b.JPG": "done",
        "bad.png": "failed",
    }
    assert "bad.png" in rows["bad.png"]["reason"]
    assert int(rows["a.png"]["n_bytes_out"]) == (tmp_path / "out" / "a.lat").stat().st_size


def test_roundtrip_prints_a_table_and_the_means(photos, tmp_path):
    report = tmp_path / "report.jsonl"
    options = ("-d", "embedded", "-e", "nano", "-j", 1, "-r", "--report", report)
    result = run("roundtrip", photos, *options)
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[-1] == "image"
    assert lines[-1].endswith("mean of 3 images, each counted once")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    mean = sum(row["psnr_db"] for row in rows) / 3
    assert f"{mean:.2f} dB" in lines[-1]
    objects = run("roundtrip", photos, *options, "--json").stdout.splitlines()
    assert len(objects) == 3
    assert json.loads(objects[0])["encoder"] == "nano"
    run("roundtrip", photos, *options, "-o", tmp_path / "kept")
    assert tree(tmp_path / "kept") == ["a.png", "b.png", "sub/c.png"]


def test_workers_say_which_decoder_auto_is(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("DYNENC_SD_VAE", raising=False)
    encode(photos, "-r", "-o", tmp_path / "lat")
    result = run("decode", tmp_path / "lat", "-r", "-o", tmp_path / "back", "-j", 2, "-v")
    assert "decoder: embedded" in result.stderr
    assert "3 done" in result.stderr


def test_a_roundtrip_names_the_decoder_of_the_encoders_space(photos):
    result = run("roundtrip", photos, "-e", "light-sdxl", "-j", 2, "-v")
    assert "decoder: embedded-sdxl, " in result.stderr


# tar shards


@pytest.fixture
def shard(photos, tmp_path):
    """A tar with two samples, one of them broken, and a text for each."""
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "text").write_text("a label")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(photos / "a.png", "0/a.png")
        tar.add(tmp_path / "text", "0/a.cls")
        tar.add(tmp_path / "broken.png", "0/b.png")
        tar.add(tmp_path / "text", "0/b.cls")
        tar.add(photos / "b.JPG", "0/c.v1.jpg")
    return tmp_path / "s.tar"


def members(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_a_shard_to_a_shard_and_back(shard, photos, tmp_path):
    result = encode(shard, "-o", tmp_path / "lat" / "t.tar", code=1)
    assert members(tmp_path / "lat" / "t.tar") == ["0/a.lat", "0/a.cls", "0/b.cls", "0/c.v1.lat"]
    assert f"{shard}/0/b.png" in result.stderr.splitlines()[0]
    assert "2 done, 1 failed" in result.stderr
    encode(photos / "a.png", "-o", tmp_path / "a.lat")
    with tarfile.open(tmp_path / "lat" / "t.tar") as tar:
        assert tar.extractfile("0/a.lat").read() == (tmp_path / "a.lat").read_bytes()
    decode(tmp_path / "lat", "-o", tmp_path / "back")
    assert members(tmp_path / "back" / "t.tar") == ["0/a.png", "0/a.cls", "0/b.cls", "0/c.v1.png"]
    assert "0 done" in decode(tmp_path / "lat", "-o", tmp_path / "back", "--update").stderr


def test_batches_keep_samples_together(shard, tmp_path):
    for size in (1, 4):
        encode(shard, "-o", tmp_path / f"{size}.tar", "--batch-size", size, code=1)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "4.tar").read_bytes()


def test_a_folder_is_packed_into_shards(photos, tmp_path):
    encode(photos, "-r", "-o", tmp_path / "out", "--shard-size", 2)
    assert tree(tmp_path / "out") == ["000000.tar", "000001.tar"]
    assert members(tmp_path / "out" / "000000.tar") == ["a.lat", "b.lat"]
    assert members(tmp_path / "out" / "000001.tar") == ["sub/c.lat"]
    again = encode(photos, "-r", "-o", tmp_path / "out", "--shard-size", 2)
    assert "2 skipped" in again.stderr


def test_a_name_that_comes_twice_in_a_shard_is_left_out_and_named(photos, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.png", "a.jpg", "a.cls", "a.cls"):
            tar.add(photos / "a.png", name)
    result = encode(tmp_path / "s.tar", "-o", tmp_path / "out", code=1)
    assert members(tmp_path / "out" / "s.tar") == ["a.lat", "a.cls"]
    assert "1 done, 2 failed" in result.stderr
    assert "s.tar/a.jpg: the shard already holds a.lat" in result.stderr


def test_a_disk_that_is_full_within_a_shard_ends_the_run(shard, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    result = encode(shard, "-o", tmp_path / "out", code=7)
    assert "No space left" in result.stderr
    assert tree(tmp_path / "out") == []


def test_a_damaged_shard_leaves_nothing(shard, tmp_path):
    shard.write_bytes(shard.read_bytes()[:3000])
    result = encode(shard, "-o", tmp_path / "out", code=1)
    assert f"{shard} cannot be read as a tar" in result.stderr
    assert tree(tmp_path / "out") == []


# bad input


def test_an_empty_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    assert "-r includes sub-folders" in sentence("encode", tmp_path, code=3)
    assert "is empty" in sentence("encode", tmp_path, "-r", code=3)
    (tmp_path / "notes.txt").write_text("")
    assert "none of the 1 files are images" in sentence("encode", tmp_path, code=3)
    assert "none of the 1 files are .lat files" in sentence("decode", tmp_path, code=4)


def test_a_pattern_that_fits_nothing(tmp_path):
    assert "does not exist" in sentence("encode", tmp_path / "*.png", code=3)


def test_an_unreadable_sub_folder(photos, tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = encode(photos, "-r", "-o", tmp_path / "out", code=1)
    assert "sub cannot be read" in result.stderr
    assert tree(tmp_path / "out") == ["a.lat", "b.lat"]
    assert "Permission denied" in sentence("encode", photos / "sub", code=3)


def test_no_space_left_ends_the_run(photos, tmp_path, monkeypatch):
    numbers, both_write = itertools.count(), threading.Barrier(2)

    def full(_):
        number = next(numbers)
        both_write.wait(60)
        time.sleep(0.3 * number)  # the second is still at it when the first has failed
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = encode(photos, "-o", tmp_path / "out", code=7)
    assert result.stderr.count("No space left") == 1
    assert tree(tmp_path / "out") == []


def test_a_run_removes_what_killed_ones_left(photos, tmp_path):
    (tmp_path / "out").mkdir()
    program = (
        "import sys, time; from dynenc.io.writing import writing\n"
        "with writing(sys.argv[1], False): print(flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "out" / "x.lat"], stdout=subprocess.PIPE
    )
    child.stdout.readline()

    def die_late(_, summary):  # it was alive when the run began
        if child.returncode is None:
            assert any(name.endswith(".partial") for name in tree(tmp_path / "out"))
        child.kill()
        child.wait()
        child.stdout.close()

    dynenc.convert("encode", photos, tmp_path / "out", encoder="nano", jobs=1, on_result=die_late)
    assert tree(tmp_path / "out") == ["a.lat", "b.lat"]


def test_a_name_that_ends_with_a_slash_is_a_folder_to_make(photos, tmp_path):
    encode(photos / "a.png", "-o", f"{tmp_path}/new/folder/")
    assert tree(tmp_path / "new") == ["folder/a.lat"]
    assert "No such file" in sentence(
        "encode", photos / "a.png", "-o", tmp_path / "n/a.lat", code=7
    )


def test_an_output_inside_the_input_is_no_input(photos):
    for _ in range(2):
        options = ("-d", "embedded", "-e", "nano", "-j", 1, "-r", "-q")
        run("roundtrip", photos, "-o", photos / "out", *options, "--force")
    assert tree(photos / "out") == ["a.png", "b.png", "sub/c.png"]


def test_an_output_that_is_its_own_input(photos):
    (photos.parent / "link").symlink_to(photos)
    for same in (photos, f"{photos}/sub/..", os.path.relpath(photos), photos.parent / "link"):
        assert "is an input" in sentence("roundtrip", photos, "-o", same, "--force", code=2)


def test_two_inputs_for_one_output(photos):
    (photos / "a.jpg").write_bytes((photos / "a.png").read_bytes())
    line = sentence("encode", photos, code=2)
    assert f"{photos}/a.jpg and {photos}/a.png would both become {photos}/a.lat" in line
    line = sentence("encode", photos / "a.png", f"{photos}/sub/../a.jpg", code=2)
    assert f"{photos}/a.png and {photos}/sub/../a.jpg would both become" in line


def test_a_file_where_a_folder_must_be(photos, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in sentence("encode", photos, "-o", tmp_path / "file", code=7)
    line = sentence("encode", photos, "-o", tmp_path / "file" / "x", code=7)
    assert "cannot be created" in line
    assert "standard output" in sentence("encode", photos, "-o", "-", code=2)
    assert "cannot be combined" in sentence("encode", "-", photos, code=2)


def test_names_of_4000_characters(photos, tmp_path):
    long = "a" * 4000
    assert "name too long" in sentence("encode", photos / long, code=3)
    result = encode(photos, photos / f"{long}.png", "-o", tmp_path / "out", code=1)
    assert tree(tmp_path / "out") == ["a.lat", "b.lat"]
    assert len(result.stderr.splitlines()) == 2
    assert "name too long" in sentence("encode", photos, "-o", tmp_path / long, code=7).lower()


def test_names_that_are_not_utf8(photos, tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    (photos / "a.png").rename(photos / name)
    report = tmp_path / "report.csv"
    result = encode(photos, "--report", report)
    assert b"\xff\xfe.lat" in result.stdout_bytes
    assert b"\xff\xfe.lat" in report.read_bytes()
    assert (photos / os.fsdecode(b"\xff\xfe.lat")).exists()


def test_a_url_without_its_extra(photos, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.url_to_fs", missing)
    assert "pip install 'dynenc[s3]'" in sentence("encode", photos, "-o", "s3://b/x", code=2)
    assert "pip install 'dynenc[s3]'" in sentence("encode", "s3://b/x.png", code=2)


def test_ray_that_is_not_installed(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = sentence("encode", photos, "-o", tmp_path / "out", "--engine", "ray", code=9)
    assert "pip install 'dynenc[ray]'" in line


def test_a_report_of_an_unknown_kind(photos, tmp_path):
    line = sentence("encode", photos, "--report", tmp_path / "r.xls", code=2)
    assert ".csv or .jsonl" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_whole_files_and_goes_on(photos, tmp_path, number):
    many, out = tmp_path / "many", tmp_path / "out"
    many.mkdir()
    for i in range(300):
        (many / f"{i:03}.png").write_bytes((photos / "a.png").read_bytes())
    command = [sys.executable, "-m", "dynenc", "encode", many, "-o", out, "-e", "nano", "-j", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    for _ in range(20):
        process.stdout.readline()
    start = time.monotonic()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    process.wait()
    assert time.monotonic() - start < 5  # two seconds, on a machine that is not busy
    _, words = process.communicate()  # once the workers have ended, too
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (b"interrupted" in words) == (number == signal.SIGINT)
    if number == signal.SIGINT:
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
    expected = encode_one(photos / "a.png", tmp_path)
    finished = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert 20 <= len(finished) < 300
    assert {path.read_bytes() for path in finished} == {expected}
    result = encode(many, "-o", out)
    assert "0 failed" in result.stderr
    assert tree(out) == [f"{i:03}.lat" for i in range(300)]
    assert {path.read_bytes() for path in out.iterdir()} == {expected}


def encode_one(image, folder):
    encode(image, "-o", folder / "one.lat")
    return (folder / "one.lat").read_bytes()


def test_a_report_is_continued_and_nothing_else_is_overwritten(photos, tmp_path):
    report = tmp_path / "report.csv"
    out = tmp_path / "out"
    encode(photos, "-o", out, "--report", report)
    with report.open(newline="") as file:
        first = {row["source"]: row for row in csv.DictReader(file)}
    (out / "a.lat").unlink()
    encode(photos, "-o", out, "--report", report)
    with report.open(newline="") as file:
        second = {row["source"]: row for row in csv.DictReader(file)}
    assert second == first
    report.write_text("what somebody wrote")
    result = encode(photos, "-o", out, "--report", report, code=6)
    assert "is not a report of this command" in result.stderr
    assert report.read_text() == "what somebody wrote"
    encode(photos, "-o", out, "--report", report, "--force")
    with report.open(newline="") as file:
        assert {row["source"] for row in csv.DictReader(file)} == set(first)

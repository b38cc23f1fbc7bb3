"""What goes wrong around dynenc: nothing is lost, nothing is half-written, and a word is said."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import hostile
from PIL import Image
from typer.testing import CliRunner

from dynenc.batch.verify import info_file
from dynenc.cli.main import app
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.entropy import load_coder
from dynenc.errors import BitstreamError, OutputError, OutputExists
from dynenc.io.writing import writing

runner = CliRunner()
OLD, NEW = b"old" * 30_000, b"new" * 40_000

WRITER = """
import sys
from dynenc.io.writing import writing
target, data = sys.argv[1], [b"old" * 30_000, b"new" * 40_000]
print("ready", flush=True)
while True:
    for each in data:
        with writing(target, overwrite=True) as file:
            file.write(each)
"""
ENCODER = [sys.executable, "-m", "dynenc", "encode", "-e", "nano", "--device", "cpu"]


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def write(target, data, overwrite):
    """Write a file the way the commands do."""
    with writing(str(target), overwrite) as file:
        file.write(data)


def sentence(result, code):
    """The one line on stderr of a command that failed as it should."""
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    return result.stderr


@pytest.fixture
def image(photo_path, tmp_path):
    """A 75x50 piece of a photograph, on disk."""
    path = tmp_path / "photo.png"
    Image.open(photo_path).crop((100, 60, 175, 110)).save(path)
    return path


@pytest.fixture
def lat(photo_path, tmp_path):
    """A file whose image takes 200 kB as PNG."""
    path = tmp_path / "large.lat"
    assert run("encode", photo_path, "-e", "nano", "-o", path).exit_code == 0
    return path


def killed_writers(folder, kills):
    """Kill a process that writes one file again and again; the file is whole every time."""
    target = folder / "out.lat"
    target.write_bytes(OLD)
    seen = set()
    for seed in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.Random(seed).uniform(0, 0.05))
            process.kill()
        seen.add(target.read_bytes())
        assert seen <= {OLD, NEW}
    return sorted(path.name for path in folder.iterdir() if path != target)


def test_sigkill_while_writing_leaves_the_old_or_the_new_file(tmp_path):
    left = killed_writers(tmp_path, 2)
    assert all(name.startswith(".dynenc-") and name.endswith(".partial") for name in left)


@pytest.mark.slow
def test_sigkill_many_times(tmp_path):
    print(len(killed_writers(tmp_path, 100)), "partial files left by 100 kills")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_encode_keeps_what_was_there(image, tmp_path, sign):
    """Stopped at any time of its run: the old file or the new one, and no other."""
    (whole := tmp_path / "whole.lat").write_bytes(b"")
    subprocess.run([*ENCODER, image, "-o", whole, "-f", "-q"], check=True)
    target = tmp_path / "out.lat"
    start = time.perf_counter()
    subprocess.run([*ENCODER, image, "-o", target, "-q"], check=True)
    takes = time.perf_counter() - start
    for part in np.linspace(0.05, 1.1, 15):
        target.write_bytes(OLD)
        process = subprocess.Popen(
            [*ENCODER, image, "-o", target, "-f", "-q"], stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(part * takes)
        process.send_signal(sign)
        process.wait()
        assert target.read_bytes() in (OLD, whole.read_bytes())
        left = [path for path in tmp_path.iterdir() if path.suffix == ".partial"]
        assert sign == signal.SIGKILL or not left


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_writing_leaves_a_whole_file_or_none(image, tmp_path, monkeypatch, sign):
    monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(sign))
    before = signal.getsignal(signal.SIGTERM)
    assert "interrupted" in sentence(run("encode", image, "-e", "nano"), 130)
    assert signal.getsignal(signal.SIGTERM) == before
    for path in set(tmp_path.iterdir()) - {image}:  # a writer that could still finish has done so
        assert info_file(str(path), max_pixels=MAX_PIXELS)[0].header.width == 75


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    (disk := tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(lat, small_disk):
    target = small_disk / "out.png"
    assert "No space left" in sentence(run("decode", lat, "-d", "embedded", "-o", target), 7)
    assert list(small_disk.iterdir()) == []
    target.write_bytes(b"old")
    sentence(run("decode", lat, "-d", "embedded", "-o", target, "--force"), 7)
    assert [path.read_bytes() for path in small_disk.iterdir()] == [b"old"]


def test_read_only_disk(lat, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    target = small_disk / "out.png"
    assert "Read-only" in sentence(run("decode", lat, "-d", "embedded", "-o", target), 7)


def test_permissions(image, as_nobody):
    source, target = as_nobody / "photo.png", as_nobody / "closed" / "out.lat"
    shutil.copy(image, source)
    target.parent.mkdir(0o500)
    with as_nobody.rights():
        assert "Permission denied" in sentence(run("encode", source, "-o", target), 7)
    source.chmod(0)
    target.parent.chmod(0o700)
    (secret := as_nobody / "secret.lat").touch(0)
    with as_nobody.rights():
        assert "Permission denied" in sentence(run("encode", source, "-o", target), 3)
        assert "Permission denied" in sentence(run("info", secret), 4)
        assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_target_folder_vanishes_while_written(tmp_path, monkeypatch, overwrite):
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "fsync", lambda _: shutil.rmtree(folder))
    with pytest.raises(OutputError, match="No such file"):
        write(folder / "x.lat", NEW, overwrite)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_target_folder(tmp_path, monkeypatch):
    def replace(_):
        shutil.rmtree(folder)
        folder.write_bytes(b"kept")

    (folder := tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "fsync", replace)
    with pytest.raises(OutputError, match="Not a directory"):
        write(folder / "x.lat", NEW, overwrite=True)
    assert folder.read_bytes() == b"kept"


def test_the_longest_names(tmp_path):
    for name in ("n" * 251, "ü" * 125):
        write(tmp_path / f"{name}.lat", NEW, overwrite=False)
    with pytest.raises(OutputError, match="name too long"):
        write(tmp_path / ("n" * 256), NEW, overwrite=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_changes_while_it_is_read(tmp_path):
    """Rewritten in place by someone else, it is the old one, the new one, or damaged."""
    model = load_coder("fast", has_trellis=False)
    blobs = []
    for seed in (1, 2):
        symbols = np.random.default_rng(seed).integers(-99, 99, (4, 8 * seed, 9), np.int32)
        payload = model.encode(symbols, 307)
        blobs.append(hostile.made(payload, height=64 * seed, width=72))
    (path := tmp_path / "x.lat").write_bytes(blobs[0])
    done = threading.Event()

    def rewrite():
        while not done.is_set():
            for blob in blobs:
                with path.open("wb", buffering=0) as file:
                    for start in range(0, len(blob), 512):
                        file.write(blob[start : start + 512])

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(300):
            with contextlib.suppress(BitstreamError):
                file, _, n_bytes = info_file(str(path), max_pixels=MAX_PIXELS)
                assert n_bytes == len(blobs[file.header.height // 64 - 1])
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_an_image_cut_short_while_it_is_read(image, tmp_path, keep):
    image.write_bytes(image.read_bytes()[: int(keep * image.stat().st_size)])
    assert "photo.png" in sentence(run("encode", image, "-e", "nano"), 3)
    assert list(tmp_path.iterdir()) == [image]


def writers(target, overwrite, count=16):
    """Many write one target at once; what each of them wrote or was told."""
    barrier, results = threading.Barrier(count), {}

    def write_one(number):
        data = bytes([number]) * 50_000
        barrier.wait()
        try:
            write(target, data, overwrite)
        except OutputExists as exc:
            results[number] = exc
        else:
            results[number] = data

    threads = [threading.Thread(target=write_one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(results.values())


def test_only_one_of_many_creates_a_file(tmp_path):
    results = writers(tmp_path / "x.lat", overwrite=False)
    written = [result for result in results if isinstance(result, bytes)]
    assert written == [(tmp_path / "x.lat").read_bytes()]
    assert len(list(tmp_path.iterdir())) == 1


def test_many_that_overwrite_leave_one_whole_file(tmp_path):
    results = writers(tmp_path / "x.lat", overwrite=True)
    assert (tmp_path / "x.lat").read_bytes() in results
    assert len(list(tmp_path.iterdir())) == 1


def test_two_commands_with_one_output(image, tmp_path):
    target = tmp_path / "out.lat"
    command = [*ENCODER, image, "-o", target, "-q"]
    commands = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    words = [process.communicate()[1] for process in commands]
    assert sorted(process.returncode for process in commands) == [0, 6]
    assert sorted(map(len, map(bytes.splitlines, words))) == [0, 1]
    assert info_file(str(target), max_pixels=MAX_PIXELS)[0].header.width == 75
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "out.lat"}

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynenc.errors import DiskFull, OutputError, OutputExists
from dynenc.io import storage, writing


def test_writing_is_all_or_nothing(tmp_path):
    target = tmp_path / "a.lat"

    def fail():
        with writing.writing(str(target), False) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with writing.writing(str(target), False) as file:
        file.write(b"whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lat"]
    with pytest.raises(OutputExists), writing.writing(str(target), False) as file:
        file.write(b"other")
    assert target.read_bytes() == b"whole"
    with writing.writing(str(target), True) as file:
        file.write(b"other")
    assert target.read_bytes() == b"other"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EROFS, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EIO, OutputError),
    ],
)
def test_what_the_disk_says(tmp_path, monkeypatch, code, kind):
    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as caught, writing.writing(str(tmp_path / "a"), False):
        pass
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        with writing.writing(str(tmp_path / "a"), False) as file:
            file.write(b"1")
        with pytest.raises(OutputExists), writing.writing(str(tmp_path / "a"), False):
            pass
        (tmp_path / "a").unlink()


def test_long_names(tmp_path):
    target = tmp_path / ("\u20ac" * 83 + ".lat")  # 253 bytes, the most a name may have is 255
    with writing.writing(str(target), False):
        pass
    assert target.exists()
    for name in ("a" * 4000, "\0"):
        assert not storage.is_folder(name)
    with pytest.raises(OutputError), writing.writing(str(tmp_path / ("a" * 4000)), False):
        pass


def test_sweep_removes_what_dead_processes_left(tmp_path):
    dead = writing.partial_name()
    foreign = f".dynenc-elsewhere-{'0' * 16}.partial"
    old = f".dynenc-elsewhere-{'1' * 16}.partial"
    for name in (dead, foreign, old, "photo.partial"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (time.time() - 2 * writing.STALE_S,) * 2)
    with writing.writing(str(tmp_path / "a.lat"), overwrite=False) as file:
        file.write(b"1")
        (alive,) = {path.name for path in tmp_path.iterdir()} - {
            dead,
            foreign,
            old,
            "photo.partial",
        }
        # another process, which cannot tell by a process number: it may have another PID namespace
        command = f"from dynenc.io import writing; writing.remove_stale_partials({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", command], check=True)
        assert {path.name for path in tmp_path.iterdir()} == {alive, foreign, "photo.partial"}
    assert (tmp_path / "a.lat").read_bytes() == b"1"


def test_no_lock_no_removal_before_it_is_old(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    (partial := tmp_path / writing.partial_name()).write_bytes(b"")
    writing.remove_stale_partials(str(tmp_path))
    assert partial.exists()
    os.utime(partial, (time.time() - 2 * writing.STALE_S,) * 2)
    writing.remove_stale_partials(str(tmp_path))
    assert not partial.exists()


def overwrite(target, data=b"new"):
    with writing.writing(str(target), overwrite=True) as file:
        file.write(data)


def test_an_overwritten_file_keeps_its_mode_and_links(tmp_path):
    (real := tmp_path / "real").write_bytes(b"old, and longer")
    real.chmod(0o640)
    (link := tmp_path / "link").symlink_to("real")
    overwrite(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o7777 == 0o640
    os.link(real, tmp_path / "other")
    overwrite(real, b"newer")
    assert (tmp_path / "other").read_bytes() == b"newer"
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "other"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
def test_an_overwritten_file_keeps_its_owner(tmp_path):
    (path := tmp_path / "a").write_bytes(b"old")
    os.chown(path, 1234, 1235)
    overwrite(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


def test_a_link_that_leads_nowhere_is_followed_if_it_may_be(tmp_path):
    (link := tmp_path / "link").symlink_to("new")
    with pytest.raises(OutputExists), writing.writing(str(link), overwrite=False):
        pass
    overwrite(link)
    assert (tmp_path / "new").read_bytes() == b"new"
    (loop := tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="symbolic links"):
        overwrite(loop)
    assert loop.is_symlink()


def test_a_file_that_cannot_be_renamed_to_is_rewritten(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")  # a file mounted by itself

    monkeypatch.setattr(Path, "replace", replace)
    (path := tmp_path / "a").write_bytes(b"old, and longer")
    overwrite(path)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("replace", [False, True])
def test_a_fifo_is_written_through(tmp_path, replace):
    os.mkfifo(fifo := tmp_path / "fifo")
    (link := tmp_path / "link").symlink_to(fifo)
    read = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    writing.refuse_existing(str(link), overwrite=False)
    with writing.writing(str(link), overwrite=replace) as file:
        file.write(b"through")
    assert read.communicate()[0] == b"through"
    assert fifo.is_fifo()


def test_a_device_is_written_through(tmp_path):
    (link := tmp_path / "null").symlink_to(os.devnull)
    overwrite(link)
    overwrite(os.devnull)
    assert Path(os.devnull).is_char_device()
    with pytest.raises(DiskFull), writing.writing("/dev/full", overwrite=False) as file:
        file.write(b"1")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"])
def test_a_descriptor_is_written_where_it_stands(tmp_path, name):
    """It may be a file that the shell appends to, which must neither be truncated nor replaced."""
    (out := tmp_path / "out").write_bytes(b"before ")
    command = (
        "from dynenc.io.writing import writing\n"
        f"with writing({name!r}, overwrite=True) as file: file.write(b'new')"
    )
    with out.open("ab") as file:
        subprocess.run([sys.executable, "-c", command], stdout=file, check=True)
        file.write(b" after")
    assert out.read_bytes() == b"before new after"


def test_standard_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="is closed"), writing.writing("-", False):
        pass


def test_a_file_system_that_shows_half_written_files_gets_a_rename(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(writing, "ATOMIC", set())
    moved = []
    real = MemoryFileSystem.mv
    monkeypatch.setattr(
        MemoryFileSystem, "mv", lambda fs, a, b: (moved.append((a, b)), real(fs, a, b))
    )
    with writing.writing("memory://m/a.bin", False) as file:
        file.write(b"1")
    ((partial, final),) = moved
    assert partial.endswith(".partial")
    assert final == "/m/a.bin"

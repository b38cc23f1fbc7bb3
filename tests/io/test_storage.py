import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynenc.errors import DiskFull, ImageError, OutputError, OutputExists, UsageError
from dynenc.io import storage


def names(folder, **options):
    return [relative for _, relative in storage.walk(str(folder), **options)]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.png", "x/c.png", "x/y/d.png", ".hidden.png", ".cache/e.png"):
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_walk(tree):
    assert names(tree, recursive=False) == ["a.png", "b.png"]
    assert names(tree, recursive=True) == ["a.png", "b.png", "x/c.png", "x/y/d.png"]
    assert names(tree, recursive=True, leave_out=str(tree / "x")) == ["a.png", "b.png"]


def test_walk_survives_loops_of_links(tree):
    (tree / "x" / "loop").symlink_to(tree)
    (tree / "self").symlink_to("self")
    (tree / "x" / "y" / "up").symlink_to("..")
    listed = names(tree, recursive=True)
    assert listed == ["a.png", "b.png", "self", "x/c.png", "x/y/d.png"]


def test_walk_follows_links_and_leaves_out_what_is_no_file(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "f.png").write_bytes(b"")
    (tree / "link").symlink_to(other)
    (tree / "dangling.png").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.png")
    listed = names(tree, recursive=True)
    assert "link/f.png" in listed
    assert "dangling.png" in listed  # it fails, with its name, instead of vanishing
    assert "pipe.png" not in listed  # to open it would wait for ever


def test_a_folder_that_cannot_be_read(tree, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "y":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(tree, recursive=True)[-1] == "x/y/"
    with pytest.raises(ImageError, match="Permission denied"):
        names(tree / "x" / "y", recursive=True)


def test_writing_is_all_or_nothing(tmp_path):
    target = tmp_path / "a.lat"

    def fail():
        with storage.writing(str(target), False) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with storage.writing(str(target), False) as file:
        file.write(b"whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lat"]
    with pytest.raises(OutputExists), storage.writing(str(target), False) as file:
        file.write(b"other")
    assert target.read_bytes() == b"whole"
    with storage.writing(str(target), True) as file:
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
    with pytest.raises(OutputError) as caught, storage.writing(str(tmp_path / "a"), False):
        pass
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        with storage.writing(str(tmp_path / "a"), False) as file:
            file.write(b"1")
        with pytest.raises(OutputExists), storage.writing(str(tmp_path / "a"), False):
            pass
        (tmp_path / "a").unlink()


def test_long_names(tmp_path):
    target = tmp_path / ("\u20ac" * 83 + ".lat")  # 253 bytes, the most a name may have is 255
    with storage.writing(str(target), False):
        pass
    assert target.exists()
    for name in ("a" * 4000, "\0"):
        assert not storage.is_folder(name)
    with pytest.raises(OutputError), storage.writing(str(tmp_path / ("a" * 4000)), False):
        pass


def test_sweep_removes_what_dead_processes_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, theirs = storage.partial_name(), storage.partial_name(dead.pid)
    foreign = f".dynenc-elsewhere-{dead.pid}-00000000.partial"
    old = f".dynenc-elsewhere-{dead.pid}-00000001.partial"
    for name in (ours, theirs, foreign, old, "photo.partial"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (time.time() - 2 * storage.STALE,) * 2)
    storage.sweep(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {ours, foreign, "photo.partial"}
    storage.sweep(str(tmp_path), {os.getpid()})
    assert {path.name for path in tmp_path.iterdir()} == {foreign, "photo.partial"}
    assert socket.gethostname() in ours


def test_memory_urls():
    with storage.writing("memory://t/a.bin", False) as file:
        file.write(b"1")
    with storage.reading("memory://t/a.bin") as file:
        assert file.read() == b"1"
    with pytest.raises(OutputExists), storage.writing("memory://t/a.bin", False):
        pass
    assert storage.exists("memory://t/a.bin")
    assert storage.is_folder("memory://t")
    assert not storage.is_folder("memory://nothing")
    assert storage.modified("memory://t/a.bin") is not None
    assert [relative for _, relative in storage.walk("memory://t", True)] == ["a.bin"]
    assert len(storage.expand("memory://t/*.bin")) == 1


def test_a_file_system_that_shows_half_written_files_gets_a_rename(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(storage, "WHOLE", set())
    moved = []
    real = MemoryFileSystem.mv
    monkeypatch.setattr(
        MemoryFileSystem, "mv", lambda fs, a, b: (moved.append((a, b)), real(fs, a, b))
    )
    with storage.writing("memory://m/a.bin", False) as file:
        file.write(b"1")
    ((partial, final),) = moved
    assert partial.endswith(".partial")
    assert final == "/m/a.bin"


@pytest.mark.parametrize(
    ("protocol", "extra"), [("s3", "s3"), ("gs", "gs"), ("https", "http"), ("s3a", "s3")]
)
def test_a_url_without_its_extra_says_which(protocol, extra, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install it")

    monkeypatch.setattr("fsspec.url_to_fs", missing)
    with pytest.raises(UsageError, match=rf"pip install 'dynenc\[{extra}\]'"):
        storage.exists(f"{protocol}://bucket/a.png")


def test_other_urls():
    with pytest.raises(UsageError, match="nonsense"):
        storage.exists("nonsense://x")
    assert storage.plain("file:///a/b") == "/a/b"
    assert storage.base("https://x.y/a.png?key=1/2") == "a.png"
    assert not storage.is_url("C:/x")


def test_errors_of_remote_file_systems_are_translated(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_, **__):
        raise ZeroDivisionError("the bucket is on fire\nTraceback ...")

    monkeypatch.setattr(MemoryFileSystem, "_open", fail)
    with (
        pytest.raises(ImageError, match=r"memory://q/a cannot be read: the bucket is on fire$"),
        storage.reading("memory://q/a"),
    ):
        pass
    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        storage.writing("memory://q/b", True),
    ):
        pass


def test_case(tmp_path, monkeypatch):
    folder = tmp_path / "Folder"
    assert not storage.ignores_case(str(folder / "new"))
    folder.mkdir()
    (tmp_path / "fOLDER").symlink_to(folder)  # what a file system without case looks like
    assert storage.ignores_case(str(folder / "new"))

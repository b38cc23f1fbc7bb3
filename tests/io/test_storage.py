import errno
import os
import subprocess
import sys
import time
import zipfile
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
    dead = storage.partial_name()
    foreign = f".dynenc-elsewhere-{'0' * 16}.partial"
    old = f".dynenc-elsewhere-{'1' * 16}.partial"
    for name in (dead, foreign, old, "photo.partial"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (time.time() - 2 * storage.STALE,) * 2)
    with storage.writing(str(tmp_path / "a.lat"), overwrite=False) as file:
        file.write(b"1")
        (alive,) = {path.name for path in tmp_path.iterdir()} - {
            dead,
            foreign,
            old,
            "photo.partial",
        }
        # another process, which cannot tell by a process number: it may have another PID namespace
        command = f"from dynenc.io.storage import sweep; sweep({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", command], check=True)
        assert {path.name for path in tmp_path.iterdir()} == {alive, foreign, "photo.partial"}
    assert (tmp_path / "a.lat").read_bytes() == b"1"


def test_no_lock_no_removal_before_it_is_old(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    (partial := tmp_path / storage.partial_name()).write_bytes(b"")
    storage.sweep(str(tmp_path))
    assert partial.exists()
    os.utime(partial, (time.time() - 2 * storage.STALE,) * 2)
    storage.sweep(str(tmp_path))
    assert not partial.exists()


def overwrite(target, data=b"new"):
    with storage.writing(str(target), overwrite=True) as file:
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
    with pytest.raises(OutputExists), storage.writing(str(link), overwrite=False):
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
    storage.refuse_existing(str(link), overwrite=False)
    with storage.writing(str(link), overwrite=replace) as file:
        file.write(b"through")
    assert read.communicate()[0] == b"through"
    assert fifo.is_fifo()


def test_a_device_is_written_through(tmp_path):
    (link := tmp_path / "null").symlink_to(os.devnull)
    overwrite(link)
    overwrite(os.devnull)
    assert Path(os.devnull).is_char_device()
    with pytest.raises(DiskFull), storage.writing("/dev/full", overwrite=False) as file:
        file.write(b"1")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-"])
def test_a_descriptor_is_written_where_it_stands(tmp_path, name):
    """It may be a file that the shell appends to, which must neither be truncated nor replaced."""
    (out := tmp_path / "out").write_bytes(b"before ")
    command = (
        "from dynenc.io.storage import writing\n"
        f"with writing({name!r}, overwrite=True) as file: file.write(b'new')"
    )
    with out.open("ab") as file:
        subprocess.run([sys.executable, "-c", command], stdout=file, check=True)
        file.write(b" after")
    assert out.read_bytes() == b"before new after"


def test_standard_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="is closed"), storage.writing("-", False):
        pass


def test_no_more_than_the_limit_is_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with (tmp_path / "sparse").open("rb") as file, pytest.raises(ImageError, match="longer than"):
        storage.read_at_most(file, 2**20, "sparse", ImageError)
    with open("/dev/zero", "rb") as file, pytest.raises(ImageError):  # noqa: PTH123
        storage.read_at_most(file, 2**20, "zero", ImageError)
    (tmp_path / "a").write_bytes(b"123")
    with (tmp_path / "a").open("rb") as file:
        file.seek(1)
        assert storage.read_at_most(file, 2, "a") == b"23"


def test_names_that_look_like_patterns(tmp_path):
    for name in ("[b]/x.png", "b/y.png", "*.png", "z.png"):
        (path := tmp_path / name).parent.mkdir(exist_ok=True)
        path.write_bytes(b"")

    def expand(pattern):
        return [os.path.relpath(name, tmp_path) for name in storage.expand(f"{tmp_path}/{pattern}")]

    assert expand("[b]/*.png") == ["[b]/x.png"]
    assert expand("*.png") == ["*.png"]
    assert expand("?.png") == ["*.png", "z.png"]
    (tmp_path / "[b]" / "x.png").unlink()
    (tmp_path / "[b]").rmdir()
    assert expand("[b]/*.png") == ["b/y.png"]
    assert expand("**/y.png") == ["b/y.png"]


def test_files_inside_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("sub/b.png", b"2")
    url = f"zip://*.png::{tmp_path}/x.zip"
    assert storage.expand(url) == [f"zip://a.png::{tmp_path}/x.zip"]
    with storage.reading(storage.expand(url)[0]) as file:
        assert file.read() == b"1"
    listed = list(storage.walk(f"zip://::{tmp_path}/x.zip", recursive=True))
    assert listed[1] == (f"zip://sub/b.png::{tmp_path}/x.zip", "sub/b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        storage.expand(f"zip://*.png::{tmp_path}/none.zip")


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

    monkeypatch.setattr(storage, "ATOMIC", set())
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

import errno
import os
import zipfile
from pathlib import Path

import pytest

from dynenc.errors import ImageError, OutputError, OutputExists, UsageError
from dynenc.io import storage, writing


def names(folder, **options):
    return [found.relative for found in storage.walk(str(folder), **options)]


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
    everything = names(tree, recursive=True, everything=True)
    assert set(everything) == {*listed, "pipe.png", ".hidden.png", ".cache/e.png"}


def test_a_folder_that_cannot_be_read(tree, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "y":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    *_, last = storage.walk(str(tree), recursive=True)
    assert (last.relative, last.error.strerror) == ("x/y", "Permission denied")
    with pytest.raises(ImageError, match="Permission denied"):
        names(tree / "x" / "y", recursive=True)


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
    assert listed[1][:2] == (f"zip://sub/b.png::{tmp_path}/x.zip", "sub/b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        storage.expand(f"zip://*.png::{tmp_path}/none.zip")


def test_memory_urls():
    with writing.writing("memory://t/a.bin", False) as file:
        file.write(b"1")
    with storage.reading("memory://t/a.bin") as file:
        assert file.read() == b"1"
    with pytest.raises(OutputExists), writing.writing("memory://t/a.bin", False):
        pass
    assert storage.exists("memory://t/a.bin")
    assert storage.is_folder("memory://t")
    assert not storage.is_folder("memory://nothing")
    assert storage.times("memory://t/a.bin").modified > 1e9
    assert [found.relative for found in storage.walk("memory://t", True)] == ["a.bin"]
    assert len(storage.expand("memory://t/*.bin")) == 1


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
        writing.writing("memory://q/b", True),
    ):
        pass


def test_case(tmp_path, monkeypatch):
    folder = tmp_path / "Folder"
    assert not storage.ignores_case(str(folder / "new"))
    folder.mkdir()
    (tmp_path / "fOLDER").symlink_to(folder)  # what a file system without case looks like
    assert storage.ignores_case(str(folder / "new"))

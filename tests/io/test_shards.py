import io
import tarfile

import pytest

from dynenc.errors import ImageError, OutputError
from dynenc.io import shards


def written(*files):
    buffer = io.BytesIO()
    writer = shards.Writer(buffer)
    for name, data in files:
        writer.add(name, data, 7)
    writer.close()
    return buffer.getvalue()


def test_what_is_written_is_read_in_the_same_order():
    files = [("b.lat", b"1"), ("a.json", b"2" * 2000), ("x" * 300 + ".lat", b""), ("\udcff", b"3")]
    tar = written(*files)
    assert [(i.name, data) for i, data in shards.members(io.BytesIO(tar), "t")] == files
    assert {i.mtime for i, _ in shards.members(io.BytesIO(tar), "t")} == {7}
    assert written(*files) == tar


def test_a_name_is_taken_once():
    writer = shards.Writer(io.BytesIO())
    writer.add("a.lat", b"1", 0)
    with pytest.raises(OutputError, match=r"a\.lat already"):
        writer.add("a.lat", b"2", 0)


def test_links_and_folders_are_left_out():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("p", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
    assert list(shards.members(io.BytesIO(buffer.getvalue()), "t")) == []


def test_damaged_tars():
    tar = written(("a", b"1" * 20_000), ("b", b"2"))
    for damaged in (tar[:700], tar[:10_000], b"junk" * 300, b"\x1f\x8b" + b"junk" * 300):
        with pytest.raises(ImageError, match=r"t\.tar cannot be read as a tar"):
            list(shards.members(io.BytesIO(damaged), "t.tar"))

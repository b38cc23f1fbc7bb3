import gzip
import io
import math
import tarfile
import tempfile
import tracemalloc
import zipfile

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


def read(data, name="t"):
    return [(member.name, member.file.read()) for member in shards.members(io.BytesIO(data), name)]


def test_what_is_written_is_read_in_the_same_order():
    files = [("b.lat", b"1"), ("a.json", b"2" * 2000), ("x" * 300 + ".lat", b""), ("\udcff", b"3")]
    tar = written(*files)
    assert read(tar) == files
    assert {member.mtime for member in shards.members(io.BytesIO(tar), "t")} == {7}
    assert written(*files) == tar


def test_the_names_in_a_tar_are_read_without_its_contents():
    class Counting(io.BytesIO):
        n_read = 0

        def read(self, size=-1):
            data = super().read(size)
            self.n_read += len(data)
            return data

    file = Counting(written(("a", bytes(10**6)), ("b", b"2" * 10**6)))
    found = []
    for member in shards.members(file, "t", seek=True):
        found.append((member.name, member.file.read(1) if member.name == "b" else b""))
    assert found == [("a", b""), ("b", b"2")]
    assert file.n_read < 10**5
    packed = gzip.compress(file.getvalue())
    assert [each.name for each in shards.members(io.BytesIO(packed), "t", seek=True)] == ["a", "b"]


def test_a_name_is_taken_once():
    writer = shards.Writer(io.BytesIO())
    writer.add("a.lat", b"1", 0)
    with pytest.raises(OutputError, match=r"already holds a\.lat"):
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
        with pytest.raises(ImageError, match=r"^t\.tar"):
            read(damaged, "t.tar")


def test_a_damaged_header_is_not_the_end():
    tar = bytearray(written(("a", b"1"), ("b", b"2"), ("c", b"3")))
    tar[1024 + 150] ^= 1  # in the checksum of the second
    with pytest.raises(ImageError, match="header is damaged"):
        read(bytes(tar))


@pytest.mark.parametrize("mtime", [math.nan, math.inf, -5.0, 1e300])
def test_a_time_that_is_none_is_0(mtime):
    buffer = io.BytesIO()
    writer = shards.Writer(buffer)
    writer.add("a", b"1", mtime)
    writer.close()
    (member,) = shards.members(io.BytesIO(buffer.getvalue()), "t")
    assert member.mtime == 0


def test_neither_many_nor_large_members_cost_memory():
    """4,000 empty files and one of 64 MB, which tarfile would keep as 3 and 64 MB."""
    zeros = io.BytesIO(bytes(2**26))
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        writer = shards.Writer(first)
        writer.copy(shards.Member("large", 2**26, 0, zeros))
        for i in range(4_000):
            writer.add(str(i), b"", 0)
        writer.close()
        first.seek(0)
        before = 0
        tracemalloc.start()
        try:
            writer = shards.Writer(second)
            for member in shards.members(first, "t"):
                writer.copy(member)
                before = before or tracemalloc.get_traced_memory()[0]
            writer.names.clear()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1e6
        assert peak < 30e6
        assert second.tell() > 2**26


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_compressed_tars(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{form}") as tar:
        tar.addfile(info := tarfile.TarInfo("a"), io.BytesIO())
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert shards.is_tar(f"x.tar.{form}")
    assert read(buffer.getvalue())[1] == ("a", b"1")
    with pytest.raises(ImageError, match="cannot be read as a tar"):
        read(buffer.getvalue()[:60])


def test_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("x/", (2020, 1, 1, 0, 0, 0)), b"")
        archive.writestr(zipfile.ZipInfo("x/a.png", (2020, 1, 1, 0, 0, 0)), b"1" * 99)
        archive.writestr(zipfile.ZipInfo("b.png", (1980, 1, 1, 0, 0, 0)), b"2" * 99)
    data = buffer.getvalue()
    assert read(data, "t.zip") == [("x/a.png", b"1" * 99), ("b.png", b"2" * 99)]
    assert next(iter(shards.members(io.BytesIO(data), "t.zip"))).mtime == 1577836800
    damaged = data.replace(b"b.png", b"b.pnG", 1)  # its own header contradicts the directory
    contents = shards.members(io.BytesIO(damaged), "t.zip")
    assert next(contents).file.read() == b"1" * 99
    with pytest.raises(ImageError, match=r"t\.zip/b\.png cannot be unpacked"):
        next(contents).file.read()
    with pytest.raises(ImageError, match="cannot be read as a zip"):
        read(data[:-5], "t.zip")

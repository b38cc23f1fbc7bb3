"""Archives and bugs: one odd member or file never stops the others."""

import io
import tarfile
import zipfile

import pytest
from PIL import Image

import dynenc
from dynenc.batch import converter
from dynenc.batch.tasks import images
from dynenc.errors import ImageError, OutputExists, UsageError


def png(side=16):
    Image.new("RGB", (side, side), (9 * side, 0, 0)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def write_tar(path, padding=0, **headers):
    """A tar of a.png, large.bin, b.png and c.cls; `headers` are PAX headers of b.png."""
    contents = {
        "a.png": png(),
        "large.bin": b"x" * 3000,
        "b.png": png(24) + bytes(padding),
        "c.cls": b"7",
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1e9
            info.pax_headers = headers if name == "b.png" else {}
            tar.addfile(info, io.BytesIO(data))
    return contents


def encode(source, target, **options):
    return dynenc.convert("encode", source, target, encoder="nano", jobs=1, **options)


@pytest.mark.parametrize("small", [100, 2**20])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_other_members_are_copied_in_their_order(tmp_path, monkeypatch, small, batch_size):
    monkeypatch.setattr(converter, "SMALL", small)
    contents = write_tar(tmp_path / "s.tar")
    assert encode(tmp_path / "s.tar", tmp_path / "out", batch_size=batch_size).done == 2
    with tarfile.open(tmp_path / "out" / "s.tar") as tar:
        assert tar.getnames() == ["a.lat", "large.bin", "b.lat", "c.cls"]
        assert tar.extractfile("large.bin").read() == contents["large.bin"]
        assert tar.getmember("large.bin").mtime == 1e9


@pytest.mark.parametrize("mtime", ["nan", "inf", "-1e300"])
def test_an_odd_time_of_a_member_becomes_0(tmp_path, mtime):
    write_tar(tmp_path / "s.tar", mtime=mtime)
    assert encode(tmp_path / "s.tar", tmp_path / "out").done == 2
    with tarfile.open(tmp_path / "out" / "s.tar") as tar:
        assert {info.name: info.mtime for info in tar} == {
            "a.lat": 1e9,
            "large.bin": 1e9,
            "b.lat": 0,
            "c.cls": 1e9,
        }


def test_a_member_that_is_too_large_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "MAX_IMAGE_BYTES", 4000)
    write_tar(tmp_path / "s.tar", padding=9000)
    summary = encode(tmp_path / "s.tar", tmp_path / "out")
    assert (summary.done, summary.failed) == (1, 1)
    assert "s.tar/b.png is longer than" in summary.failures[0].reason


def test_a_zip_becomes_a_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("x/a.png", png())
        archive.writestr("x/a.txt", "a label")
    assert encode(tmp_path / "s.zip", tmp_path / "out").done == 1
    with tarfile.open(tmp_path / "out" / "s.tar") as tar:
        assert tar.getnames() == ["x/a.lat", "x/a.txt"]
    assert encode(f"zip://x/*.png::{tmp_path}/s.zip", tmp_path / "files").done == 1
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["a.lat"]


def test_a_bug_fails_one_file_and_keeps_its_traceback(tmp_path, monkeypatch, caplog):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png())
    real = images.load_image

    def load_image(item, settings):
        if item.source.endswith("b.png"):
            raise TypeError("a bug")
        return real(item, settings)

    monkeypatch.setattr(images, "load_image", load_image)
    caplog.set_level("DEBUG", "dynenc")
    summary = encode(tmp_path, None)
    assert (summary.done, summary.failed) == (1, 1)
    assert "b.png: unexpected TypeError: a bug" in summary.failures[0].reason
    assert 'raise TypeError("a bug")' in caplog.text
    assert "in load_image" in caplog.text


def test_streams_take_the_format_of_the_suffix(tmp_path, capfdbinary):
    (tmp_path / "a.png").write_bytes(png())
    encode(tmp_path / "a.png", None)
    for output in ("-", "/dev/stdout"):
        dynenc.convert(
            "decode", tmp_path / "a.lat", output, suffix="jpg", decoder="embedded", jobs=1
        )
        assert capfdbinary.readouterr().out.startswith(b"\xff\xd8\xff")


def test_a_lat_file_gets_no_name_of_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(UsageError, match="has the suffix of an image"):
        encode(tmp_path / "a.png", tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()


def test_an_archive_that_is_gone_is_no_fault_of_the_output(tmp_path):
    summary = encode(tmp_path / "gone.tar", tmp_path / "out.tar")
    assert isinstance(summary.failures[0].error, ImageError)
    assert not (tmp_path / "out.tar").exists()


def test_ray_does_not_overwrite_what_exists(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.lat").write_bytes(b"precious")
    with pytest.raises(OutputExists, match=r"a\.lat exists"):  # before any cluster is looked for
        dynenc.convert("encode", tmp_path / "a.png", tmp_path / "a.lat", engine="ray")
    assert (tmp_path / "a.lat").read_bytes() == b"precious"

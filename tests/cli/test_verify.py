import io
import os
import tarfile

import numpy as np
import pytest
from helpers import hostile
from typer.testing import CliRunner

from dynenc.batch.verify import info_file
from dynenc.cli.main import app
from dynenc.coding.bitstream import MAGIC, MAX_PIXELS
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import read_bytes
from dynenc.errors import TooLarge

runner = CliRunner()


def run(*arguments, stdin=None):
    return runner.invoke(app, ["verify", *map(str, arguments)], input=stdin)


@pytest.fixture(scope="module")
def sound():
    """The bytes of a sound file of one black patch."""
    return hostile.made(
        load_coder("fast", has_trellis=False).encode(np.zeros((4, 1, 1), np.int32), 307)
    )


@pytest.fixture
def folder(tmp_path, sound):
    """Three sound files, one in a folder below, and an image."""
    (tmp_path / "below").mkdir()
    for name in ("a.lat", "b.LAT", "below/c.lat"):
        (tmp_path / name).write_bytes(sound)
    (tmp_path / "photo.png").write_bytes(b"not to be checked")
    return tmp_path


def test_sound_files(folder, sound):
    for arguments, count in (
        ([folder], 3),
        ([folder / "a.lat"], 1),
        ([folder / "a.lat", folder / "below"], 2),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"{count} checked, no damage found\n"
    assert run("-", stdin=sound).exit_code == 0
    assert run(folder, "-q").stdout == ""


def test_a_line_per_bad_file(folder, sound):
    (folder / "a.lat").write_bytes(sound[:-1])
    (folder / "below" / "c.lat").write_bytes(b"GIF89a")
    (folder / "z.lat").write_bytes(hostile.made(sound[14:-4], width=9, coder_id=7))
    result = run(folder, folder / "none.lat")
    assert result.exit_code == 1
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        str(folder / name) for name in ("a.lat", "below/c.lat", "z.lat", "none.lat")
    ]
    assert "checksum" in result.stdout
    assert f"{folder / 'none.lat'}: cannot be read: No such file or directory" in result.stdout
    assert result.stderr == "dynenc: 4 of 5 files failed: restore what is damaged from a backup\n"
    assert run(folder, folder / "none.lat", "-q").stdout == result.stdout


def test_every_hostile_file_is_named(tmp_path, sound):
    blobs = hostile.files(sound[14:-4])
    for number, blob in enumerate(blobs.values()):
        (tmp_path / f"{number:02}.lat").write_bytes(blob)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == len(blobs)


def test_what_export_would_refuse_is_damage(tmp_path, sound):
    junk = hostile.with_chunks(sound[14:-4], hostile.chunk(b"cach", b"junk"))
    (tmp_path / "a.lat").write_bytes(junk)
    assert "chunk cach" in run(tmp_path).stdout


def test_nothing_to_check_is_not_well(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stdout == f"{tmp_path}: holds no .lat file\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_named_not_waited_for(folder):
    os.mkfifo(folder / "pipe.lat")
    (folder / "broken.lat").symlink_to("nowhere")
    (folder / "directory.lat").mkdir()
    result = run(folder)
    assert result.stdout.splitlines() == [
        f"{folder / name}: is not a file" for name in ("broken.lat", "pipe.lat")
    ]


def test_linked_folders_are_checked_once(folder, sound, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "d.lat").write_bytes(sound[:-1])
    for name in ("one", "two"):
        (folder / name).symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)
    result = run(folder)
    [line] = result.stdout.splitlines()
    assert "d.lat: " in line
    assert result.stderr.startswith("dynenc: 1 of 4 files failed")


def test_folders_that_cannot_be_read_are_named(folder, as_nobody):
    closed = as_nobody / "closed"
    closed.mkdir(0o300)
    (as_nobody / "a.lat").write_bytes((folder / "a.lat").read_bytes())
    (as_nobody / "b.lat").touch(0o200)
    with as_nobody.rights():
        result = run(as_nobody)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{closed}: cannot be read: Permission denied",
        f"{as_nobody / 'b.lat'}: cannot be read: Permission denied",
    ]


def test_long_files_that_are_not_lat_files_are_not_read(tmp_path):
    (path := tmp_path / "x.lat").write_bytes(b"PK\3\4" + bytes(99))
    assert read_bytes(str(path)) == b"PK\3\4"
    with path.open("wb") as file:
        file.write(MAGIC)
        file.truncate(2**40)  # takes no space on the disk
    with pytest.raises(TooLarge):
        info_file(str(path), max_pixels=MAX_PIXELS)


def test_a_url_that_is_gone_is_one_fault_among_others(folder):
    result = run("memory://gone.lat", folder / "a.lat")
    assert result.exit_code == 1
    assert result.stdout.startswith("memory://gone.lat: cannot be read")
    assert "1 of 2 files failed" in result.stderr


def test_shards_and_caches_are_checked_member_by_member(folder, sound, tmp_path_factory):
    shard = tmp_path_factory.mktemp("cache") / "latents-00000.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("a.lat", sound), ("a.json", b"{}"), ("b.lat", sound[:-1])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for path in (shard, shard.parent):
        result = run(path)
        assert result.exit_code == 1
        assert result.stdout.startswith(f"{shard}/b.lat: ")
        assert result.stderr.startswith("dynenc: 1 of 2 files failed: restore")
    shard.write_bytes(shard.read_bytes()[:1300])
    assert "cannot be read as a tar" in run(shard).stdout


def test_only_damage_needs_a_backup(tmp_path):
    assert run(tmp_path / "none.lat").stderr == "dynenc: 1 of 1 files failed\n"

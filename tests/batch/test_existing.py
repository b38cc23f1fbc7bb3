"""Outputs that exist: nothing counts as finished by its name, nothing of a stranger's is lost."""

import io
import os
import shutil
import tarfile
import time
import zipfile

import pytest
from PIL import Image

import dynenc
from dynenc.errors import OutputExists, TargetMissed, UsageError


@pytest.fixture
def images(tmp_path):
    (folder := tmp_path / "in").mkdir()
    for i, name in enumerate("abcde"):
        Image.new("RGB", (16 + 8 * i, 16), (40 * i, 0, 0)).save(folder / f"{name}.png")
    return folder


def encode(source, target, **options):
    return dynenc.convert("encode", source, target, encoder="nano", jobs=1, **options)


def test_what_is_no_output_is_made_again_or_named(images, tmp_path):
    (out := tmp_path / "out").mkdir()
    (out / "a.lat").write_bytes(b"")
    (out / "b.lat").symlink_to(tmp_path / "elsewhere.lat")
    (out / "c.lat").mkdir()
    (out / "d.lat").write_bytes(b"a stranger's")
    summary = encode(images, out)
    assert (summary.done, summary.skipped, summary.failed) == (3, 0, 2)
    assert {failure.target for failure in summary.failures} == {f"{out}/c.lat", f"{out}/d.lat"}
    assert "no record of being made by this command" in summary.failures[0].reason
    assert (out / "a.lat").read_bytes().startswith(b"\x89LAT")
    assert (tmp_path / "elsewhere.lat").read_bytes().startswith(b"\x89LAT")
    assert (out / "d.lat").read_bytes() == b"a stranger's"
    again = encode(images, out)
    assert (again.done, again.skipped, again.failed) == (0, 3, 2)


def test_skipped_outputs_of_other_settings_are_counted(images, tmp_path):
    encode(images, tmp_path / "out")
    encode(images / "a.png", tmp_path / "out" / "a.lat", existing="force", quality=90)
    summary = encode(images, tmp_path / "out")
    assert (summary.skipped, summary.outdated) == (5, 1)
    other = dynenc.convert("encode", images, tmp_path / "out", encoder="light", jobs=1)
    assert (other.skipped, other.outdated) == (5, 5)


@pytest.mark.parametrize(
    ("target_size", "is_reached"), [(10, False), (60, True), (400, True), (9000, False)]
)
def test_the_file_nearest_to_a_target_is_current(tmp_path, target_size, is_reached):
    (folder := tmp_path / "in").mkdir()
    Image.radial_gradient("L").resize((96, 64)).save(folder / "gradient.png")
    Image.effect_noise((64, 64), 200).convert("RGB").save(folder / "graphics.png")
    options = {"target_size": target_size, "detail": "on"}
    encode(folder, out := tmp_path / "out")
    assert encode(folder, out, **options).outdated == 2
    assert encode(folder, out, existing="update", **options).done == 2
    assert encode(folder, out, **options).outdated == 0
    assert encode(folder, out, existing="update", **options).done == 0
    if not is_reached:
        strict = encode(folder, out, existing="update", strict=True, **options)
        assert all(isinstance(failure.error, TargetMissed) for failure in strict.failures)
        assert strict.failed == 2
    assert encode(folder, out, existing="update", detail="on").done == 2


def test_skipped_images_and_latents(images, tmp_path):
    encode(images, tmp_path / "lat")
    for task, suffix in {"decode": ".png", "export": ".npz"}.items():
        options = {"decoder": "embedded", "suffix": suffix, "jobs": 1}
        assert dynenc.convert(task, tmp_path / "lat", tmp_path / task, **options).done == 5
        (tmp_path / task / f"a{suffix}").write_bytes(b"0123456789" * 9)
        summary = dynenc.convert(task, tmp_path / "lat", tmp_path / task, **options)
        assert (summary.done, summary.skipped, summary.outdated) == (0, 4, 0)
        assert summary.failed == 1
    Image.new("RGB", (16, 16)).save(tmp_path / "decode" / "a.png")
    summary = dynenc.convert(
        "decode", tmp_path / "lat", tmp_path / "decode", decoder="embedded", jobs=1
    )
    assert (summary.skipped, summary.outdated) == (5, 1)


def test_shards_are_looked_into(images, tmp_path):
    encode(images, tmp_path / "out", shard_size=3)
    (tmp_path / "out" / "000001.tar").write_bytes(b"no tar" * 200)
    summary = encode(images, tmp_path / "out", shard_size=3, quality=70)
    assert (summary.skipped, summary.outdated, summary.failed) == (1, 1, 1)


def held(folder):
    """The names in each shard of a folder."""
    names = {}
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as tar:
            names[path.name] = [name.removesuffix(".lat") for name in tar.getnames()]
    return names


def test_packed_shards_follow_the_images_of_the_folder(images, tmp_path):
    out = tmp_path / "out"
    encode(images, out, shard_size=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.copy(images / "e.png", images / "aa.png")
    with pytest.raises(OutputExists, match=r"000000\.tar holds other images") as caught:
        encode(images, out, shard_size=2)
    assert "--update" in caught.value.hint
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert encode(images, out, shard_size=2, existing="update").done == 6
    expected = {"000000.tar": ["a", "aa"], "000001.tar": ["b", "c"], "000002.tar": ["d", "e"]}
    assert held(out) == expected
    for name in ("a", "c", "e"):
        (images / f"{name}.png").unlink()
    summary = encode(images, out, shard_size=2, existing="update")
    assert held(out) == expected | {"000000.tar": ["aa", "b"], "000001.tar": ["d"]}
    assert summary.stale == [f"{out}/000002.tar"]
    assert encode(images, out, shard_size=2).skipped == 2


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_shard_without_all_of_its_images_is_made_again(images, tmp_path, is_packed):
    out, whole = tmp_path / "out", (images / "b.png").read_bytes()

    def run():
        if is_packed:
            return encode(images, out, shard_size=9)
        with tarfile.open(tmp_path / "000000.tar", "w") as tar:
            for path in sorted(images.iterdir()):
                tar.add(path, path.name)
        return encode(tmp_path / "000000.tar", f"{out}/")

    (images / "b.png").write_bytes(whole[:40])
    for _ in range(2):
        summary = run()
        assert (summary.done, summary.failed, summary.skipped) == (4, 1, 0)
    (images / "b.png").write_bytes(whole)
    assert run().done == 5
    assert run().skipped == 1


def test_a_shard_keeps_what_cannot_be_made_again(images, tmp_path):
    encode(images, out := tmp_path / "out", shard_size=9)
    with tarfile.open(out / "000000.tar") as tar:
        before = {name: tar.extractfile(name).read() for name in tar.getnames()}
    (images / "b.png").write_bytes(b"damaged")
    summary = encode(images, out, shard_size=9, existing="update", quality=90)
    assert (summary.done, summary.failed) == (4, 1)
    with tarfile.open(out / "000000.tar") as tar:
        assert tar.getnames() == list(before)
        changed = {name for name in before if tar.extractfile(name).read() != before[name]}
    assert changed == {"a.lat", "c.lat", "d.lat", "e.lat"}


def test_update_leaves_shards_of_images_alone(images, tmp_path):
    with tarfile.open(tmp_path / "000000.tar", "w") as tar:
        tar.add(images / "a.png", "a.png")
    before = (tmp_path / "000000.tar").read_bytes()
    summary = encode(images, tmp_path, shard_size=9, existing="update")
    assert "no record of being made by this command" in summary.failures[0].reason
    assert (tmp_path / "000000.tar").read_bytes() == before


def test_update_notices_another_image_of_the_same_name(images, tmp_path):
    out = tmp_path / "out"
    encode(images, out)
    os.utime(images / "b.png", (1e9, 1e9))
    for path in out.iterdir():  # as after a copy of the archive, later than all images
        os.utime(path, (time.time() + 9,) * 2)
    assert encode(images, out, existing="update").done == 0
    shutil.copy2(images / "b.png", tmp_path / "old.png")
    (tmp_path / "old.png").replace(images / "a.png")  # an older file, of another size
    assert encode(images, out, existing="update").done == 1


def test_update_encodes_what_may_have_changed(images, tmp_path, monkeypatch):
    """A link to another file, standard input, and a URL that tells no time."""
    (link := tmp_path / "link.png").symlink_to(images / "a.png")
    Image.new("RGB", (16, 16), "blue").save(images / "f.png")
    for first, second in (("a", "f"), ("f", "a")):
        link.unlink()
        link.symlink_to(images / f"{first}.png")
        encode(link, tmp_path / "link.lat", existing="force")
        os.utime(tmp_path / "link.lat", (time.time() + 9,) * 2)
        assert encode(link, tmp_path / "link.lat", existing="update").skipped == 1
        time.sleep(0.01)
        link.unlink()
        link.symlink_to(images / f"{second}.png")
        assert encode(link, tmp_path / "link.lat", existing="update").done == 1
    for name in "ab":
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.write(images / f"{name}.png", "x.png")
        url = f"zip://x.png::{tmp_path / 'z.zip'}"
        assert encode(url, tmp_path / "z.lat", existing="update").done == 1
        with (images / f"{name}.png").open("rb") as stdin:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
            assert encode("-", tmp_path / "stdin.lat", existing="update").done == 1


def test_times_are_kept(images, tmp_path):
    out = tmp_path / "out"
    os.utime(images / "a.png", (1e9, 1e9))
    encode(images, out, keep_mtime=True)
    assert (out / "a.lat").stat().st_mtime == 1e9
    assert encode(images, out, keep_mtime=True, existing="update").done == 0
    os.utime(images / "a.png", (9e8, 9e8))
    assert encode(images, out, keep_mtime=True, existing="update").done == 1
    encode(images, tmp_path / "shards", keep_mtime=True, shard_size=9)
    dynenc.convert(
        "decode", tmp_path / "shards" / "000000.tar", tmp_path / "t.tar", decoder="embedded", jobs=1
    )
    with tarfile.open(tmp_path / "t.tar") as tar:
        assert tar.getmember("a.png").mtime == 9e8


def test_names_are_kept(images, tmp_path):
    Image.open(images / "a.png").save(images / "a.jpg")
    with pytest.raises(UsageError, match="both become") as caught:
        encode(images, tmp_path / "out")
    assert "--name keep" in caught.value.hint
    encode(images, tmp_path / "out", naming="keep")
    assert {"a.jpg.lat", "a.png.lat"} < {path.name for path in (tmp_path / "out").iterdir()}
    encode(images, tmp_path / "shards", naming="keep", shard_size=9)
    dynenc.convert(
        "decode",
        tmp_path / "shards",
        tmp_path / "back",
        decoder="embedded",
        naming="keep",
        suffix="webp",
        jobs=1,
    )
    with tarfile.open(tmp_path / "back" / "000000.tar") as tar:
        assert tar.getnames()[:2] == ["a.jpg.lat.webp", "a.png.lat.webp"]


def test_an_output_that_appears_meanwhile_is_kept(images, tmp_path):
    (out := tmp_path / "out").mkdir()
    encode(images / "a.png", out)

    def appear(*_):
        (out / "e.lat").write_bytes(b"another run's")

    summary = encode(images, out, on_result=appear)
    assert (summary.done, summary.skipped) == (3, 2)
    assert (out / "e.lat").read_bytes() == b"another run's"


@pytest.mark.parametrize("decoder", ["auto", "embedded"])
def test_update_keeps_images_that_the_decoder_of_another_space_made(images, tmp_path, decoder):
    dynenc.convert("encode", images, tmp_path / "lat", space="sdxl", jobs=1)
    options = {"existing": "update", "decoder": decoder, "jobs": 1}
    first, second = (
        dynenc.convert("decode", tmp_path / "lat", tmp_path / "out", **options) for _ in range(2)
    )
    assert (first.done, first.skipped) == (5, 0)
    assert (second.done, second.skipped) == (0, 5)


def test_update_leaves_images_alone_that_dynenc_did_not_decode(images):
    originals = {path: path.read_bytes() for path in images.iterdir()}
    encode(images, None)
    options = {"existing": "update", "decoder": "embedded", "jobs": 1}
    summary = dynenc.convert("decode", images, None, **options)
    assert (summary.done, summary.failed) == (0, 5)
    assert "no record of being made by this command" in summary.failures[0].reason
    assert all(path.read_bytes() == data for path, data in originals.items())


def test_update_writes_a_damaged_file_again_and_no_strangers(images, tmp_path):
    encode(images, out := tmp_path / "out")
    whole = (out / "a.lat").read_bytes()
    (out / "a.lat").write_bytes(whole[:-3])
    (out / "b.lat").write_bytes(b"a stranger's")
    summary = encode(images, out, existing="update")
    assert (summary.done, summary.failed) == (1, 1)
    assert (out / "a.lat").read_bytes() == whole
    assert (out / "b.lat").read_bytes() == b"a stranger's"

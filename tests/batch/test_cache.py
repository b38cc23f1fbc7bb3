"""Caches of latents: what is made again, what is kept, and what a data set reads of them."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dynenc import Codec, LatentDataset, SameSizeBatches, make_cache
from dynenc.coding.lat_file import LatFile
from dynenc.errors import ImageError, OutputError, OutputExists, UsageError, WeightsError
from dynenc.interop import latent_cache
from dynenc.io import writing
from dynenc.io.writing import lock_folder

SIZES = {"a": (192, 128), "b": (128, 192), "c": (200, 140), "sub/d": (128, 128)}


@pytest.fixture
def images(tmp_path):
    (folder := tmp_path / "images" / "sub").mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        draw(folder.parent / f"{name}.png", size, number)
    return folder.parent


def draw(path, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).resize((8, 8)).resize(size).save(path)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def keys(cache):
    return [entry.key for _, entry in latent_cache.current(latent_cache.shards(cache))]


def test_a_cache_is_read_without_its_images(images, cache):
    summary = make_cache(str(images), cache, flips=True, shard_size=3)
    assert (summary.made, summary.kept, summary.failures) == (4, 0, [])
    assert summary.buckets == {(128, 128): 1, (128, 192): 1, (192, 128): 2}
    image = Image.open(images / "c.png").convert("RGB")
    shutil.rmtree(images)
    data = LatentDataset(cache)
    assert len(data) == 8
    samples = {(s["key"], s["flipped"]): s for s in map(data.__getitem__, range(8))}
    assert len(samples) == 8
    sample = samples["c", False]
    assert (sample["width"], sample["height"]) == (192, 128)
    assert (sample["original_width"], sample["original_height"]) == (200, 140)
    assert (sample["crop_left"], sample["crop_top"]) == (0, 3)
    fitted = image.resize((192, 134), Image.Resampling.LANCZOS).crop((0, 3, 192, 131))
    found = LatFile.parse(Codec("light").encode(fitted, quality=80, detail="off")).latents
    assert torch.equal(sample["latents"], torch.from_numpy(found))
    assert not torch.equal(samples["c", True]["latents"], sample["latents"])


def test_sizes_are_known_without_opening_shards(images, cache, monkeypatch):
    make_cache(str(images), cache)
    data = LatentDataset(cache)
    monkeypatch.setattr("dynenc.interop.torch_dataset._reading", None)
    assert sorted(data.sizes) == [(128, 128), (128, 192), (192, 128), (192, 128)]
    assert len(SameSizeBatches(data, 2)) == 3


def test_loaders_with_workers_shuffle_over_shards(images, cache):
    make_cache(str(images), cache, shard_size=1)
    data = LatentDataset(cache)
    batches = SameSizeBatches(data, 2, shuffle=True)
    loader = DataLoader(data, batch_sampler=batches, num_workers=2)
    assert sorted(key for batch in loader for key in batch["key"]) == sorted(SIZES)


def test_only_what_has_changed_is_made_again(images, cache):
    make_cache(str(images), cache, shard_size=2)
    before = {shard.tar: shard.entries for shard in latent_cache.shards(cache)}
    assert make_cache(str(images), f"{cache}/", shard_size=2).kept == 4
    assert {shard.tar: shard.entries for shard in latent_cache.shards(cache)} == before
    draw(images / "a.png", (64, 64), 9)  # in the first shard
    draw(images / "new.png", (64, 64), 10)
    summary = make_cache(str(images), cache, shard_size=2)
    assert (summary.made, summary.kept) == (2, 3)
    assert sorted(keys(cache)) == sorted([*SIZES, "new"])
    after = {shard.tar: shard.entries for shard in latent_cache.shards(cache)}
    assert len(before.keys() & after.keys()) == 1  # a shard that was not touched is the same file
    assert len(after) == 3
    data = LatentDataset(cache)
    assert {s["key"]: s["width"] for s in map(data.__getitem__, range(len(data)))}["a"] == 64


def test_orphans_are_found_and_removed_on_request(images, cache):
    make_cache(str(images), cache)
    (images / "b.png").unlink()
    assert make_cache(str(images), cache).orphans == ["b"]
    assert "b" in keys(cache)
    assert make_cache(str(images), cache, prune=True).removed == 1
    assert sorted(keys(cache)) == ["a", "c", "sub/d"]


def test_an_image_that_fails_stops_nothing_and_keeps_its_latents(images, cache):
    make_cache(str(images), cache)
    (images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (images / "e.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (images / "f.tar").write_bytes(bytes(1024))
    summary = make_cache(str(images), cache)
    failed = {path.rpartition("/")[2]: str(error) for path, error in summary.failures}
    assert failed.keys() == {"a.png", "e.png", "f.tar"}
    assert "is an archive: unpack it" in failed["f.tar"]
    assert sorted(keys(cache)) == sorted(SIZES)


def test_an_interrupted_run_goes_on(images, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("dynenc.batch.cache.AT_ONCE", 1)

        def stop(done, _all):
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_cache(str(images), cache, shard_size=1, on_progress=stop)
    done = len(keys(cache))
    assert 0 < done < 4
    assert make_cache(str(images), cache, shard_size=1).kept == done
    assert sorted(keys(cache)) == sorted(SIZES)


class Killed(BaseException):
    """Raised where the process would have ended."""


@pytest.mark.parametrize("function", ["rename", "remove"])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_what_a_killed_run_left_over_is_removed(images, cache, monkeypatch, function, calls):
    make_cache(str(images), cache, shard_size=2)
    draw(images / "a.png", SIZES["a"], 9)
    whole, count = getattr(latent_cache, function), iter(range(1, 99))

    def killed(*arguments):
        if next(count) == calls:
            raise Killed
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(latent_cache, function, killed)
        try:
            make_cache(str(images), cache, shard_size=2)
        except Killed:
            assert len(LatentDataset(cache)) == 4
    summary = make_cache(str(images), cache, shard_size=2)
    assert (summary.failures, summary.notes) == ([], [])
    shards = latent_cache.shards(cache)
    assert sorted(keys(cache)) == sorted(SIZES)
    assert {str(path) for path in Path(cache).iterdir()} == {
        path for shard in shards for path in (shard.tar, shard.index)
    }


def test_tars_without_an_index_are_the_users(images, cache):
    make_cache(str(images), cache)
    tars = [Path(cache) / f"latents-{number}.tar" for number in ("00000", "00001", "999999999")]
    tars[0].with_suffix(".json").unlink()
    for tar in tars[1:]:
        tar.write_bytes(b"of the user")
    before = [tar.read_bytes() for tar in tars]
    summary = make_cache(str(images), cache, force=True)
    assert [path for path, _ in summary.notes] == [str(tar) for tar in tars]
    assert [tar.read_bytes() for tar in tars] == before
    assert [Path(shard.tar).name for shard in latent_cache.shards(cache)] == ["latents-00002.tar"]


def test_a_tar_that_appears_meanwhile_is_kept(images, cache, monkeypatch):
    tar, whole = Path(cache) / "latents-00000.tar", latent_cache.Shard.write_index

    def appear(shard):
        whole(shard)
        tar.write_bytes(b"of the user")

    monkeypatch.setattr(latent_cache.Shard, "write_index", appear)
    with pytest.raises(OutputExists, match="created by another program meanwhile"):
        make_cache(str(images), cache)
    monkeypatch.undo()
    assert make_cache(str(images), cache).made == 4
    assert tar.read_bytes() == b"of the user"


def test_numbers_of_shards_end(images, cache):
    make_cache(str(images), cache)
    for path in list(Path(cache).iterdir()):
        path.rename(path.with_stem("latents-999999999"))
    draw(images / "a.png", SIZES["a"], 9)
    with pytest.raises(UsageError, match="the last number"):
        make_cache(str(images), cache)
    assert len(LatentDataset(cache)) == 4


def test_folders_with_other_json_files_are_no_caches(tmp_path):
    shutil.copy("tests/golden/v1_light_q0.lat", tmp_path / "00000.lat")
    (tmp_path / "00000.json").write_text('{"caption": "a cat"}')
    assert len(LatentDataset(tmp_path)) == 1


def test_other_settings_are_refused_unless_all_is_made_again(images, cache):
    make_cache(str(images), cache)
    with pytest.raises(UsageError, match="made with other settings"):
        make_cache(str(images), cache, quality=50)
    assert make_cache(str(images), cache, quality=50, force=True).made == 4
    assert len(keys(cache)) == 4


def test_caches_of_several_settings_are_refused(images, cache, monkeypatch):
    make_cache(str(images), cache)

    def killed(_shard):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(latent_cache.Shard, "remove", killed)
        with pytest.raises(Killed):
            make_cache(str(images), cache, quality=50, force=True)
    with pytest.raises(UsageError, match=r"several settings.*quality 80\.0 instead of 50"):
        LatentDataset(cache)
    make_cache(str(images), cache, quality=50, force=True)
    assert len(LatentDataset(cache)) == 4


def test_caches_and_other_sources_do_not_mix(images, cache, tmp_path):
    make_cache(str(images), cache)
    shutil.copy("tests/golden/v1_light_q0.lat", tmp_path / "a.lat")
    with pytest.raises(UsageError, match="make a data set of each"):
        LatentDataset([cache, tmp_path / "a.lat"])
    assert len(LatentDataset([cache, cache])) == 8


def test_refused(images, cache, tmp_path):
    with pytest.raises(WeightsError, match="no encoder light for SD 3"):
        make_cache(str(images), cache, space="sd3")
    with pytest.raises(UsageError, match="unknown latent space"):
        make_cache(str(images), cache, space="sd2")
    with pytest.raises(UsageError, match="not a local folder"):
        make_cache(str(images), "memory://cache")
    Image.open(images / "a.png").save(images / "a.jpg")
    with pytest.raises(UsageError, match="have the same key"):
        make_cache(str(images), cache)


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"version": 2}', '{"version": 1, "settings": {}}', "[" * 100_000],
    ids=["cut", "list", "newer", "empty", "deep"],
)
def test_damaged_indices(images, cache, tmp_path, damage):
    make_cache(str(images), cache)
    [shard] = latent_cache.shards(cache)
    (tmp_path / "cache" / "latents-00000.json").write_text(damage)
    with pytest.raises(UsageError, match=r"latents-00000\.json is"):
        LatentDataset(cache)
    content = {"version": 1, "settings": {"space": "sd1"}, "images": []}
    (tmp_path / "cache" / "latents-00000.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="make the cache again"):
        make_cache(str(images), cache)
    assert shard.entries


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", "b"), ("key", ""), ("place", [2**70, 1]), ("size", [8]), ("crop", 0)],
)
def test_damaged_entries(images, cache, tmp_path, field, value):
    make_cache(str(images), cache)
    index = tmp_path / "cache" / "latents-00000.json"
    content = json.loads(index.read_text())
    content["images"][0][field] = value
    index.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="move it and its tar away and make the cache again"):
        LatentDataset(cache)


def cut_short(tar):
    os.truncate(tar, 700)


def alter(tar):
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, alter])
def test_latents_that_are_damaged_are_made_again(images, cache, damage):
    make_cache(str(images), cache, shard_size=2)
    whole = {s["key"]: s["latents"] for s in LatentDataset(cache)}
    damage(Path(cache) / "latents-00000.tar")
    summary = make_cache(str(images), cache, shard_size=2)
    assert summary.made in (1, 2)  # of the shard
    assert summary.kept == 4 - summary.made
    again = {s["key"]: s["latents"] for s in LatentDataset(cache)}
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[key], whole[key]) for key in whole)


@pytest.mark.parametrize("damage", ["header", "long name", "end"])
def test_tars_whose_headers_are_damaged_are_written_again(images, cache, damage):
    draw(images / f"{'a' * 120}.png", SIZES["a"], 5)  # has an extended header
    make_cache(str(images), cache)
    [shard] = latent_cache.shards(cache)
    starts = [entry.place[0] for entry in shard.entries]
    content = bytearray(Path(shard.tar).read_bytes())
    if damage == "header":
        content[starts[2] - 500] ^= 1
    elif damage == "long name":
        content[content.index(b"a" * 110)] = ord("b")
    else:
        del content[sum(shard.entries[-1].place) :]
    Path(shard.tar).write_bytes(content)
    (images / "a.png").unlink()
    summary = make_cache(str(images), cache)
    assert (summary.made, summary.kept, summary.orphans) == (0, 4, ["a"])
    [again] = latent_cache.shards(cache)
    assert again.tar != shard.tar
    assert len(LatentDataset(again.tar)) == 5
    assert make_cache(str(images), cache).kept == 4
    assert latent_cache.shards(cache) == [again]


def test_damaged_latents_of_an_image_that_is_gone_are_told(images, cache):
    make_cache(str(images), cache)
    alter(Path(cache) / "latents-00000.tar")  # those of a
    (images / "a.png").unlink()
    summary = make_cache(str(images), cache)
    assert "the latents of a are damaged and removed" in str(dict(summary.failures))
    assert sorted(keys(cache)) == ["b", "c", "sub/d"]
    assert make_cache(str(images), cache).failures == []


def test_forced_settings_leave_nothing_of_others(images, cache):
    make_cache(str(images), cache, flips=True)
    (images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert len(make_cache(str(images), cache, encoder="nano", force=True).failures) == 1
    assert sorted(keys(cache)) == ["b", "c", "sub/d"]


def test_one_run_at_a_time(images, cache):
    make_cache(str(images), cache)
    with lock_folder(cache), pytest.raises(OutputError, match="another run is at work"):
        make_cache(str(images), cache)
    assert make_cache(str(images), cache).kept == 4


def test_nothing_is_pruned_for_what_cannot_be_found_or_read(images, cache, monkeypatch):
    make_cache(str(images), cache)
    with pytest.raises(ImageError, match="imagse does not exist"):
        make_cache(f"{images}/../imagse", cache, prune=True)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ImageError, match=r"sub cannot be read.*would be removed"):
        make_cache(str(images), cache, prune=True)
    summary = make_cache(str(images), cache)
    assert (summary.kept, len(summary.failures)) == (3, 1)
    assert sorted(keys(cache)) == sorted(SIZES)


def test_keys_of_odd_names(images, cache):
    odd = [os.fsdecode(b"latin\xe9"), "дом 🏠", "new\nline", "v1.2"]
    for name in odd:
        try:
            shutil.copy(images / "a.png", images / f"{name}.png")
        except OSError:
            pytest.skip("file names of this system are UTF-8")
    make_cache(str(images), cache, flips=True)
    assert {s["key"] for s in LatentDataset(cache)} == {*SIZES, *odd}
    assert make_cache(str(images), cache, flips=True).kept == 8


def test_an_image_given_twice_is_one(images, cache):
    both = [f"{images}/./a.png", str(images)]
    assert make_cache(both, cache).made == 4
    shutil.copy(images / "a.png", images / "b.flipped.png")
    with pytest.raises(UsageError, match="have the same name in a shard"):
        make_cache(str(images), cache, flips=True, force=True)


def test_a_cache_beside_its_images(images):
    (images / writing.partial_name()).touch()  # of a run that was killed
    for _ in range(2):
        assert make_cache(str(images), str(images)).failures == []
    assert not list(images.glob(".*"))


def test_latents_of_a_vae_of_any_space(images, cache, tmp_path):
    from diffusers import AutoencoderTiny

    def save_vae(seed, broken=False):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=16,
        )
        if broken:
            torch.nn.init.constant_(next(vae.encoder.parameters()), float("nan"))
        vae.save_pretrained(tmp_path / "taef1")

    save_vae(0)
    make_cache(str(images), cache, space="flux1", vae=str(tmp_path / "taef1"))
    with pytest.raises(WeightsError, match="none does not exist"):
        make_cache(images, cache, space="flux1", vae=tmp_path / "none")
    with pytest.raises(UsageError, match=r"FLUX\.1 latents, not those of SD 1\.x"):
        LatentDataset(cache)
    data = LatentDataset(cache, space="flux1")
    assert data[0]["latents"].shape == (16, 16, 24)
    save_vae(1)
    with pytest.raises(UsageError, match="other settings: weights"):
        make_cache(str(images), cache, space="flux1", vae=str(tmp_path / "taef1"))
    save_vae(2, broken=True)
    vae = str(tmp_path / "taef1")
    summary = make_cache(str(images), cache, space="flux1", vae=vae, force=True)
    assert (summary.made, summary.removed, len(summary.failures)) == (0, 0, 4)
    assert torch.equal(LatentDataset(cache, space="flux1")[0]["latents"], data[0]["latents"])
    assert "a.png: " in (reason := str(summary.failures[0][1]))
    assert "to NaN or infinite latents" in reason


def test_a_shard_that_cannot_be_read_is_not_replaced(images, cache, monkeypatch):
    make_cache(str(images), cache)
    (images / "a.png").unlink()
    draw(images / "b.png", SIZES["b"], 9)
    before = {path.name: path.read_bytes() for path in Path(cache).iterdir()}
    whole = latent_cache._lat
    reads = iter(range(99))

    def fail_later(*arguments):
        if next(reads) >= len(SIZES):  # once all have been read, the disk fails
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(*arguments)

    monkeypatch.setattr(latent_cache, "_lat", fail_later)
    with pytest.raises(ImageError, match=r"latents-00000\.tar cannot be read"):
        make_cache(str(images), cache)
    after = {path.name: path.read_bytes() for path in Path(cache).iterdir()}
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert make_cache(str(images), cache).orphans == ["a"]

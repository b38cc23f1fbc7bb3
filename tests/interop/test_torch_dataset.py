"""Latents for training loops: folders, shards, workers, damage."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.lat_files import read_latents
from torch.utils.data import ConcatDataset, DataLoader, Subset

from dynenc import Codec, LatentDataset, SameSizeBatches
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError, Corrupt, ImageError, TooLarge, UsageError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {"a": "v1_nano_q0", "b": "v1_light_q0", "sub/c": "v1_light_q100"}  # 64x48 px


@pytest.fixture
def folder(tmp_path):
    """A folder of three .lat files, one of them in a sub-folder, and a text."""
    (tmp_path / "lats" / "sub").mkdir(parents=True)
    for name, golden in NAMES.items():
        shutil.copy(GOLDEN / f"{golden}.lat", tmp_path / "lats" / f"{name}.lat")
    (tmp_path / "lats" / "a.txt").write_text("a cat")
    return tmp_path / "lats"


@pytest.fixture
def shard(folder, tmp_path):
    """The same files in a tar."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            tar.add(path, path.relative_to(folder))
    return tmp_path / "0.tar"


def expected(key):
    return read_latents((GOLDEN / f"{NAMES[key]}.lat").read_bytes())[1][0]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python 3.12
    pytest.mark.filterwarnings("ignore:.*worker processes in total"),  # where there is one core
]


@pytest.mark.parametrize("workers", [0, 2])
def test_folders_and_shards_give_the_same(folder, shard, workers):
    (shards := shard.parent / "shards" / "sub").mkdir(parents=True)
    shutil.copy(shard, shards)
    for source in (folder, str(shard), [folder / "a.lat", shard], shards.parent):
        dataset = LatentDataset(source)
        assert len(dataset) == (4 if isinstance(source, list) else 3)
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, shuffle=True)
        seen = 0
        for batch in loader:
            for key, latents in zip(batch["key"], batch["latents"], strict=True):
                assert torch.equal(latents, expected(key))
                seen += 1
            assert set(batch["width"].tolist()) == {64}
        assert seen == len(dataset)
        if workers:
            return  # they take long to start


@pytest.mark.parametrize("images", [False, True])
def test_workers_that_are_spawned_get_it_pickled(folder, images):
    dataset = LatentDataset(folder, images=images)
    expected = dataset[0]
    sample = pickle.loads(pickle.dumps(dataset))[0]
    assert sample.keys() == expected.keys()
    assert torch.equal(sample["latents"], expected["latents"])
    assert torch.equal(sample.get("image", torch.ones(1)), expected.get("image", torch.ones(1)))


def test_images(folder):
    dataset = LatentDataset(folder, images=True)
    blob = (folder / "b.lat").read_bytes()
    sample = dataset[1]
    assert torch.equal(sample["image"], Codec(decoder="embedded").decode_tensor(blob)[0])
    assert "image" not in LatentDataset(folder)[1]
    (sample["image"] * torch.ones(1, requires_grad=True)).sum().backward()  # may be trained on
    batch = next(iter(DataLoader(dataset, batch_size=3, num_workers=1)))  # with networks loaded
    assert batch["image"].shape == (3, 3, 48, 64)


def test_image_of_any_size(folder):
    shutil.copy(GOLDEN / "v1_light_7x13.lat", folder / "d.lat")
    sample = LatentDataset(folder / "d.lat", images=True)[0]
    assert sample["latents"].shape == (4, 2, 1)
    assert (sample["key"], sample["width"], sample["height"]) == ("d", 7, 13)
    assert sample["image"].shape == (3, 13, 7)


def test_damage_names_the_file(folder, shard):
    damaged = bytearray(shard.read_bytes())
    dataset = LatentDataset(shard)
    damaged[dataset.places[1].start + 20] ^= 1
    shard.write_bytes(damaged)
    assert torch.equal(dataset[0]["latents"], expected("a"))
    with pytest.raises(Corrupt, match=r"b of .*0\.tar: the checksum"):
        dataset[1]
    dataset = LatentDataset(folder)
    (folder / "a.lat").unlink()
    with pytest.raises(BitstreamError, match=r"a\.lat cannot be read"):
        dataset[0]
    with pytest.raises(TooLarge):
        LatentDataset(folder, max_pixels=100)[0]


def test_nothing_to_read(tmp_path, shard):
    with pytest.raises(UsageError, match="cahce does not exist"):
        LatentDataset(tmp_path / "cahce")
    with pytest.raises(UsageError, match=r"no \.lat file in"):
        LatentDataset([])
    with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as tar:
        tar.add(shard)
    with pytest.raises(UsageError, match=r"1\.tar\.gz cannot be read as an uncompressed tar"):
        LatentDataset(tmp_path / "1.tar.gz")
    with pytest.raises(ImageError, match=r"2\.tar cannot be read: No such file"):
        LatentDataset(tmp_path / "2.tar")


def test_a_damaged_header_hides_no_samples(shard):
    blob = bytearray(shard.read_bytes())
    blob[LatentDataset(shard).places[2].start - 512] ^= 1  # the first letter of the last name
    shard.write_bytes(blob)
    with pytest.raises(UsageError, match=r"0\.tar cannot be read .*a header is damaged"):
        LatentDataset(shard)


@pytest.fixture
def mixed(folder):
    """The data set of files of 64x48, 33x40 and 7x13 px."""
    for name, size in (("d", "7x13"), ("e", "33x40"), ("f", "7x13"), ("g", "1x9")):
        shutil.copy(GOLDEN / f"v1_light_{size}.lat", folder / f"{name}.lat")
    return LatentDataset(folder)


def test_sizes_are_known_from_the_headers(mixed, monkeypatch):
    monkeypatch.setattr(LatFile, "parse", None)
    sizes = {place.key: size for place, size in zip(mixed.places, mixed.sizes, strict=True)}
    assert (sizes["a"], sizes["d"], sizes["e"]) == ((64, 48), (7, 13), (33, 40))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_over_mixed_sizes(mixed, workers):
    batches = SameSizeBatches(mixed, 2, shuffle=True)
    loader = DataLoader(mixed, batch_sampler=batches, num_workers=workers)
    keys = []
    for batch in loader:
        keys += batch["key"]
        assert batch["latents"].shape[0] == len(batch["key"]) <= 2
    assert sorted(keys) == sorted(place.key for place in mixed.places)
    assert len(loader) == 5  # 64x48: 3 samples; 7x13: 2; 33x40: 1; 1x9: 1


def test_orders_of_batches(mixed):
    plain = SameSizeBatches(mixed, 2)
    assert list(plain) == list(plain)
    shuffled = [SameSizeBatches(mixed, 1, shuffle=True, seed=3) for _ in range(2)]
    first, second = list(shuffled[0]), list(shuffled[0])
    assert first != second
    assert list(shuffled[1]) == first
    shuffled[1].set_epoch(1)
    assert list(shuffled[1]) == second
    full = SameSizeBatches(mixed, 2, drop_last=True)
    assert [len(batch) for batch in full] == [2] * len(full) == [2, 2]
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        SameSizeBatches(mixed, 0)
    assert SameSizeBatches(LatentDataset(mixed.places[0].file, images=True), 9).groups


def test_parts_and_unions_of_data_sets(mixed):
    part = Subset(mixed, [0, 2, 4, 6])
    union = ConcatDataset([part, mixed])
    for data in (part, Subset(part, [1, 3]), union):
        batches = list(SameSizeBatches(data, 2))
        assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
        for batch in batches:
            assert len({data[index]["latents"].shape for index in batch}) == 1
    with pytest.raises(UsageError, match="needs a LatentDataset, not list"):
        SameSizeBatches(Subset([1, 2], [0]), 2)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_replicas", [2, 3, 13])
def test_processes_share_the_batches(mixed, num_replicas, drop_last):
    settings = {"shuffle": True, "drop_last": drop_last}
    every = list(SameSizeBatches(mixed, 1, **settings))
    shares = [
        SameSizeBatches(mixed, 1, **settings, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    given = [list(share) for share in shares]
    assert {len(batches) for batches in given} == {len(share) for share in shares}
    assert len({len(share) for share in shares}) == 1
    seen = [batch for batches in given for batch in batches]
    if drop_last:
        assert len(seen) == len(every) // num_replicas * num_replicas
        assert len(set(map(tuple, seen))) == len(seen)
    else:
        assert set(map(tuple, seen)) == set(map(tuple, every))
        assert len(seen) - len(every) < num_replicas
    with pytest.raises(UsageError, match="rank 2 is not below num_replicas=2"):
        SameSizeBatches(mixed, 1, num_replicas=2, rank=2)


def test_no_size_is_claimed_for_batches_of_which_some_are_smaller(mixed):
    """Of batches below that size, accelerate drops some, or fills them up with other sizes."""
    assert SameSizeBatches(mixed, 2).batch_size is None
    assert SameSizeBatches(mixed, 2, drop_last=True).batch_size == 2


def test_no_more_than_the_largest_valid_file_is_read(folder):
    os.truncate(folder / "a.lat", 20 * 2**30)
    (folder / "z.lat").write_bytes(b"")
    os.truncate(folder / "z.lat", 20 * 2**30)
    dataset = LatentDataset(folder)
    with pytest.raises(TooLarge, match="longer than"):
        dataset[0]
    with pytest.raises(BitstreamError, match=r"not a \.lat file"):
        dataset[[place.key for place in dataset.places].index("z")]

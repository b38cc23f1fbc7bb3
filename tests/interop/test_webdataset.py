"""Caches are shards of WebDataset, and its shards are read as any tar; skipped without it."""

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import dynenc
from dynenc.coding.lat_file import LatFile

webdataset = pytest.importorskip("webdataset")
pytestmark = [  # it leaves the shards open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cache(photo_path, tmp_path):
    photo = Image.open(photo_path).convert("RGB")
    (tmp_path / "in" / "part.1").mkdir(parents=True)
    for i in range(5):
        name = f"part.1/{i}.png" if i % 2 else f"{i}.png"
        photo.crop((20 * i, 0, 20 * i + 64, 64)).save(tmp_path / "in" / name)
    dynenc.make_cache(tmp_path / "in", tmp_path / "cache", flips=True, shard_size=2)
    return tmp_path / "cache"


def files_in(sample):
    """Key, whether flipped, and .lat file of all that a sample of WebDataset holds."""
    names = [name for name in ("lat", "flipped.lat") if name in sample]
    return [(sample["__key__"], name != "lat", LatFile.parse(sample[name])) for name in names]


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_reads_a_cache(cache, workers):
    shards = sorted(map(str, cache.glob("*.tar")))
    assert len(shards) == 3
    stream = webdataset.WebDataset(shards, shardshuffle=False).map(files_in)
    samples = DataLoader(stream, batch_size=None, num_workers=workers)
    found = {(key, flipped): file.latents for sample in samples for key, flipped, file in sample}
    data = dynenc.LatentDataset(cache)
    assert found.keys() == {(sample["key"], sample["flipped"]) for sample in data}
    for sample in data:
        assert np.array_equal(found[sample["key"], sample["flipped"]], sample["latents"])


def test_shards_that_webdataset_wrote(photo_path, tmp_path):
    photo = Image.open(photo_path).convert("RGB").crop((0, 0, 64, 48))
    blob = dynenc.Codec("nano", device="cpu").encode(photo, detail="off")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "cats/one", "lat": blob, "txt": "a caption"})
    [sample] = dynenc.LatentDataset(tmp_path / "a.tar")
    assert sample["key"] == "cats/one"
    assert np.array_equal(sample["latents"], LatFile.parse(blob).latents)

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from dynenc import registry
from dynenc.errors import WeightsError
from dynenc.networks import loading

LIMITS = {  # bytes
    "nano": 89_000,
    "light": 479_000,
    "base": 10_000_000,
    "embedded": 4_000_000,
    "autoencoder": 1_100_000,
}
NETWORKS = [model for model in registry.MODELS.values() if registry.base_name(model) in LIMITS]


@pytest.mark.parametrize("model", registry.MODELS.values(), ids=lambda m: m.name)
def test_weight_files_are_the_pinned_ones(model):
    data = registry.read_file(model)
    assert hashlib.sha256(data).hexdigest() == model.sha256


@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: m.name)
def test_weight_files_are_small(model):
    limit = LIMITS[registry.base_name(model)]
    assert (registry.folder() / model.file).stat().st_size <= limit


@pytest.mark.parametrize("model", NETWORKS, ids=lambda m: m.name)
def test_weight_files_say_how_they_were_made(model):
    with safe_open(registry.folder() / model.file, "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == model.name
    assert json.loads(metadata["config"])["seed"] >= 0
    if metadata["test"] != "none":
        assert json.loads(metadata["figures"])["psnr_db"] > 15
    assert {"data", "teacher", "commit", "steps"} <= set(metadata)


def test_every_file_in_the_folder_is_in_the_table():
    files = {path.name for path in registry.folder().iterdir()}
    assert files == {model.file for model in registry.MODELS.values()}


def test_numbers_on_disk_do_not_move():
    numbers = {(m.kind, m.name): m.number for m in registry.MODELS.values() if m.number}
    assert numbers == {
        ("encoder", "nano"): 1,
        ("encoder", "light"): 2,
        ("encoder", "base"): 3,
        ("encoder", "light-sdxl"): 9,
        ("encoder", "base-sdxl"): 10,
        ("encoder", "light-flux1"): 11,
        ("encoder", "base-flux1"): 12,
        ("coder", "fast"): 1,
        ("coder", "full"): 2,
        ("coder", "full-sdxl"): 2,  # of its space
        ("coder", "full-flux1"): 2,
        ("coder", "encoders-flux1"): 3,
        ("coder", "full-sd3"): 2,
        ("autoencoder", "autoencoder"): 5,
    }


def test_unknown_names():
    with pytest.raises(WeightsError, match="choose one of nano, light, base"):
        loading.load_named("embedded", "encoder")


@pytest.mark.parametrize("damage", ["missing", "altered", "short"])
def test_missing_or_altered_files(tmp_path, monkeypatch, damage):
    data = bytearray(registry.read_file(registry.MODELS["nano"]))
    monkeypatch.setattr(registry, "folder", lambda: tmp_path)
    if damage != "missing":
        data[-1] ^= 1
        (tmp_path / "nano.safetensors").write_bytes(data if damage == "altered" else data[:-9])
    with pytest.raises(WeightsError, match=r"nano\.safetensors.*reinstall dynenc"):
        loading.load_encoder("nano")


def test_saved_weights_load(tmp_path):
    torch.manual_seed(0)
    network = loading.build(registry.MODELS["nano"])
    path = tmp_path / "mine.safetensors"
    loading.save_weights(network.state_dict(), path, {"model": "nano"})
    loaded = loading.load_path(path)
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(loaded(image), network(image), atol=2e-3)


def test_files_that_are_not_weights(tmp_path):
    (path := tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read"):
        loading.load_path(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        loading.load_path(tmp_path / "none.safetensors")
    loading.save_weights({"a": torch.zeros(1)}, path, {"model": "nano"})
    with pytest.raises(WeightsError, match="does not have"):
        loading.load_path(path)
    loading.save_weights({"a": torch.zeros(1)}, path, {})
    with pytest.raises(WeightsError, match="does not name a model"):
        loading.load_path(path)

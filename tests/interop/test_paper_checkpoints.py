"""The author's checkpoints: read without running anything, and run as the author's code runs."""

import json
import pickle
import zipfile
from contextlib import contextmanager

import pytest
import torch
from helpers.lat_files import read_latents
from oracles.published import materialised
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from dynenc import Codec, load_encoder
from dynenc.cli.main import app
from dynenc.errors import OutputExists, WeightsError
from dynenc.interop import paper_checkpoints
from dynenc.networks import loading


class HybridDense(nn.Linear):
    def __init__(self, fan_in, fan_out):
        super().__init__(fan_in, fan_out)
        self.powers = nn.Parameter(torch.empty(fan_out).uniform_(0.5, 1.5))
        self.muls = nn.Parameter(torch.empty(fan_out).uniform_(-1, 1))


class DynamicConv(nn.Module):
    def __init__(self, fan_in, fan_out, k, stride, padding=0, hidden=3, static=True):
        super().__init__()
        if static:
            self.similar_conv = nn.Conv2d(fan_in, fan_out, k, stride=stride, padding=padding)
        self.in_channels, self.out_channels, self.kernel_size = fan_in, fan_out, k
        self.stride, self.padding, self.device = stride, padding, "cpu"
        self.predictors = nn.ModuleList(
            nn.Sequential(
                HybridDense(k * k * fan_in, hidden),
                nn.BatchNorm1d(hidden),
                HybridDense(hidden, hidden),
                nn.BatchNorm1d(hidden),
                nn.Linear(hidden, k * k * fan_in),
            )
            for _ in range(fan_out)
        )


class encoder(nn.Module):  # the author's name
    def __init__(self, deep=False):
        super().__init__()
        if not deep:
            self.c1 = DynamicConv(3, 4, 8, 8)
            return
        self.c1 = DynamicConv(3, 5, 2, 2, static=False)
        self.p1 = nn.MaxPool2d(2, 2)
        self.c2 = DynamicConv(8, 2, 2, 2, static=False)
        self.p2 = nn.MaxPool2d(4, 4)
        self.c3 = DynamicConv(5, 4, 2, 2, static=False)
        self.norm = nn.InstanceNorm2d(11)


class decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = DynamicConv(4, 192, 2, 1, "same", hidden=2)
        self.ps1 = nn.PixelShuffle(8)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encs, self.decs = [encoder()], [decoder()]


AUTHORS = (HybridDense, DynamicConv, encoder, decoder, Autoencoder)


@contextmanager
def notebook():
    """The author's classes are those of a notebook, for a while."""
    import __main__

    with pytest.MonkeyPatch.context() as patch:
        for kind in AUTHORS:
            patch.setattr(kind, "__module__", "__main__")
            patch.setattr(__main__, kind.__name__, kind, raising=False)
        yield


@pytest.fixture
def saved(tmp_path):
    """Saves a module as the author did: pickled whole."""

    def save(module):
        with notebook():
            torch.save(module, tmp_path / "author.pt")
        return tmp_path / "author.pt"

    torch.manual_seed(0)
    return save


@pytest.mark.parametrize("deep", [False, True])
def test_an_encoder_runs_as_the_authors_code(saved, tmp_path, deep):
    theirs = encoder(deep=deep)
    network = paper_checkpoints.import_checkpoint(saved(theirs), tmp_path / "w.safetensors")
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        features = image
        for number, layer in enumerate(network.layers):
            if number:
                pooled = nn.functional.max_pool2d(image, 2**number)
                features = torch.cat([features, pooled], dim=1)
            features = materialised(layer, features)
        assert features.shape == (1, 4, 4, 6)
        assert torch.allclose(network(image), 0.18215 * features, atol=1e-5)
        first = theirs.c1.predictors[1]
        assert torch.equal(network.layers[0].last_weight[1], first[4].weight)
        assert torch.equal(network.layers[0].second_power[1], first[2].powers)
        assert torch.equal(network.layers[0].second_norm_bias[1], first[3].bias)


def test_the_autoencoder_runs_as_the_authors_code_and_is_no_encoder(saved, tmp_path):
    target = tmp_path / "w.safetensors"
    network = paper_checkpoints.import_checkpoint(saved(Autoencoder()), target)
    image = torch.rand(1, 3, 24, 40) * 2 - 1
    with torch.inference_mode():
        latents = materialised(network.encoder.layers[0], (image + 1) / 2)
        rebuilt = nn.functional.pixel_shuffle(materialised(network.decoder[0], latents), 8)
        assert torch.allclose(network(image), rebuilt.clamp(0, 1) * 2 - 1, atol=1e-4)
    with pytest.raises(WeightsError, match="no encoder of SD latents"):
        load_encoder(str(target))


def test_an_image_is_encoded_alike_in_any_batch(saved, tmp_path):
    network = paper_checkpoints.import_checkpoint(saved(encoder()), tmp_path / "w.safetensors")
    images = torch.rand(3, 3, 16, 24)
    assert torch.equal(network(images)[1:2], network(images[1:2]))


def test_the_smallest_image_is_encoded(saved, tmp_path):
    network = paper_checkpoints.import_checkpoint(saved(encoder()), tmp_path / "w.safetensors")
    assert network(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_the_command_makes_a_file_for_encode_and_roundtrip(saved, tmp_path, photo_path):
    target, lat = tmp_path / "author.safetensors", tmp_path / "photo.lat"
    run = CliRunner().invoke
    done = run(app, ["import-checkpoint", str(saved(encoder())), "-o", str(target)])
    assert json.loads(done.stdout) == {
        "path": str(target),
        "network": "PublishedEncoder",
        "parameters": sum(p.numel() for p in encoder().parameters()),
    }
    with safe_open(target, "pt") as file:
        assert file.metadata()["source"] == "author.pt"
    assert run(app, ["encode", str(photo_path), "-e", str(target), "-o", str(lat)]).exit_code == 0
    assert "imported" in run(app, ["info", str(lat)]).stdout
    read_latents(lat.read_bytes())
    both = run(
        app, ["roundtrip", str(photo_path), "-e", str(target), "-d", "embedded", "--json", "-q"]
    )
    assert json.loads(both.stdout)["encoder"] == str(target)
    again = run(app, ["import-checkpoint", str(saved(encoder())), "-o", str(target)])
    assert again.exit_code == OutputExists.exit_code


class Hostile:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _ran(path):  # what a hostile pickle would call
    path.touch()


@pytest.mark.parametrize("where", ["top", "attribute", "weight"])
def test_nothing_of_a_hostile_pickle_runs(saved, tmp_path, where):
    trap, target = tmp_path / "ran", tmp_path / "w.safetensors"
    hostile = Hostile(_ran, trap)
    module = encoder()
    if where == "attribute":
        module.c1.device = hostile
    if where == "weight":
        module.c1.predictors[0][4]._parameters["bias"] = hostile
    path = saved(hostile if where == "top" else module)
    assert not trap.exists()
    with pytest.raises(WeightsError, match=r"references .*_ran|references pathlib"):
        paper_checkpoints.import_checkpoint(path, target)
    assert not trap.exists()
    assert not target.exists()
    with notebook():
        torch.load(path, weights_only=False)  # the trap is a real one
    assert trap.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__main__", "exec"),
        ("torch", "load"),
        ("torch.nn.modules.conv", "Conv2d.forward"),
        ("dynenc.interop.paper_checkpoints", "import_checkpoint"),
    ],
)
def test_names_that_no_network_needs_are_refused(tmp_path, module, name):
    path = packed(tmp_path, f"c{module}\n{name}\n.".encode())
    with pytest.raises(WeightsError, match=f"references {module}.{name}"):
        paper_checkpoints.read_checkpoint(path)


def packed(folder, data, kind=zipfile.ZIP_STORED):
    path = folder / "made.pt"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("made/data.pkl", data)
    return path


def test_a_pickle_cannot_change_what_the_next_one_gets(tmp_path):
    """BUILD with slots calls setattr on whatever stands on the stack, a class as well."""
    for line in (
        "__main__\nencoder",
        "torch._utils\n_rebuild_tensor_v2",
        "collections\nOrderedDict",
    ):
        data = f"c{line}\n(N}}S'part'\nI1\nst.".encode()
        data = data.replace(b"st.", b"stb.")
        path = packed(tmp_path, data)
        with pytest.raises(WeightsError):
            paper_checkpoints.read_checkpoint(path)
    assert callable(paper_checkpoints.StandIn().part)
    assert not hasattr(paper_checkpoints._Rebuild(), "evil")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", pickle.dumps(3), pickle.dumps({"a": [1]}), b"(" * 100_000, b"cos\n", b"\x80\x05."],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, data):
    with pytest.raises(WeightsError):
        paper_checkpoints.read_checkpoint(packed(tmp_path, data))
    (tmp_path / "raw.pt").write_bytes(data)
    with pytest.raises(WeightsError):
        paper_checkpoints.read_checkpoint(tmp_path / "raw.pt")


def test_a_compressed_member_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="compressed"):
        paper_checkpoints.read_checkpoint(packed(tmp_path, b"\0" * 10**6, zipfile.ZIP_DEFLATED))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pt"):
        paper_checkpoints.read_checkpoint(tmp_path / "nowhere.pt")


def share_predictors(module):
    first = module.c1.predictors[0]
    module.c1.predictors = nn.ModuleList([first] * len(module.c1.predictors))


@pytest.mark.parametrize(
    "damage",
    [
        share_predictors,  # 500 of them would take 500 times the memory of the file
        lambda module: delattr(module.c1, "stride"),
        lambda module: setattr(module.c1, "stride", 4),
        lambda module: setattr(module.c1, "kernel_size", "8"),
        lambda module: setattr(module.c1, "in_channels", 10**12),
        lambda module: setattr(module.c1, "predictors", nn.ModuleList()),
        lambda module: module.c1.predictors.append(nn.Sequential(nn.Linear(2, 2))),
        lambda module: module._modules.clear(),
    ],
)
def test_another_network_is_refused(saved, tmp_path, damage):
    module = encoder()
    damage(module)
    with pytest.raises(WeightsError):
        paper_checkpoints.import_checkpoint(saved(module), tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_converted_file_is_checked_before_memory_is_taken(tmp_path):
    layer = {
        "in_channels": 2**20,
        "out_channels": 2**20,
        "kernel_size": 2**10,
        "stride": 8,
        "padding": 0,
        "hidden": 2**10,
        "static": False,
    }
    path = tmp_path / "w.safetensors"
    for network in (
        json.dumps({"layers": [layer]}),
        '{"layers": [{}]}',
        "[]",
        "{",
        '{"layers":[]}',
    ):
        save_file({"a": torch.zeros(1)}, path, {"model": "imported", "network": network})
        with pytest.raises(WeightsError, match=r"w\.safetensors"):
            loading.load_path(path)


def test_a_codec_takes_a_file_of_weights(saved, tmp_path):
    photo = Image.new("RGB", (40, 30))
    target = tmp_path / "w.safetensors"
    paper_checkpoints.import_checkpoint(saved(encoder()), target)
    header, latents = read_latents(Codec(str(target), "embedded", "cpu").encode(photo))
    assert header.model_id == 4
    assert latents.shape[1] == 4
    with pytest.raises(WeightsError, match="cannot be read"):
        Codec(str(tmp_path / "none.safetensors"), "embedded", "cpu").encode(photo)

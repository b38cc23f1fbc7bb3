"""Weight files made by hand to hurt: refused before anything is built on them."""

import json
import pickle
import re
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynenc import registry
from dynenc.coding.entropy import EntropyCoder
from dynenc.errors import WeightsError
from dynenc.networks import loading
from dynenc.networks.decoders import load_decoder

LOADERS = [
    loading.load_path,
    lambda path: EntropyCoder.load(path.read_bytes(), has_trellis=True),
    lambda path: load_decoder(str(path)),
]


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def safetensors(header, data=b"", length=None):
    """A file in which header and length may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, start, end, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


FILES = {
    "empty": b"",
    "a pickle under a false name": pickle.dumps(Trap()),
    "a pickle of torch under a false name": b"PK\3\4" + pickle.dumps(Trap()),
    "a header of 2**64 bytes": safetensors(b"{}", length=2**64 - 1),
    "a header of 2**40 bytes": safetensors(b"{}", length=2**40),
    "a header past the end": safetensors(b"{}", length=3),
    "no JSON": safetensors(b"\xff\xfe{}"),
    "deep JSON": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "no tensors": safetensors({}),
    "a tensor past the end": safetensors(tensor([2], 0, 8), bytes(4)),
    "a shape of 2**80 numbers": safetensors(tensor([2**40, 2**40], 0, 4), bytes(4)),
    "a shape that overflows to nothing": safetensors(tensor([2**32, 2**32], 0, 0)),
    "a negative shape": safetensors(tensor([-1], 0, 4), bytes(4)),
    "offsets that run back": safetensors(tensor([1], 4, 0), bytes(4)),
    "an unknown type": safetensors(tensor([1], 0, 4, "F999"), bytes(4)),
    "a tensor of another network": safetensors(tensor([1], 0, 4), bytes(4)),
}


@pytest.mark.parametrize("load", LOADERS, ids=["trained", "coder", "decoder"])
@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused(tmp_path, name, load):
    (path := tmp_path / "weights.safetensors").write_bytes(FILES[name])
    with pytest.raises(WeightsError):
        load(path)


@pytest.mark.parametrize("model", ["nano", "embedded"])
@pytest.mark.parametrize("change", ["shape", "missing", "more", "transposed"])
def test_weights_of_another_shape_are_refused(tmp_path, model, change):
    state = loading.build(registry.MODELS[model]).state_dict()
    name = next(name for name, value in state.items() if value.dim() > 1)
    if change == "missing":
        del state[name]
    else:
        value = state[name].transpose(0, 1) if change == "transposed" else torch.zeros(1, 1)
        state["more" if change == "more" else name] = value
    path = tmp_path / "x.safetensors"
    loading.save_weights(state, path, {"model": model})
    with pytest.raises(WeightsError, match="does not have"):
        loading.load_path(path)


def test_a_file_that_claims_to_be_a_coder_is_no_network(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", {"model": "fast"})
    with pytest.raises(WeightsError, match="does not name a model"):
        loading.load_path(tmp_path / "x.safetensors")


@pytest.mark.parametrize("names", [["decoder.layers.0.weight"], ["decoder.up.0.block.0.x"], None])
def test_decoders_of_numbers_without_a_shape_are_refused(tmp_path, names):
    if names is None:
        names = [f"decoder.up_blocks.{i}.resnets.0.conv1.bias" for i in range(4)]
        names.append("decoder.conv_in.weight")
    path = tmp_path / "x.safetensors"
    save_file({name: torch.tensor(1.0) for name in names}, path)
    with pytest.raises(WeightsError):
        load_decoder(str(path))


def test_no_module_unpickles_anything_but_tensors():
    sources = {p.name: p.read_text("utf-8") for p in registry.folder().parent.rglob("dynenc/*.py")}
    for name, text in sources.items():
        # between its own processes; and a reader for which only tensors and stand-ins exist
        assert "import pickle" not in text or name in ("ray_engine.py", "paper_checkpoints.py")
        calls = re.findall(r"(?<!safetensors\.)torch\.load\(.*", text)
        assert all(call.endswith("weights_only=True)") for call in calls)
        assert not calls or name in ("train.py", "interchange.py")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers.0.shift", torch.tensor([-1], dtype=torch.int32)),
        ("layers.0.shift", torch.tensor([5000], dtype=torch.int32)),
        ("layers.0.multiplier", torch.tensor([-1] * 192, dtype=torch.int16)),
        ("layers.0.multiplier", torch.ones(192, dtype=torch.bfloat16)),
    ],
)
def test_integers_out_of_range_are_refused(tmp_path, name, value):
    state = load_file(registry.folder() / "embedded.safetensors")
    state[name] = value.reshape(-1)[:1].expand(state[name].shape).contiguous()
    path = tmp_path / "x.safetensors"
    loading.save_weights(state, path, {"model": "embedded"})
    with pytest.raises(WeightsError):
        loading.load_path(path)

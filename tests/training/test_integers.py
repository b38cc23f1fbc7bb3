"""The float decoder and its integers give nearly the same pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dynenc import metrics, registry
from dynenc.coding.lat_file import LatFile
from dynenc.errors import WeightsError
from dynenc.native.decoder import to_integers
from dynenc.networks import integer_decoder, integer_tensors, loading
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.integer_tensors import Sizes
from dynenc.training import integers
from dynenc.training.file_latents import Quantised
from dynenc.view import Region

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = Sizes((32, 64, 32), (2, 1, 1))


def psnr_db(one, other):
    error = np.square(one.astype(float) - other).mean()
    return 10 * np.log10(255**2 / error)


def float_pixels(network, latents, step, dtype=torch.float32):
    with torch.inference_mode():
        image = network(torch.from_numpy(latents)[None].to(dtype), step)[0].float().numpy()
    return np.rint((image.clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)


def made_up():
    """A float decoder whose pixels vary, and latents that it decodes."""
    torch.manual_seed(0)
    network = EmbeddedDecoder(SIZES.widths, SIZES.blocks).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("mix.weight", "spatial.weight", "gate.weight")):
            parameter.data *= 2
    network.step_bias.slope.data = torch.randn(SIZES.widths[0], 1, 1)
    steps = (1.0, 0.3, 0.5, 0.0, 0.7, 0.2)
    return network, [Quantised(torch.randn(1, 4, 24, 24), torch.tensor([s])) for s in steps]


def test_integers_decode_as_the_floats_they_are_made_of():
    network, samples = made_up()
    tensors = integers.of_network(network, samples[:4])
    decoder = integer_tensors.load(tensors, SIZES)
    again = EmbeddedDecoder(SIZES.widths, SIZES.blocks).eval()
    floats = integer_tensors.to_floats(tensors, SIZES)
    again.load_state_dict({name: torch.from_numpy(values) for name, values in floats.items()})
    region = Region(0, 0, 192, 192)
    for (latents,), [step] in samples[4:]:
        whole = to_integers(latents.numpy())
        pixels = decoder.decode(whole, region, step_q=round(1024 * float(step)))
        for floats in (network, again):
            assert psnr_db(pixels, float_pixels(floats, latents.numpy(), float(step))) > 45
        assert len(np.unique(pixels)) > 50
        assert psnr_db(pixels, decoder.decode(whole, region)) < 40  # it does use the step


@pytest.mark.parametrize("name", ["embedded", "fine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shipped_decoder_is_nearly_the_same_in_floats(name, dtype):
    network = loading.load_named(name, "decoder").to(dtype)
    file = LatFile.parse((GOLDEN / "v1_light_photo_q50.lat").read_bytes())
    pixels = np.asarray(integer_decoder.decode(file, name))
    floats = float_pixels(network, file.latents, file.step, dtype)[
        : pixels.shape[0], : pixels.shape[1]
    ]
    assert psnr_db(pixels, floats) > 45


def test_training_can_go_on_from_the_shipped_decoder():
    """A step of Adam, which is about as large for all weights, is too large for none of them."""
    torch.manual_seed(0)
    network = loading.load_named("embedded", "decoder").requires_grad_()
    file = LatFile.parse((GOLDEN / "v1_light_photo_q50.lat").read_bytes())
    latents = torch.from_numpy(file.latents[:, :24, :24])[None]
    before = network(latents)
    target = before.detach() + 0.05 * torch.randn_like(before)
    optimizer = torch.optim.Adam(network.parameters(), 4e-4)
    (before - target).square().mean().backward()
    optimizer.step()
    assert metrics.psnr_db(network(latents).detach(), before.detach()) > 30


def test_a_file_of_floats_becomes_one_of_integers(tmp_path, photo_path, monkeypatch):
    monkeypatch.setattr(integers, "CROPS", 2)
    monkeypatch.setattr(integers, "CROP", 64)
    (folder := tmp_path / "photos").mkdir()
    shutil.copy(photo_path, folder)
    network = loading.build(registry.MODELS["embedded"])
    start, made, again = (tmp_path / name for name in ("float", "made", "again"))
    save_file(network.state_dict(), start, {"model": "embedded", "steps": "7"})
    for export in (made, again):
        size = integers.convert(start, [folder], tmp_path, export, "nano")
        assert size == export.stat().st_size < 4_000_000
    one, other = load_file(made), load_file(again)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert isinstance(loading.load_path(made), EmbeddedDecoder)
    nano = registry.folder() / "nano.safetensors"
    with pytest.raises(WeightsError, match="has no decoder with an integer form"):
        integers.convert(nano, [folder], tmp_path, again, "nano")

"""The autoencoder: latents of its own, its own decoder, and no other."""

import json

import pytest
import torch
from helpers.lat_files import read_latents
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import dynenc
from dynenc import Codec, metrics, registry
from dynenc.cli.main import app
from dynenc.errors import BitstreamError, OtherLatents, WeightsError
from dynenc.imaging import tensors
from dynenc.networks.layers import DynamicBlock, DynamicConv
from dynenc.networks.loading import build

RUN = CliRunner().invoke


@pytest.fixture(scope="module")
def lats(tmp_path_factory):
    """A folder with one file of the autoencoder and one of nano."""
    folder = tmp_path_factory.mktemp("lats")
    image = Image.radial_gradient("L").convert("RGB").crop((0, 0, 101, 83))
    for name in ("autoencoder", "nano"):
        (folder / f"{name}.lat").write_bytes(Codec(name, device="cpu").encode(image))
    return folder


def software(path):
    """Who made an image, as its EXIF data says."""
    with Image.open(path) as image:
        return image.getexif()[0x0131]


def test_its_file_names_it_and_is_decoded_by_its_own_decoder(photo_path):
    with Image.open(photo_path) as opened:
        image = opened.convert("RGB")
    codec = Codec("autoencoder", device="cpu")
    blob = codec.encode(image)
    header, _ = read_latents(blob)
    assert registry.latent_model(header.model_id).name == "autoencoder"
    decoded = Codec("nano", device="cpu").decode(blob)  # whatever else the codec does
    figure = metrics.psnr_db(tensors.to_tensor(decoded), tensors.to_tensor(image))
    assert figure > 22


@pytest.mark.parametrize("decoder", ["sd-vae", "stabilityai/sd-vae-ft-mse", "some/folder"])
def test_another_decoder_is_refused_with_the_reason(lats, decoder):
    blob = (lats / "autoencoder.lat").read_bytes()
    with pytest.raises(OtherLatents, match="latents are those of the autoencoder"):
        Codec(decoder=decoder, device="cpu").decode(blob)
    done = RUN(app, ["decode", str(lats / "autoencoder.lat"), "-d", decoder, "-o", "x.png"])
    assert done.exit_code == BitstreamError.exit_code
    assert "cannot read" in done.stderr


def test_its_decoder_is_refused_for_other_latents(lats):
    blob = (lats / "nano.lat").read_bytes()
    with pytest.raises(OtherLatents, match="Stable Diffusion"):
        Codec(decoder="autoencoder", device="cpu").decode(blob)


def test_a_mixed_folder_is_decoded_each_by_its_own(lats, tmp_path):
    done = RUN(app, ["decode", str(lats), "-o", str(tmp_path), "-q"])
    assert done.exit_code == 0
    made = {path.stem: software(path) for path in tmp_path.glob("*.png")}
    assert made == {
        "autoencoder": "dynenc, decoder autoencoder",
        "nano": "dynenc, decoder embedded",
    }
    again = RUN(app, ["decode", str(lats), "-o", str(tmp_path), "--update"])
    assert "2 skipped" in again.stderr
    other = RUN(app, ["decode", str(lats), "-o", str(tmp_path / "other"), "-d", "autoencoder"])
    assert other.exit_code == 1
    assert [path.stem for path in (tmp_path / "other").glob("*.png")] == ["autoencoder"]


@pytest.mark.parametrize("form", ["npz", "comfy", "safetensors"])
def test_its_latents_are_not_exported_as_those_of_stable_diffusion(lats, tmp_path, form):
    done = RUN(app, ["export", str(lats / "autoencoder.lat"), "--to", form, "-o", str(tmp_path)])
    assert done.exit_code == BitstreamError.exit_code
    assert "those of the autoencoder" in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_pipeline_gets_it_for_a_vae():
    with pytest.raises(WeightsError, match="not those of Stable Diffusion"):
        dynenc.vae("autoencoder")


def test_roundtrip_takes_it_as_a_model(photo_path, tmp_path):
    target = tmp_path / "photo.png"
    command = ["roundtrip", str(photo_path), "--model", "autoencoder", "--json", "-o", str(target)]
    figures = json.loads(RUN(app, command).stdout)
    assert figures["encoder"] == figures["decoder"] == "autoencoder"
    assert software(target) == "dynenc, decoder autoencoder"


def test_weights_stay_below_a_megabyte():
    assert len(registry.read_file(registry.MODELS["autoencoder"])) <= 1_000_000


def test_every_feature_passes_through_dynamic_convolutions():
    """Plain convolutions stand only within blocks, and in the linear map beside the encoder."""
    network = build(registry.MODELS["autoencoder"])
    inside = {
        part for m in network.modules() if isinstance(m, DynamicBlock) for part in m.modules()
    }
    plain = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module not in inside
    ]
    assert plain == ["encoder.linear", "encoder.head"]
    assert isinstance(network.encoder.stem, DynamicConv)
    assert sum(isinstance(m, DynamicConv) for m in network.decoder.modules()) == 4


def test_gradient_flows_through_both_halves():
    network = build(registry.MODELS["autoencoder"])
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

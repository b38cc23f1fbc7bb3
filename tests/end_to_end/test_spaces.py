"""Networks for other latent spaces, from image to file and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import dynenc
from dynenc import metrics, registry
from dynenc.cli.main import app
from dynenc.coding.lat_file import LatFile
from dynenc.errors import OtherLatents, UsageError, WeightsError
from dynenc.imaging.tensors import to_image, to_tensor
from dynenc.latent_space import FLUX1, SDXL
from dynenc.networks import loading


@pytest.fixture
def photo(photo_path):
    return Image.open(photo_path).convert("RGB").crop((100, 60, 196, 124))


@pytest.mark.parametrize("space", [SDXL, FLUX1], ids=lambda s: s.name)
def test_an_image_there_and_back(photo, space):
    codec = dynenc.Codec(f"light-{space.name}", decoder="embedded", device="cpu")
    file = LatFile.parse(codec.encode(photo, quality=60, detail="off"))
    assert file.model.space is space
    assert file.latents.shape[0] == space.channels
    assert codec.decode(file).size == photo.size
    assert codec.name_of_decoder(file.model) == f"embedded-{space.name}"


@pytest.mark.parametrize("space", [SDXL, FLUX1], ids=lambda s: s.name)
def test_the_integer_decoder_is_that_of_the_space(photo, space):
    codec = dynenc.Codec(f"light-{space.name}", decoder="embedded", device="cpu")
    file = LatFile.parse(codec.encode(photo, quality=60, detail="off"))
    size, whole = photo.size, codec.decode(file)
    assert metrics.psnr_db(to_tensor(whole), to_tensor(photo)) > 20
    decoder = dynenc.load_decoder("embedded", "cpu", space)
    floats = decoder(torch.from_numpy(file.latents)[None], file.step)
    expected = to_image(floats).crop((0, 0, *size))
    difference = np.asarray(expected, np.float32) - np.asarray(whole, np.float32)
    assert np.abs(difference).mean() < 1
    part = codec.decode(file, region=(8, 3, 41, 30))
    assert np.array_equal(part, whole.crop((8, 3, 49, 33)))
    small = codec.decode(file, scale=0.25)
    assert small.size == (size[0] // 4, size[1] // 4)
    assert np.array_equal(small, whole.reduce(4))
    assert "backend" not in vars(codec)  # in integers, without torch


@pytest.mark.parametrize("space", [SDXL, FLUX1], ids=lambda s: s.name)
def test_goals_and_effort(photo, space):
    codec = dynenc.Codec(f"light-{space.name}", decoder="embedded", device="cpu")
    small = codec.encode(photo, target_size=900, detail="off")
    assert len(small) <= 900
    refined = codec.encode(photo, target_size=900, effort=1, detail="off")
    assert len(refined) <= 900
    original = np.asarray(photo, np.float32)
    errors = [np.square(codec.decode(each) - original).mean() for each in (small, refined)]
    assert errors[1] < errors[0]


def test_decoders_of_another_space_are_refused_by_name(photo):
    files = {
        encoder: dynenc.Codec(encoder, device="cpu").encode(photo, detail="off")
        for encoder in ("light", "light-sdxl", "light-flux1")
    }
    for encoder, decoder, title in (
        ("light", "embedded-sdxl", "Stable Diffusion"),
        ("light-flux1", "embedded-sdxl", r"FLUX\.1"),
        ("light-sdxl", "fine", "SDXL"),
        ("light-sdxl", "autoencoder", "SDXL"),
    ):
        with pytest.raises(OtherLatents, match=f"those of {title}, which decoder {decoder} cannot"):
            dynenc.Codec(decoder=decoder, device="cpu").decode(files[encoder])
    own = dynenc.Codec(decoder="embedded-sdxl", device="cpu").decode(files["light-sdxl"])
    usual = dynenc.Codec(device="cpu").decode(files["light-sdxl"])
    assert np.array_equal(own, usual)


def test_native_and_torch_agree_where_both_exist(photo):
    pixels = torch.from_numpy(np.array(photo.resize((64, 64)))).permute(2, 0, 1)[None]
    network = dynenc.load_encoder("light", SDXL)
    exact = network(pixels / 127.5 - 1)
    torch.testing.assert_close(network(pixels), exact, atol=0.02, rtol=0.02)
    assert dynenc.load_encoder("light", FLUX1)(pixels).shape == (1, 16, 8, 8)


def test_commands(photo_path, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(each) for each in arguments])

    made = run("encode", photo_path, "-o", tmp_path / "a.lat", "--space", "sdxl", "--detail", "off")
    assert made.exit_code == 0, made.output
    assert LatFile.open(str(tmp_path / "a.lat")).model.name == "light-sdxl"
    back = run("roundtrip", photo_path, "--space", "flux1", "-e", "base", "-d", "embedded")
    assert "base-flux1 -> embedded-flux1" in back.stdout
    refused = run("encode", photo_path, "-o", tmp_path / "b.lat", "--space", "sd3")
    assert refused.exit_code != 0
    assert "no encoder light for SD 3" in refused.output


def test_trained_files_say_their_space(photo, tmp_path):
    model = registry.MODELS["light-sdxl"]
    path = tmp_path / "mine.safetensors"
    loading.save_weights(loading.build(model).state_dict(), path, {"model": model.name})
    blob = dynenc.Codec(path, device="cpu").encode(photo, detail="off")
    assert LatFile.parse(blob).model.name == "imported-sdxl"
    with pytest.raises(UsageError, match=r"makes SDXL latents, not FLUX\.1"):
        dynenc.convert("encode", "x.png", encoder=str(path), space="flux1")


def test_what_is_not_shipped_is_refused_by_name():
    with pytest.raises(WeightsError, match="no encoder light for SD 3"):
        dynenc.vae("light", space="sd3")
    with pytest.raises(UsageError, match=r"base-flux1 is for the latents of FLUX\.1, not of SDXL"):
        dynenc.convert("encode", "x.png", encoder="base-flux1", space="sdxl")
    with pytest.raises(WeightsError, match="there is no decoder embeded: use auto, embedded"):
        dynenc.load_decoder("embeded")
    with pytest.raises(UsageError, match="unknown latent space 'sd2'"):
        dynenc.vae("light", space="sd2")

"""The perceptual network learns the differences that LPIPS on VGG-16 sees."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_vgg import vgg_weights
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from dynenc import registry
from dynenc.cli.main import app
from dynenc.evaluation.vgg import LPIPSVGG, VGG16
from dynenc.networks import loading
from dynenc.training import perceptual


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(vgg_weights(), path)
    return path


def test_squared_differences_sum_up_to_lpips(vgg, photo_path):
    lpips = LPIPSVGG(VGG16(vgg))
    for number in (3, 4):
        lpips.get_buffer(f"head_{number}").zero_()  # of the layers that are not imitated
    pixels = torch.from_numpy(np.array(Image.open(photo_path).convert("RGB"))).permute(2, 0, 1)
    pair = pixels[None, :, 100:164, 100:196] / 127.5 - 1, pixels[None, :, 100:164, 140:236] / 200
    features = [perceptual.weighted_features(lpips, image) for image in pair]
    total = sum((a - b).square().sum(1).mean() for a, b in zip(*features, strict=True))
    assert float(total) == pytest.approx(float(lpips(*pair)), rel=1e-4)


def test_train_perceptual(vgg, photo_path, tmp_path, monkeypatch):
    """The loss falls, the command tells of its file, and the file is a network's."""
    monkeypatch.setattr(perceptual, "COMPONENTS", (8, 4, 4))
    monkeypatch.setattr(perceptual, "CALIBRATION", 2)
    monkeypatch.setattr(perceptual, "SIDE", 32)
    model = registry.MODELS["perceptual"]
    small = {"widths": (16, 16), "blocks": (1, 1), "outputs": (12, 4)}
    monkeypatch.setitem(registry.MODELS, "perceptual", replace(model, arguments=small))
    losses = []

    def kept(*arguments):
        losses.append(loss(*arguments))
        return losses[-1]

    loss = perceptual.loss
    monkeypatch.setattr(perceptual, "loss", kept)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").write_bytes(photo_path.read_bytes())
    command = ["train-perceptual", "--data", tmp_path / "data", "--vgg", vgg, "--steps", 60]
    command += ["--run", tmp_path / "run", "-o", tmp_path / "p.safetensors", "--encoder", "nano"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "p.safetensors").stat().st_size
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    network = loading.load_path(tmp_path / "p.safetensors")
    assert [f.shape[1] for f in network(torch.zeros(1, 3, 64, 64))] == [12, 4]

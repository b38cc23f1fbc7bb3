"""The encoders as plain modules: the present weights, exportable, whatever torch's defaults."""

import numpy as np
import pytest
import torch
from PIL import Image

import dynenc
from dynenc import Codec
from dynenc.networks.loading import load_encoder

PIXELS = torch.randint(
    0, 256, (1, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def by_data(encoder, other):
    for mine, theirs in zip(encoder.parameters(), other.parameters(), strict=True):
        mine.data.copy_(theirs)


def by_average(encoder, other):
    average = torch.optim.swa_utils.AveragedModel(other)
    with torch.inference_mode():
        for mine, theirs in zip(encoder.parameters(), average.module.parameters(), strict=True):
            mine.copy_(theirs)


def by_state_dict(encoder, other):
    encoder.load_state_dict(other.state_dict())


def by_assignment(encoder, other):
    encoder.load_state_dict(other.state_dict(), assign=True)


def by_numpy(encoder, other):
    """The same memory, written behind torch's back."""
    for mine, theirs in zip(encoder.parameters(), other.parameters(), strict=True):
        mine.detach().numpy()[...] = theirs.detach().numpy()


@pytest.mark.parametrize(
    "change",
    [by_data, by_average, by_state_dict, by_assignment, by_numpy],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("image", [PIXELS, PIXELS / 127.5 - 1], ids=["uint8", "float"])
def test_an_encoder_answers_with_its_present_weights(change, image):
    encoder, other = load_encoder("nano"), load_encoder("nano")
    other.linear.weight.mul_(2)
    other.stem.weight.mul_(0.5)
    with torch.no_grad():
        before = encoder(image)
        change(encoder, other)
        after = encoder(image)
        assert (after - before).abs().max() > 0.1
        assert after.equal(other(image))


def test_an_optimiser_step_is_seen():
    encoder = load_encoder("nano").requires_grad_()
    with torch.no_grad():
        before = encoder(PIXELS)
    encoder(PIXELS).square().sum().backward()
    torch.optim.SGD(encoder.parameters(), 1e-3).step()
    with torch.no_grad():
        assert not encoder(PIXELS).equal(before)


@pytest.mark.parametrize("image", [PIXELS, PIXELS / 127.5 - 1], ids=["uint8", "float"])
@pytest.mark.parametrize("name", ["nano", "base"])
def test_a_batch_may_be_empty(name, image):
    latents = load_encoder(name)(image[:0])
    assert latents.shape == (0, 4, 2, 3)
    assert dynenc.load_decoder("embedded", "cpu")(latents).shape == (0, 3, 16, 24)


@pytest.mark.parametrize("name", ["nano", "base"])
def test_an_encoder_is_exported_for_images_of_any_size(name):
    encoder = load_encoder(name)
    sides = {
        2: 8 * torch.export.Dim("h", min=2, max=400),
        3: 8 * torch.export.Dim("w", min=2, max=400),
    }
    program = torch.export.export(encoder, (torch.rand(1, 3, 64, 96),), dynamic_shapes=(sides,))
    image = torch.rand(1, 3, 128, 40)
    assert torch.allclose(program.module()(image), encoder(image), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_the_default_onnx_export_gives_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    encoder, image = load_encoder("nano"), torch.rand(1, 3, 32, 48) * 2 - 1
    torch.onnx.export(encoder, (image,), tmp_path / "e.onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.abs(found - encoder(image).numpy()).max() < 1e-4


@pytest.mark.parametrize("default", ["meta", torch.float64, torch.bfloat16], ids=str)
def test_torchs_defaults_change_nothing(photo_path, default):
    with Image.open(photo_path) as opened:
        image = opened.convert("RGB").crop((100, 60, 180, 130))

    def run():
        codec = Codec("nano", "embedded", "cpu")
        blob = codec.encode(image)
        vae = dynenc.vae("nano", device="cpu")
        return blob, codec.decode(blob).tobytes(), vae.dtype, vae.device

    expected = run()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        else:
            torch.set_default_device(default)
        assert run() == expected
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)

"""`dynenc.vae` where an AutoencoderKL stands: alone, and in a real pipeline of diffusers."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import dynenc
from dynenc.errors import WeightsError
from dynenc.imaging import tensors
from dynenc.interop.diffusers_vae import Vae
from dynenc.networks import tiling

SCALE = 0.18215


@pytest.fixture(scope="module")
def vae():
    return dynenc.vae("nano", device="cpu")


@pytest.fixture
def images(photo_path):
    """Two images of 64x48 px: [2, 3, 48, 64]."""
    photo = Image.open(photo_path).convert("RGB")
    crops = [photo.crop((x, 60, x + 64, 108)) for x in (100, 160)]
    return torch.cat([tensors.to_tensor(crop) for crop in crops])


def test_latents_are_raw(vae, images):
    distribution = vae.encode(images).latent_dist
    expected = dynenc.load_encoder("nano")(images)
    torch.testing.assert_close(distribution.mode() * vae.config.scaling_factor, expected)
    assert torch.equal(distribution.sample(torch.Generator().manual_seed(0)), distribution.mode())
    assert torch.equal(distribution.mean, distribution.mode())
    assert torch.equal(vae.encode(images, return_dict=False)[0].mode(), distribution.mode())
    as_bytes = vae.encode(((images + 1) * 127.5).round().byte()).latent_dist.mode()
    torch.testing.assert_close(as_bytes, distribution.mode(), rtol=0, atol=1e-3)


def test_decode_undoes_encode(vae, images):
    latents = vae.encode(images).latent_dist.sample()
    decoded = vae.decode(latents).sample
    expected = dynenc.load_decoder("embedded")(latents * SCALE)
    torch.testing.assert_close(decoded, expected)
    assert torch.equal(vae.decode(latents, return_dict=False, generator=None)[0], decoded)
    assert torch.equal(vae(images).sample, decoded)
    assert (decoded - images).square().mean() < 0.05


def test_sides_are_padded(vae):
    assert vae.encode(torch.zeros(1, 3, 9, 17)).latent_dist.mode().shape == (1, 4, 2, 3)


@pytest.mark.parametrize("method", ["encode", "decode", "disable_tiling", "forward"])
def test_arguments_are_those_of_diffusers(vae, method):
    ours = inspect.signature(getattr(vae, method)).parameters
    theirs = inspect.signature(getattr(AutoencoderKL, method)).parameters
    assert set(ours) <= set(theirs)


def test_config_is_that_of_diffusers(vae):
    theirs = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=4 * ("DownEncoderBlock2D",),
        up_block_types=4 * ("UpDecoderBlock2D",),
    ).config
    own = {"encoder_name", "decoder_name", "space"}
    for name in vae.config:
        assert name in own or name.startswith("_") or name in theirs
    for name in ("latent_channels", "scaling_factor", "shift_factor", "in_channels"):
        assert getattr(vae.config, name) == theirs[name]


def test_slicing_and_tiling(vae, images, monkeypatch):
    latents = vae.encode(images).latent_dist.mode()
    expected = vae.decode(latents).sample
    vae.enable_slicing()
    shapes = []
    hook = vae.decoder.network.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[0]))
    torch.testing.assert_close(vae.decode(latents).sample, expected)
    vae.disable_slicing()
    vae.decode(latents)
    hook.remove()
    assert shapes == [1, 1, 2]
    vae.enable_tiling()
    assert vae.decoder.tiles.side == tiling.SMALL_TILES.side
    vae.disable_tiling()
    assert vae.decoder.tiles == tiling.EMBEDDED_TILES


def test_dtype_and_device(images):
    vae = dynenc.vae("nano", device="cpu").to(torch.bfloat16)
    assert (vae.dtype, vae.device) == (torch.bfloat16, torch.device("cpu"))
    latents = vae.encode(images).latent_dist.mode()
    assert (latents.dtype, vae.decode(latents).sample.dtype) == (torch.bfloat16, torch.bfloat16)
    assert vae.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_the_one_asked_for_when_loading(tmp_path, images, dtype):
    dynenc.vae("nano", device="cpu").save_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        vae, _ = Vae.from_pretrained(tmp_path, output_loading_info=True, **{name: dtype})
        assert {each.dtype for each in vae.parameters()} == {dtype}
    if dtype != torch.float16 or not torch.__version__.startswith("2.4."):  # lacks it on CPUs
        assert vae.encode(images).latent_dist.mode().dtype == dtype
    assert Vae.from_pretrained(tmp_path).dtype == torch.float32


def test_unknown_names():
    with pytest.raises(WeightsError, match="unknown encoder 'imported'"):
        dynenc.vae("imported")
    with pytest.raises(WeightsError, match="does not exist"):
        dynenc.vae("nano", decoder="no such folder")


@pytest.fixture(scope="module")
def parts():
    """All of a Stable Diffusion pipeline but its VAE, tiny and with random weights."""
    transformers = pytest.importorskip("transformers")
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    config = transformers.CLIPTextConfig(
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=9,
        bos_token_id=0,
        eos_token_id=1,
    )
    return {
        "unet": unet.eval(),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "text_encoder": transformers.CLIPTextModel(config).eval(),
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }


def prompt():
    """What a prompt becomes."""
    return {"prompt_embeds": torch.zeros(1, 3, 8), "negative_prompt_embeds": torch.zeros(1, 3, 8)}


def test_in_an_image_to_image_pipeline(parts, photo_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        down_block_types=4 * ("DownEncoderBlock2D",),
        up_block_types=4 * ("UpDecoderBlock2D",),
    )
    pipe = StableDiffusionImg2ImgPipeline(vae=other, **parts)
    pipe.vae = vae = dynenc.vae("nano", device="cpu")
    pipe = pipe.to("cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is vae
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    image = Image.open(photo_path).convert("RGB").crop((100, 60, 164, 124))

    def run(strength):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            **prompt(),
            image=image,
            strength=strength,
            num_inference_steps=50,
            generator=generator,
        ).images[0]

    barely, much = run(0.02), run(0.9)
    expected = tensors.to_image(vae(tensors.to_tensor(image)).sample)
    assert barely.size == image.size

    def distance(one):
        return (tensors.to_tensor(one) - tensors.to_tensor(expected)).square().mean().item()

    assert distance(barely) < 0.05 < distance(much)


def test_in_pipelines_that_are_built_with_it(parts):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(vae=dynenc.vae("nano", device="cpu"), **parts)
    assert pipe.vae_scale_factor == 8
    pipe.set_progress_bar_config(disable=True)
    assert pipe(**prompt(), height=64, width=72, num_inference_steps=2).images[0].size == (72, 64)


def test_a_pipeline_saves_and_loads_it(parts, tmp_path):
    from diffusers import StableDiffusionPipeline

    mine = dynenc.vae("nano", device="cpu")
    mine.encoder.linear.weight.data.mul_(0.5)  # as if it were trained further
    kept = {name: parts[name] for name in ("unet", "scheduler")}
    none = dict.fromkeys(set(parts) - set(kept) - {"requires_safety_checker"})
    pipe = StableDiffusionPipeline(vae=mine, **kept, **none, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path)
    rest = {"text_encoder": None, "tokenizer": None, "low_cpu_mem_usage": False}
    again = StableDiffusionPipeline.from_pretrained(tmp_path, **rest).vae
    assert type(again) is type(mine)
    assert again.config.encoder_name == "nano"
    for name, weight in mine.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_switches_of_trainers_are_taken(vae, images):
    expected = vae.encode(images).latent_dist.mode()
    vae.enable_gradient_checkpointing()
    vae.disable_gradient_checkpointing()
    vae.set_use_memory_efficient_attention_xformers(False)
    vae.requires_grad_(False)
    assert torch.equal(vae.encode(images).latent_dist.mode(), expected)


def test_weights_that_accelerate_offloads(images):
    accelerate = pytest.importorskip("accelerate")
    vae = dynenc.vae("light", device="cpu")
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
        sample = vae.decode(latents).sample
        accelerate.cpu_offload(vae, execution_device="cpu")
        for _ in range(2):
            assert all(weight.is_meta for weight in vae.encoder.parameters())
            assert torch.equal(vae.encode(images).latent_dist.mode(), latents)
            assert torch.equal(vae.decode(latents).sample, sample)

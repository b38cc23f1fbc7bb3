"""`dynenc.vae` for other latent spaces, in the pipelines of their models."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image

import dynenc
from dynenc.imaging import tensors
from dynenc.latent_space import FLUX1, PATCH, SDXL


@pytest.fixture
def image(photo_path):
    return Image.open(photo_path).convert("RGB").crop((100, 60, 164, 124))


@pytest.mark.parametrize("space", [SDXL, FLUX1], ids=lambda s: s.name)
def test_latents_are_raw_and_the_config_says_how_to_scale_them(image, space):
    vae = dynenc.vae("light", device="cpu", space=space.name)
    assert vae.config.latent_channels == space.channels
    assert vae.config.scaling_factor == space.scale
    assert (vae.config.shift_factor or 0) == space.shift
    assert 2 ** (len(vae.config.block_out_channels) - 1) == PATCH
    pixels = tensors.to_tensor(image)
    raw = vae.encode(pixels).latent_dist.mode()
    scaled = (raw - space.shift) * vae.config.scaling_factor
    torch.testing.assert_close(scaled, dynenc.load_encoder("light", space)(pixels))
    decoder = dynenc.load_decoder("embedded", space=space)
    torch.testing.assert_close(vae.decode(raw).sample, decoder(scaled))
    half = vae.to(torch.bfloat16)
    assert half.decode(half.encode(pixels).latent_dist.mode()).sample.dtype == torch.bfloat16


def pipelines():
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
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 5 * 4,  # with the aesthetic score: a refiner
    )
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    none = dict.fromkeys(encoders)
    yield (
        "sdxl",
        StableDiffusionXLImg2ImgPipeline(
            dynenc.vae("light", device="cpu", space="sdxl"),
            unet=unet,
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            requires_aesthetics_score=True,
            add_watermarker=False,
            **none,
        ),
        {
            "prompt_embeds": torch.zeros(1, 3, 8),
            "negative_prompt_embeds": torch.zeros(1, 3, 8),
            "pooled_prompt_embeds": torch.zeros(1, 8),
            "negative_pooled_prompt_embeds": torch.zeros(1, 8),
        },
    )
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    yield (
        "flux1",
        FluxImg2ImgPipeline(
            FlowMatchEulerDiscreteScheduler(),
            dynenc.vae("light", device="cpu", space="flux1"),
            transformer=transformer,
            **none,
        ),
        {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8)},
    )


def test_in_image_to_image_pipelines(image, tmp_path):
    for space, pipe, prompt in pipelines():
        pipe.set_progress_bar_config(disable=True)
        assert pipe.vae_scale_factor == 8
        sides = {"height": 64, "width": 64} if space == "flux1" else {}
        made = pipe(**prompt, image=image, strength=0.5, num_inference_steps=2, **sides).images[0]
        assert made.size == image.size
        pipe.vae.save_pretrained(tmp_path / space)
        again = type(pipe.vae).from_pretrained(tmp_path / space, low_cpu_mem_usage=False)
        pixels = tensors.to_tensor(image)
        expected = pipe.vae.encode(pixels).latent_dist.mode()
        assert torch.equal(again.encode(pixels).latent_dist.mode(), expected)
        assert again.config.scaling_factor == pipe.vae.config.scaling_factor

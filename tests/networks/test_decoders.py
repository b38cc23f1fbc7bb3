"""External decoders: every way to load one, every refusal, scale, precision and tiles."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynenc.errors import OtherLatents, UsageError, WeightsError
from dynenc.latent_space import AUTOENCODER, FLUX1, SD1, SD3, SDXL, SPACES
from dynenc.networks import decoder_choice, loading, tiling
from dynenc.networks import decoders as module
from dynenc.networks.compat import CPU_DTYPE
from dynenc.networks.decoder_choice import SD_VAE_VARIABLE, SD_VAES, DecoderChoice, choose_decoder
from dynenc.networks.decoders import load_decoder
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.tiling import TiledDecoder, Tiles
from dynenc.networks.vae_files import OLD_ATTENTION, WEIGHTS
from dynenc.registry import MODELS
from dynenc.view import Region

LATENTS = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0)) * 0.7


@pytest.fixture(autouse=True)
def nothing_on_disk(tmp_path, monkeypatch):
    """An empty hub cache, no network, no environment variable."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv(SD_VAE_VARIABLE, raising=False)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Decoders run in float32, as the tolerances here are for."""
    monkeypatch.setenv(CPU_DTYPE, "float32")


@pytest.fixture(scope="module", params=[8, 32])
def any_vae(request):
    return small_vae(norm_num_groups=request.param)


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny().eval()


@pytest.fixture
def folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae-folder")
    return tmp_path / "vae-folder"


def small_vae(**config):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=2,
        **config,
    ).eval()


def decoded(vae) -> Tensor:
    """What diffusers makes of LATENTS, scaled as its pipelines do."""
    with torch.no_grad():
        return vae.decode(LATENTS / vae.config.scaling_factor).sample


def to_compvis(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes of the original Stable Diffusion checkpoints."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"(\w+)\.down_blocks\.(\d)\.resnets", r"\1.down.\2.block", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", key)
        key = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key
        )
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        if "attentions" in key and key.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        key = key.replace("mid_block.attentions.0.", "mid.attn_1.").replace("to_out.0", "proj_out")
        key = key.replace("group_norm", "norm").replace("conv_norm_out", "norm_out")
        key = re.sub(r"to_([qkv])", r"\1", key).replace("conv_shortcut", "nin_shortcut")
        renamed[key] = tensor.contiguous()
    return renamed


def to_old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of the attention's tensors up to 0.16, as on the hub to this day."""
    old = {new: old for old, new in OLD_ATTENTION.items()}
    pattern = re.compile("|".join(map(re.escape, old)))
    return {pattern.sub(lambda m: old[m[0]], key): tensor for key, tensor in state.items()}


def check(name: str, vae) -> None:
    decoder = load_decoder(name)
    assert decoder.name == name
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    torch.testing.assert_close(decoder(LATENTS), decoded(vae), rtol=1e-4, atol=1e-5)


# Every way to load one


def test_a_diffusers_folder(any_vae, tmp_path):
    any_vae.save_pretrained(tmp_path)
    check(str(tmp_path), any_vae)


def test_a_folder_of_half_precision_weights(vae, folder):
    state = {key: tensor.half() for key, tensor in load_file(folder / WEIGHTS[0]).items()}
    save_file(state, folder / WEIGHTS[1])
    (folder / WEIGHTS[0]).unlink()
    decoder = load_decoder(str(folder))
    assert next(decoder.parameters()).dtype == torch.float32
    torch.testing.assert_close(decoder(LATENTS), decoded(vae), rtol=0.01, atol=0.01)


def test_a_repository_with_a_vae_in_it(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    check(str(tmp_path), vae)


def test_a_tiny_autoencoder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    check(str(tmp_path), tiny)
    (tmp_path / WEIGHTS[0]).rename(tmp_path / "taesd.safetensors")
    check(str(tmp_path / "taesd.safetensors"), tiny)


def test_the_weight_file_of_a_folder_uses_the_config_beside_it(tmp_path):
    vae = small_vae(norm_num_groups=8)
    vae.save_pretrained(tmp_path)
    check(str(tmp_path / WEIGHTS[0]), vae)


@pytest.mark.parametrize("rename", [dict, to_old_names, to_compvis])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_single_file(vae, tmp_path, rename, prefix):
    state = {prefix + key: tensor for key, tensor in rename(vae.state_dict()).items()}
    state["model.diffusion_model.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    check(str(tmp_path / "model.safetensors"), vae)


def test_a_file_of_the_decoder_alone(vae, tmp_path):
    state = {key: t for key, t in to_compvis(vae.state_dict()).items() if "encoder" not in key}
    save_file(state, tmp_path / "decoder.safetensors")
    check(str(tmp_path / "decoder.safetensors"), vae)


def into_hub_cache(folder: Path, tmp_path: Path, repository: str, inside: str) -> None:
    place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40) / inside)


@pytest.mark.parametrize(("repository", "inside"), [(SD_VAES[0], ""), (SD_VAES[2], "vae")])
@pytest.mark.parametrize("name", ["auto", "sd-vae"])
def test_a_cached_vae_is_found_without_network(vae, folder, tmp_path, name, repository, inside):
    into_hub_cache(folder, tmp_path, repository, inside)
    choice = choose_decoder(name)
    assert (choice.name, "the embedded decoder is faster" in choice.note) == (repository, True)
    check(repository, vae)
    torch.testing.assert_close(load_decoder(name)(LATENTS), decoded(vae), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["auto", "sd-vae"])
def test_the_environment_names_the_vae(vae, folder, monkeypatch, name):
    monkeypatch.setenv(SD_VAE_VARIABLE, str(folder))
    decoder = load_decoder(name)
    assert (decoder.name, SD_VAE_VARIABLE in choose_decoder(name).note) == (str(folder), True)
    torch.testing.assert_close(decoder(LATENTS), decoded(vae), rtol=1e-4, atol=1e-5)


def test_a_download_is_for_named_decoders_only(vae, folder, monkeypatch):
    asked = []

    def download(repository, name, *, local_files_only):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        asked.append((repository, name, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError(name)
        if not (folder / name).exists():
            raise EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert choose_decoder("auto").name == "embedded"
    assert choose_decoder("sd-vae") == DecoderChoice(SD_VAES[0], SD1, choose_decoder("sd-vae").note)
    assert all(local for _, _, local in asked)
    check("some/vae", vae)
    assert ("some/vae", WEIGHTS[0], False) in asked


def test_auto_with_nothing_on_disk_is_embedded(monkeypatch):
    network = EmbeddedDecoder((8, 8, 8), (1, 1, 1))
    monkeypatch.setattr(loading, "load_named", lambda name, kind: network)
    decoder = load_decoder("auto")
    assert decoder.name == "embedded"
    assert "sd-vae" in choose_decoder("auto").note
    torch.testing.assert_close(decoder(LATENTS), network(LATENTS))


def test_a_broken_diffusers_is_noticed_before_a_download(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "some/vae needs diffusers" in refused("some/vae")


def test_diffusers_is_imported_only_for_a_foreign_decoder(tmp_path):
    code = """if True:
        import sys
        from dynenc.networks.decoder_choice import choose_decoder
        assert not {"diffusers", "huggingface_hub"} & set(sys.modules)
        assert choose_decoder("auto").name == "embedded"
        assert "diffusers" not in sys.modules
    """
    python_path = str(Path(loading.__file__).parents[2])
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": python_path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# Refusals


def refused(name: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_decoder(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling_factor": 0.13025}, "SDXL"),
        ({"_name_or_path": "stabilityai/sdxl-vae"}, "SDXL"),
        ({"scaling_factor": 0.5}, r"scale 0\.5, not 0\.18215"),
        ({"latent_channels": 16}, "16 channels, not 4"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"_class_name": "AutoencoderTiny", "scaling_factor": 2}, r"scale 2, not 1\.0"),
        ({"layers_per_block": 1}, "does not fit"),
        ({"block_out_channels": [64] * 4}, "does not fit"),
        ({"norm_num_groups": 7}, "config .* is not valid"),
        ({"block_out_channels": 32}, "config .* is not valid"),
        ({"block_out_channels": []}, "config .* is not valid"),
        ({"norm_num_groups": 0}, "config .* is not valid"),
        ({"act_fn": 3}, "config .* is not valid"),
        (
            {
                "block_out_channels": [32],
                "up_block_types": ["UpDecoderBlock2D"],
                "down_block_types": ["DownEncoderBlock2D"],
            },
            "upscale by 8",
        ),
    ],
)
def test_decoders_of_other_latents_are_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert re.search(message, refused(str(folder)))


@pytest.mark.parametrize("space", list(SPACES.values()), ids=list(SPACES))
def test_a_vae_of_each_space(space, tmp_path):
    sixteen = space.channels == 16
    vae = small_vae(
        latent_channels=space.channels,
        scaling_factor=space.scale,
        shift_factor=space.shift or None,
        use_quant_conv=not sixteen,
        use_post_quant_conv=not sixteen,
    )
    vae.save_pretrained(tmp_path / "vae")
    single = tmp_path / "ae.safetensors"
    save_file(to_compvis(vae.state_dict()), single)
    latents = torch.randn(1, space.channels, 3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vae.decode(space.raw(latents)).sample
    for place in (tmp_path, single):
        decoder = load_decoder(place, space=space)
        assert decoder.space is space
        torch.testing.assert_close(decoder(latents), expected, rtol=1e-4, atol=1e-4)
    encoder, _ = module.load_autoencoder(tmp_path, space)
    image = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)
    with torch.no_grad():
        mean = vae.encode(image).latent_dist.mean
    torch.testing.assert_close(encoder(image), space.scaled(mean), rtol=1e-4, atol=1e-4)
    for other in SPACES.values():
        if other is not space:
            with pytest.raises(
                WeightsError, match=f"{space.title} latents: .* {other.title} latents"
            ):
                load_decoder(tmp_path, space=other)


def test_a_tiny_autoencoder_is_of_the_space_that_its_name_says(tmp_path):
    tiny = diffusers.AutoencoderTiny(latent_channels=16)
    save_file(tiny.state_dict(), tmp_path / "taef1.safetensors")
    assert load_decoder(tmp_path / "taef1.safetensors", space=FLUX1).space is FLUX1
    with pytest.raises(WeightsError, match=r"is for FLUX\.1 latents: use a decoder of SD 3"):
        load_decoder(tmp_path / "taef1.safetensors", space=SD3)


@torch.no_grad()
def decode_colours(decoder):
    """Make TAESD's architecture a linear map of SD 1.x latents to the colours of images."""
    colours = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    means = loading.load_encoder("light")(colours.expand(-1, -1, 32, 32)).mean((2, 3))
    latents = torch.cat([means, torch.ones(64, 1)], 1)
    found = torch.linalg.lstsq(latents, (colours.flatten(1) + 1) / 2).solution
    first, *others, last = [m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in (first, *others, last):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    for sign, rows in ((1, slice(0, 3)), (-1, slice(3, 6))):  # of which a ReLU keeps the positive
        first.weight[rows, :, 1, 1] = sign * found[:4].T
        first.bias[rows] = sign * found[4]
        last.weight[:, rows, 1, 1] = sign * torch.eye(3)
    for layer in others:
        if layer.bias is None:  # after upsampling; blocks add their input
            layer.weight[:, :, 1, 1] = torch.eye(64)


def test_a_file_that_does_not_say_its_space_is_told_by_what_it_decodes(tmp_path):
    tiny, file = diffusers.AutoencoderTiny(), tmp_path / "mine.safetensors"
    decode_colours(tiny.decoder)
    save_file(tiny.state_dict(), file)
    assert load_decoder(file).space is SD1
    for load in (load_decoder, module.load_autoencoder):
        with pytest.raises(WeightsError, match=r"is for SD 1\.x latents: use a decoder of SDXL"):
            load(file, space=SDXL)


@pytest.mark.parametrize(
    ("name", "space", "device", "chosen", "in_integers"),
    [
        ("auto", None, "cpu", "embedded", True),
        ("auto", SD1, "cuda", "fine", False),
        ("fine", None, "cpu", "fine", True),
        ("embedded", SDXL, "cpu", "embedded-sdxl", True),
        ("auto", SDXL, "cuda", "embedded-sdxl", False),
        ("embedded-sdxl", None, "cpu", "embedded-sdxl", True),
        ("embedded", AUTOENCODER, "cpu", "autoencoder", False),
    ],
)
def test_a_name_selects_a_decoder_of_the_space(name, space, device, chosen, in_integers):
    choice = choose_decoder(name, space, device)
    assert (choice.name, choice.in_integers) == (chosen, in_integers)
    assert choice.space is (space or MODELS[chosen].space)


@pytest.mark.parametrize(
    ("name", "space"),
    [("embedded-sdxl", SD1), ("fine", SDXL), ("sd-vae", FLUX1), ("some/vae", AUTOENCODER)],
)
def test_a_decoder_of_other_latents_is_refused_by_name(name, space):
    with pytest.raises(OtherLatents, match=f"which decoder {name} cannot read"):
        choose_decoder(name, space)
    with pytest.raises(WeightsError, match=f"which decoder {name} cannot read"):
        load_decoder(name, space=space)


@pytest.mark.parametrize("space", [SD1, SDXL, AUTOENCODER])
def test_what_is_no_decoder_at_all_is_unknown_for_all_latents(space):
    with pytest.raises(WeightsError, match="there is no decoder embeded"):
        choose_decoder("embeded", space)


def test_possible_decoders_look_for_files_of_one_space_at_a_time(monkeypatch):
    asked = []
    monkeypatch.setattr(decoder_choice, "on_disk", asked.append)
    assert next(decoder_choice.possible_decoders("some/vae")) == "some/vae"
    assert asked == ["some/vae"]


@pytest.mark.parametrize("name", ["auto", "embedded", "sd-vae"])
def test_no_decoder_of_dynenc_is_for_sd3(name):
    with pytest.raises(OtherLatents, match=r"SD 3, for which dynenc has no decoder"):
        choose_decoder(name, SD3)


def test_other_latents_are_refused_before_the_weights_are_downloaded(folder, monkeypatch):
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL", "latent_channels": 16}')
    asked = []

    def download(repository, name, *, local_files_only):
        if local_files_only:
            raise FileNotFoundError(name)
        asked.append(name)
        return str(folder / Path(name).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert "16 channels" in refused("some/vae")
    assert asked == ["vae/config.json"]


def test_files_of_other_latents_are_refused(vae, tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "taesdxl.safetensors")
    assert "SDXL" in refused(str(tmp_path / "taesdxl.safetensors"))
    state = vae.state_dict()
    save_file(state | {"conditioner.x": torch.zeros(1)}, tmp_path / "whole.safetensors")
    assert "SDXL" in refused(str(tmp_path / "whole.safetensors"))
    save_file(
        state | {"decoder.conv_in.weight": torch.zeros(32, 16, 3, 3)}, tmp_path / "3.safetensors"
    )
    assert "16 channels" in refused(str(tmp_path / "3.safetensors"))
    save_file({"lora.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    assert "not an autoencoder" in refused(str(tmp_path / "lora.safetensors"))


@pytest.mark.parametrize("name", ["model.bin", "model.CKPT", "model.pt", "model.pth"])
def test_pickles_are_refused_unread(tmp_path, name):
    assert "is a pickle" in refused(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert "convert it to .safetensors" in refused(str(tmp_path / name))


def test_a_folder_of_a_pickle_is_refused(folder, monkeypatch):
    (folder / WEIGHTS[0]).rename(folder / "diffusion_pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read a pickle"))
    assert "diffusion_pytorch_model.bin, a pickle" in refused(str(folder))


def test_damaged_weights_are_refused(vae, folder):
    file = folder / WEIGHTS[0]
    whole = file.read_bytes()
    for damaged in (whole[:-7], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        assert "is not valid safetensors" in refused(str(folder))
    state = vae.state_dict()
    for change in ({"decoder.conv_in.bias": torch.zeros(31)}, {"decoder.more": torch.zeros(1)}):
        save_file(state | change, file)
        assert f"{file} does not fit its architecture: 1 tensors" in refused(str(folder))
    del state["post_quant_conv.bias"]
    save_file(state, file)
    assert "post_quant_conv.bias" in refused(str(folder))


def test_a_vae_that_makes_no_rgb_is_refused(tmp_path):
    grey = diffusers.AutoencoderTiny(out_channels=1)
    grey.save_pretrained(tmp_path)
    assert "not RGB images" in refused(str(tmp_path))


@pytest.mark.parametrize("name", ["~no-such-user/vae", "a" * 5000])
def test_names_that_no_file_can_have_are_refused(name):
    assert "cannot be the name of a decoder" in refused(name)


def test_missing_paths_are_refused(folder, tmp_path):
    assert "there is no decoder nosuch" in refused("nosuch")
    for name in (str(tmp_path / "nosuch"), "a/b/c", "some/vae.safetensors", "../vae"):
        assert f"{name} does not exist" in refused(name)
    (folder / "config.json").write_text("not json")
    assert "config.json is missing or not JSON" in refused(str(folder))
    assert "config.json is missing or not JSON" in refused(str(tmp_path))


def test_a_wrong_environment_is_named(monkeypatch):
    monkeypatch.setenv(SD_VAE_VARIABLE, "nosuch")
    assert refused("auto").startswith(f"{SD_VAE_VARIABLE} is set, but there is no decoder nosuch")
    monkeypatch.setenv(SD_VAE_VARIABLE, "some/vae")
    assert "some/vae, set by" in refused("auto")


def test_an_unreachable_hub_is_one_sentence(caplog, capfd):
    assert "hub cannot be reached" in refused("some/vae")
    assert "hub cannot be reached" in refused("sd-vae")
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


def test_any_other_trouble_with_the_hub_is_one_sentence(monkeypatch):
    def download(repository, name, *, local_files_only):
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("") if local_files_only else RuntimeError("401\nlog in")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert refused("some/vae").endswith("could not be downloaded (401)")


def test_a_repository_without_weights_is_refused(monkeypatch):
    def download(repository, name, *, local_files_only):
        from huggingface_hub.errors import EntryNotFoundError

        raise EntryNotFoundError(name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert "has no diffusion_pytorch_model.safetensors" in refused("some/vae")


def test_loading_says_nothing(folder, capfd, caplog):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"unknown": 1}))
    load_decoder(str(folder))
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


# Scale and precision


class Enlarge(nn.Module):
    """Stands for a network: 3 of the 4 channels, enlarged; in half precision infinite if asked."""

    def __init__(self, overflow: bool = False) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.overflow = overflow
        self.calls: list[torch.dtype] = []

    def forward(self, latents: Tensor) -> Tensor:
        self.calls.append(latents.dtype)
        image = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) * self.one
        return image / 0 if self.overflow and latents.dtype != torch.float32 else image


def test_latents_are_divided_by_the_scale_once():
    image = TiledDecoder("fake", Enlarge(), scale=0.25, shift=3)(torch.ones(1, 4, 2, 2))
    assert image.unique().tolist() == [7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_replaces_half_precision_that_overflows(dtype):
    network = Enlarge(overflow=True)
    decoder = TiledDecoder("fake", network).to(dtype)
    for _ in range(2):
        image = decoder(torch.ones(1, 4, 2, 2))
        assert (image.dtype, image.unique().tolist()) == (torch.float32, [1])
    assert decoder.network.calls == [dtype, torch.float32, torch.float32]
    assert network.calls == [dtype]  # another thread may still compute with it


def test_latents_that_are_not_finite_do_not_change_the_network():
    decoder = TiledDecoder("fake", Enlarge()).half()
    decoder(torch.full((1, 4, 2, 2), torch.nan))
    assert decoder.network.calls == [torch.float16]


def test_gradient_still_flows_after_that():
    decoder = TiledDecoder("fake", Enlarge(overflow=True)).half()
    with torch.inference_mode():
        decoder(torch.ones(1, 4, 1, 1))
    latents = torch.ones(1, 4, 1, 1, requires_grad=True)
    decoder(latents).sum().backward()
    assert latents.grad.flatten().tolist() == [64, 64, 64, 0]


def test_half_precision_that_is_finite_stays():
    network = Enlarge()
    assert TiledDecoder("fake", network).half()(torch.ones(1, 4, 1, 1)).dtype == torch.float32
    assert network.calls == [torch.float16]


# Tiles


@pytest.mark.parametrize("height", [1, 40, 64, 65, 66, 88, 104, 105, 167, 300])
def test_tiles_cover_everything_once(height):
    network = Enlarge()
    latents = torch.randn(2, 4, height, 70)
    image = TiledDecoder("fake", network, tiles=Tiles(64))(latents)
    torch.testing.assert_close(image, network(latents))


def test_tiles_have_one_size_and_overlap():
    for length in range(1, 500):
        spans = tiling.spans(length, Tiles(64))
        sizes = {span.latents.stop - span.latents.start for span in spans}
        assert len(sizes) == 1
        assert max(sizes) <= 64
        assert (spans[0].latents.start, spans[-1].latents.stop) == (0, length)
        for before, after in itertools.pairwise(spans):
            assert before.latents.stop - after.latents.start >= Tiles(64).overlap


def test_tiles_are_used_up_to_their_margins():
    for length in range(1, 500):
        spans = tiling.spans(length, Tiles(64))
        total = torch.zeros(8 * length)
        for i, span in enumerate(spans):
            assert span.cut == (4 * (i > 0), 4 * (i + 1 < len(spans)))
            assert span.pixels.start == 8 * (span.latents.start + span.cut[0])
            assert span.pixels.stop == 8 * (span.latents.stop - span.cut[1])
            total[span.pixels] += span.weight
        torch.testing.assert_close(total, torch.ones(8 * length))


@pytest.mark.parametrize("cut", [(5, 5, 5, 5), (1, 0, 7, 3), (0, 12, 0, 0)])
def test_the_embedded_decoder_cuts_off_what_nobody_needs(cut):
    network = load_decoder("embedded").network
    latents = torch.randn(2, 4, 20, 30, generator=torch.Generator().manual_seed(0))
    seen = []
    network.layers[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    part, whole = network(latents, cut=cut), network(latents)
    left, right, top, bottom = cut
    expected = whole[..., 8 * top : 160 - 8 * bottom, 8 * left : 240 - 8 * right]
    torch.testing.assert_close(part, expected, rtol=0, atol=1e-4)
    assert seen[0][2:].numel() < seen[1][2:].numel()  # early, not at the end


def test_tiles_that_differ_leave_no_seam():
    class Brighter(Enlarge):
        """Every tile is one brighter than the tile before it."""

        def forward(self, latents: Tensor) -> Tensor:
            return super().forward(latents) + len(self.calls) - 1

    image = TiledDecoder("fake", Brighter(), tiles=Tiles(64))(torch.zeros(1, 4, 4, 300))
    steps = image.diff(dim=3)
    assert image.max() == 6
    assert steps.min() >= -1e-6
    assert steps.max() <= 1 / 127


def test_the_embedded_decoder_in_tiles_equals_the_whole():
    decoder = load_decoder("embedded")
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 50, 47)
    whole = decoder(latents)
    decoder.tiles = decoder.tiles._replace(side=40)
    bands = list(decoder.bands(latents))
    assert len(bands) == 2
    torch.testing.assert_close(torch.cat(bands, 2), whole, rtol=0, atol=1 / 255)
    decoder.tiles = Tiles(40, margin=1, overlap=3)
    assert (decoder(latents) - whole).abs().max() > 2 / 255  # it does need its margin


@pytest.mark.parametrize("side", [48, 96])
def test_regions_of_a_vae_in_tiles_are_those_of_the_whole(side):
    decoder = module._decoder("small", small_vae(norm_num_groups=8), SD1)
    decoder.tiles = Tiles(side)
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 80, 72)
    calls = []
    decoder.network.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    with torch.no_grad():
        whole = decoder(latents)
        n_tiles = len(calls)
        for region in (Region(0, 0, 1, 1), Region(300, 90, 200, 400), Region(575, 639, 1, 1)):
            calls.clear()
            part = torch.cat(list(decoder.bands(latents, region=region)), 2)
            assert torch.equal(part, whole[(..., *region.slices)])
            assert len(calls) == n_tiles or region.width == 1
    assert len(calls) == 1


def test_a_vae_in_tiles_has_no_seam():
    """What tiling changes is little, and changes without steps."""
    decoder = module._decoder("small", small_vae(norm_num_groups=8), SD1)
    y, x = torch.meshgrid(torch.arange(40) / 2, torch.arange(72) / 2, indexing="ij")
    latents = 0.5 * torch.stack([y.sin(), x.cos(), (x + y).sin(), (x - y).cos()])[None]
    with torch.no_grad():
        whole = decoder(latents)
        decoder.tiles = Tiles(48)
        error = decoder(latents) - whole
    assert 0 < error.std() < 0.05 * whole.std()
    assert error.diff(dim=3).abs().max() < 0.15 * whole.diff(dim=3).abs().max()


def test_gradient_flows_through_tiles():
    latents = torch.zeros(1, 4, 70, 3, requires_grad=True)
    TiledDecoder("fake", Enlarge(), tiles=Tiles(64))(latents).sum().backward()
    torch.testing.assert_close(latents.grad[:, :3], torch.full((1, 3, 70, 3), 64.0))


# Whole autoencoders


def test_latents_of_an_external_autoencoder_are_in_sd_scale(vae, folder):
    encoder, decoder = module.load_autoencoder(folder)
    image = torch.rand(1, 3, 48, 40) * 2 - 1
    torch.testing.assert_close(
        encoder(image), vae.encode(image).latent_dist.mean * 0.18215, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(decoder(LATENTS), decoded(vae), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for half in (encoder, decoder) for p in half.parameters())


def test_both_halves_of_a_tiny_autoencoder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    encoder, decoder = module.load_autoencoder(tmp_path)
    image = torch.rand(1, 3, 48, 40) * 2 - 1
    torch.testing.assert_close(encoder(image), tiny.encode(image).latents)
    torch.testing.assert_close(decoder(LATENTS), decoded(tiny), rtol=1e-4, atol=1e-5)


def test_an_autoencoder_needs_its_encoder(vae, folder):
    state = {key: t for key, t in vae.state_dict().items() if not key.startswith("encoder.")}
    save_file(state, folder / WEIGHTS[0])
    with pytest.raises(WeightsError, match=r"including encoder\.conv_in\.bias"):
        module.load_autoencoder(folder)
    with pytest.raises(WeightsError, match="not on this disk"):
        module.load_autoencoder("some/autoencoder")


@pytest.mark.parametrize("name", ["embedded", "fine"])
def test_each_image_of_a_batch_is_decoded_with_its_own_step(name):
    decoder = load_decoder(name)
    torch.manual_seed(0)
    slope = torch.randn_like(decoder.network.step_bias.slope)
    decoder.network.step_bias.slope.data = slope
    latents = torch.randn(1, 4, 40, 9)
    steps = [0.0, 0.3, 1.25, 2.0]
    decoder.tiles = decoder.tiles._replace(side=30)
    found = decoder(latents.expand(4, -1, -1, -1), torch.tensor(steps))
    for image, step in zip(found, steps, strict=True):
        torch.testing.assert_close(image[None], decoder(latents, step), rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1 < (found[1] - found[2]).abs().max()
    assert torch.equal(found[2], found[3])  # larger steps count as the largest one
    for wrong in (-0.1, math.nan, "0.3", None, torch.zeros(2), torch.zeros(1, 1, 1, 1)):
        with pytest.raises(UsageError, match="step must"):
            decoder(latents, wrong)

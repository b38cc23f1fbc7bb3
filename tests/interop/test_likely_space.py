import safetensors.torch
import torch
from PIL import Image

from dynenc import Codec
from dynenc.interop import latent_files
from dynenc.interop.likely_space import better_fitting_space
from dynenc.latent_space import FLUX1, SD1, SD3, SDXL


def of_photo(photo_path):
    return Codec("light").latents([Image.open(photo_path).convert("RGB")])[0]


def test_sd_latents_are_told_from_those_of_sdxl(photo_path):
    latents = of_photo(photo_path)
    assert better_fitting_space(latents, SD1) is None
    assert better_fitting_space(latents, SDXL) is SD1
    assert better_fitting_space(latents[:, :15], SDXL) is None  # too small to tell


def test_noise_is_of_no_space():
    noise = torch.randn(16, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    verdicts = better_fitting_space(noise, FLUX1), better_fitting_space(noise, SD3)
    assert None in verdicts  # not both


def test_imports_of_the_wrong_space_are_warned_of(photo_path):
    raw = torch.from_numpy(of_photo(photo_path) / SDXL.scale)[None]
    data = safetensors.torch.save({"latents": raw})
    found = latent_files.read(data, "a.safetensors", 1.0, SDXL)
    assert "look like those of SD 1.x, not of SDXL: if they are, give --space sd1" in found.note
    own = raw * SDXL.scale / SD1.scale
    data = safetensors.torch.save({"latents": own})
    assert latent_files.read(data, "a.safetensors", 1.0).note == ""

"""Latent spaces: channels, patch size, and the scale and shift of the VAE's output.

dynenc codes latents of `SD1`, and those of its own autoencoder. The others in `SPACES` are known so
that their decoders and files are recognised and refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """The latents [C, h, w] of a family of diffusion models: scaled = (raw - shift) * scale."""

    name: str  # in options and files
    title: str  # in messages
    channels: int  # C
    patch: int  # px; side of the square of pixels that one latent position covers
    scale: float  # `scaling_factor` of the VAE's config
    shift: float = 0.0  # `shift_factor` of the VAE's config

    @property
    def patch_values(self) -> int:
        """Number of values in a patch of RGB pixels."""
        return 3 * self.patch**2

    def size(self, height: int, width: int) -> tuple[int, int]:
        """h and w of the latents of a height x width px image, padded to whole patches."""
        return -(-height // self.patch), -(-width // self.patch)

    def scaled(self, raw: Tensor) -> Tensor:
        """Latents from a VAE's encoder -> latents for the diffusion model."""
        return (raw - self.shift) * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """Undo `scaled`: latents for a VAE's decoder."""
        return scaled / self.scale + self.shift


# scaling_factor and shift_factor from the published vae/config.json of each model
SD1 = LatentSpace("sd1", "SD 1.x", channels=4, patch=8, scale=0.18215)
SDXL = LatentSpace("sdxl", "SDXL", channels=4, patch=8, scale=0.13025)
FLUX1 = LatentSpace("flux1", "FLUX.1", channels=16, patch=8, scale=0.3611, shift=0.1159)
SD3 = LatentSpace("sd3", "SD 3", channels=16, patch=8, scale=1.5305, shift=0.0609)
AUTOENCODER = LatentSpace("autoencoder", "the autoencoder", channels=4, patch=8, scale=1.0)
SDXL_NAME = re.compile("sd[-_]?xl|diffusion-xl", re.IGNORECASE)  # in names of files and models
SPACES = {space.name: space for space in (SD1, SDXL, FLUX1, SD3)}

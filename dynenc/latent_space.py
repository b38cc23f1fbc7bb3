"""Latent spaces: channels, and the scale and shift of the VAE's output.

dynenc codes latents of all of `SPACES`, and those of `DYNENC_SPACES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynenc.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


PATCH = 8  # px; side of the square of pixels that one latent position covers, in every space


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """The latents [C, h, w] of a family of diffusion models: scaled = (raw - shift) * scale."""

    name: str  # in options and files
    title: str  # in messages
    channels: int  # C
    scale: float  # `scaling_factor` of the VAE's config
    shift: float = 0.0  # `shift_factor` of the VAE's config
    name_pattern: str = "(?!)"  # of names of models and files that are of this space

    def __reduce__(self) -> tuple[Callable[[str], LatentSpace], tuple[str]]:
        """Spaces are compared by identity, which pickling and copying preserve."""
        return _known, (self.name,)

    @property
    def is_dynenc_only(self) -> bool:
        """Whether it is one of `DYNENC_SPACES`."""
        return self.name in DYNENC_SPACES

    def is_named_in(self, text: str) -> bool:
        """Whether a name of a model or file says that it is of this space."""
        return re.search(self.name_pattern, text, re.IGNORECASE) is not None

    def scaled(self, raw: Tensor) -> Tensor:
        """Latents from a VAE's encoder -> latents for the diffusion model."""
        return (raw - self.shift) * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """Undo `scaled`: latents for a VAE's decoder."""
        return scaled / self.scale + self.shift


# scaling_factor and shift_factor from the published vae/config.json of each model
SD1 = LatentSpace("sd1", "SD 1.x", channels=4, scale=0.18215)
SDXL = LatentSpace("sdxl", "SDXL", 4, 0.13025, name_pattern="sd[-_]?xl|diffusion-xl")
FLUX1 = LatentSpace("flux1", "FLUX.1", 16, 0.3611, 0.1159, name_pattern="flux(?![-_. ]?2)|taef1")
SD3 = LatentSpace("sd3", "SD 3", 16, 1.5305, 0.0609, name_pattern="sd[-_]?3|diffusion-3")
AUTOENCODER = LatentSpace("autoencoder", "the autoencoder", channels=4, scale=1.0)
SPACES = {space.name: space for space in (SD1, SDXL, FLUX1, SD3)}  # of diffusion models
DYNENC_SPACES = {space.name: space for space in (AUTOENCODER,)}  # with encoders of dynenc alone


def _known(name: str) -> LatentSpace:
    """The space of that name, one of `DYNENC_SPACES` or `SPACES`."""
    return DYNENC_SPACES[name] if name in DYNENC_SPACES else SPACES[name]


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def latent_size(height: int, width: int) -> tuple[int, int]:
    """h and w of the latents of a height x width px image, padded to whole patches."""
    return ceil_div(height, PATCH), ceil_div(width, PATCH)


def named(name: str) -> LatentSpace:
    """The space of that name; raises UsageError."""
    if not isinstance(name, str) or name not in SPACES:
        raise UsageError(f"unknown latent space {name!r}: choose one of {', '.join(SPACES)}")
    return SPACES[name]

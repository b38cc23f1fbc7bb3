"""The scaling of latents in a file: as a VAE returns them, or as a diffusion model takes them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynenc.latent_space import LatentSpace
from dynenc.native.kernel import Floats


class Scaling(NamedTuple):
    """How the latents of a file follow from those that the VAE returns: (raw - shift) * scale."""

    scale: float
    shift: float = 0.0

    @classmethod
    def of_space(cls, space: LatentSpace) -> Scaling:
        """The scaling of the latents that the space's diffusion model takes."""
        return cls(space.scale, space.shift)

    def to_space(self, latents: Floats, space: LatentSpace) -> Floats:
        """Latents in this scaling, scaled for the space's diffusion model."""
        if self == Scaling.of_space(space):
            return latents
        factor = np.float32(space.scale / self.scale)
        return latents * factor + np.float32((self.shift - space.shift) * space.scale)

    def from_space(self, latents: Floats, space: LatentSpace) -> Floats:
        """Undo `to_space`."""
        if self == Scaling.of_space(space):
            return latents
        raw = latents / np.float32(space.scale) + np.float32(space.shift)
        return (raw - np.float32(self.shift)) * np.float32(self.scale)


RAW = Scaling(1.0)

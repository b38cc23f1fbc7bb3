"""The latents that a decoder is trained on: those that files of random qualities hold."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dynenc.coding.encode_latents import encode_latents
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import quality_to_step
from dynenc.latent_space import PATCH
from dynenc.registry import Model
from dynenc.training.config import TrainConfig


class Quantised(NamedTuple):
    """Latents as files hold them, or with noise in place of quantisation."""

    latents: Tensor  # [B, C, h, w]
    step: Tensor  # [B], of the quantiser, in latent units; 0: not quantised


def rounded(latents: Tensor, step: float) -> Quantised:
    """Latents [B, C, h, w] rounded to multiples of a step; 0: not quantised."""
    found = (latents / step).round() * step if step else latents
    return Quantised(found, latents.new_full((len(latents),), step))


class FileLatents:
    """Images -> latents of one of several encoders, quantised as in .lat files.

    Quantisation is that of the codec, which weighs errors against bits. Its errors are not those of
    independent noise: they are correlated, and draw latents towards what the entropy coder expects.

    Args:
        encoders: frozen, each with the model that its files name; one is drawn for each batch.
        config: `lowest_quality` and `highest_quality`, between which qualities are drawn.
    """

    def __init__(self, encoders: list[tuple[nn.Module, Model]], config: TrainConfig) -> None:
        self.encoders = encoders
        self.qualities = config.lowest_quality, config.highest_quality

    @property
    def last_encoder(self) -> nn.Module:
        """The encoder on whose latents a decoder is measured."""
        return self.encoders[-1][0]

    @torch.no_grad()
    def __call__(self, image: Tensor, random: np.random.Generator) -> Quantised:
        """Images [B, 3, H, W] in [-1, 1] -> latents [B, C, H/8, W/8] on the same device."""
        encoder, model = self.encoders[int(random.integers(len(self.encoders)))]
        encoded = encoder(image).float().cpu()
        qualities = random.uniform(*self.qualities, len(image))
        files = [
            file_of(one, model, quality) for one, quality in zip(encoded, qualities, strict=True)
        ]
        latents = torch.stack([torch.from_numpy(file.latents) for file in files]).to(image.device)
        step = torch.tensor([file.step for file in files], device=image.device)
        return Quantised(latents.contiguous(memory_format=torch.channels_last), step)


def file_of(latents: Tensor, model: Model, quality: float) -> LatFile:
    """The file of that quality with latents [C, h, w]."""
    height, width = (PATCH * side for side in latents.shape[1:])
    step_q = quality_to_step(quality, has_trellis=model.has_trellis)
    return encode_latents(latents.numpy(), (width, height), step_q, model)

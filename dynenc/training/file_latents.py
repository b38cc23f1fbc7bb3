"""Latents that are quantised as in files, or have noise in place of quantisation, for training."""

from collections.abc import Callable
from contextlib import AbstractContextManager
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


def with_noise(latents: Tensor, step: Tensor, random: np.random.Generator) -> Tensor:
    """Latents [B, C, h, w] with the uniform noise of quantisers of given steps [B]."""
    noise = torch.from_numpy(random.random(latents.shape, np.float32) - 0.5).to(latents.device)
    noisy = latents + noise * step.view(-1, 1, 1, 1)
    return noisy.contiguous(memory_format=torch.channels_last)


def with_random_noise(latents: Tensor, largest: float, random: np.random.Generator) -> Quantised:
    """Latents [B, C, h, w] with the noise of quantisers of random steps up to the largest."""
    drawn = largest * random.random(len(latents), np.float32)
    step = torch.from_numpy(drawn).to(latents.device)
    return Quantised(with_noise(latents, step, random), step)


class AsFiles:
    """Latents -> latents of files of random qualities; gradients pass straight through.

    Quantisation is that of the codec, which weighs errors against bits. Its errors are not those of
    independent noise: they are correlated, and draw latents towards what the entropy coder expects.

    Args:
        config: `lowest_quality` and `highest_quality`, between which qualities are drawn.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.qualities = config.lowest_quality, config.highest_quality

    def __call__(self, latents: Tensor, model: Model, random: np.random.Generator) -> Quantised:
        """Latents [B, C, h, w] of a model, as its files hold them, on the same device."""
        qualities = random.uniform(*self.qualities, len(latents))
        pairs = zip(latents.detach().cpu(), qualities, strict=True)
        files = [file_of(one, model, quality) for one, quality in pairs]
        held = torch.stack([torch.from_numpy(file.latents) for file in files]).to(latents.device)
        through = held + (latents - latents.detach())
        step = torch.tensor([file.step for file in files], device=latents.device)
        return Quantised(through.contiguous(memory_format=torch.channels_last), step)


class FileLatents:
    """Images -> latents of one of several encoders, as files hold them.

    Args:
        encoders: frozen, each with the model that its files name; one is drawn for each batch.
        autocast: makes the context that the encoders are computed in.
    """

    def __init__(
        self,
        encoders: list[tuple[nn.Module, Model]],
        as_files: AsFiles,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.encoders, self._as_files, self._autocast = encoders, as_files, autocast

    @property
    def last_encoder(self) -> nn.Module:
        """The encoder on whose latents a decoder is measured."""
        return self.encoders[-1][0]

    @torch.no_grad()
    def __call__(self, image: Tensor, random: np.random.Generator) -> Quantised:
        """Images [B, 3, H, W] in [-1, 1] -> latents [B, C, H/8, W/8] on the same device."""
        encoder, model = self.encoders[int(random.integers(len(self.encoders)))]
        with self._autocast():
            latents = encoder(image).float()
        return self._as_files(latents, model, random)


def file_of(latents: Tensor, model: Model, quality: float) -> LatFile:
    """The file of that quality with latents [C, h, w]."""
    height, width = (PATCH * side for side in latents.shape[1:])
    step_q = quality_to_step(quality, has_trellis=model.has_trellis)
    return encode_latents(latents.numpy(), (width, height), step_q, model)

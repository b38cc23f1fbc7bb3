"""Estimated bits of latents, for the rate term in training."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.training.file_latents import with_noise


class Prior(nn.Module):
    """Estimates the bits of latents; a small network that replaces the entropy coder in training.

    It sees the latents above and to the left of each position, and predicts a logistic
    distribution.
    """

    RADIUS = 2  # positions
    HIDDEN = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        side = 2 * self.RADIUS + 1
        self.context = nn.Conv2d(channels + 1, self.HIDDEN, side, padding=self.RADIUS)
        self.output = nn.Conv2d(self.HIDDEN, 2 * channels, 1)
        before = torch.arange(side**2).view(side, side) < side**2 // 2
        self.register_buffer("before", before.float())

    def forward(self, latents: Tensor, step: Tensor) -> Tensor:
        """Latents [B, C, h, w], steps [B, 1, 1, 1] in latent units -> bits [B, C, h, w]."""
        inputs = torch.cat([latents, step.expand_as(latents[:, :1])], dim=1)
        weight = self.context.weight * self.get_buffer("before")
        features = F.conv2d(inputs, weight, self.context.bias, padding=self.RADIUS)
        expected, scale = self.output(F.leaky_relu(features)).chunk(2, dim=1)
        distance, spread = latents - expected, F.softplus(scale) + 0.01
        upper = torch.sigmoid((distance + step / 2) / spread)
        lower = torch.sigmoid((distance - step / 2) / spread)
        return -torch.log2((upper - lower).clamp(min=1e-6))


def rate(
    prior: nn.Module, latents: Tensor, step: Tensor, random: np.random.Generator, is_trained: bool
) -> Tensor:
    """The mean over latents [B, C, h, w], with noise, of bits times the square of their step [B].

    That is the exchange rate at which a fine step is chosen. Without gradients of the latents while
    the prior is untrained.
    """
    noisy = with_noise(latents if is_trained else latents.detach(), step, random)
    step = step.view(-1, 1, 1, 1)
    bits: Tensor = prior(noisy, step)
    return (step**2 * bits).mean()

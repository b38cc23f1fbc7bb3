"""Training of a decoder against a discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynenc.training.config import TrainConfig
from dynenc.training.losses import discriminator_loss

RATE = 2.0  # learning rate of the discriminator, relative to that of the decoder
RISE = 500  # steps in which its influence on the decoder grows to its full size


class Adversary:
    """A discriminator in training, and its gradient for the decoder.

    Args:
        autocast: makes the context that the discriminator is computed in.
    """

    def __init__(
        self, discriminator: nn.Module, config: TrainConfig, autocast: Callable[[], torch.autocast]
    ) -> None:
        self.discriminator, self.config, self._autocast = discriminator, config, autocast
        self.optimizer = torch.optim.AdamW(
            discriminator.parameters(), config.learning_rate, (0.5, 0.9)
        )

    def learn(
        self, decoded: Tensor, image: Tensor, latents: Tensor, learning_rate: float
    ) -> dict[str, Tensor]:
        """Train the discriminator for one step, skipped if its gradient is not finite.

        Args:
            learning_rate: of the decoder.
        Returns: terms for the log.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * RATE
        with self._autocast():
            real = self.discriminator(image, latents)
            fake = self.discriminator(decoded.detach(), latents)
            loss = discriminator_loss(real.float(), fake.float())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), torch.inf)
        if is_finite := torch.isfinite(norm):
            self.optimizer.step()
        return {"discriminator": loss.detach(), "discriminator_skipped": (~is_finite).float()}

    def add_gradient(self, gradient: Tensor, decoded: Tensor, latents: Tensor, step: int) -> Tensor:
        """The gradient of all other terms at the pixels, with the discriminator's added.

        The norm of the second is a constant share of that of the first, as in VQGAN (Esser et al.
        2021), which scales it at the last layer.
        """
        learning = self.config.gan_warmup
        if step < learning:
            return gradient
        with self._autocast():
            score = self.discriminator(decoded, latents).float().mean()
        [adversarial] = torch.autograd.grad(-score, decoded)
        share = self.config.gan * min(1.0, (step - learning) / RISE)
        scale = gradient.norm() / adversarial.norm().clamp(min=1e-12)
        total: Tensor = gradient + share * scale * adversarial
        return total

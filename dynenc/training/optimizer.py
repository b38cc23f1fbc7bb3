"""The optimiser of a training run: Muon for the matrices inside networks, AdamW for the rest."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynenc.networks.compat import fast_dtype

LEAST_SIDE = 13  # inputs and outputs of a layer that Muon updates
BETAS = (0.9, 0.99)  # of AdamW
MOMENTUM = 0.95  # of Muon
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of a Newton-Schulz iteration
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each matrix (Jordan et al. 2024).

    All singular values of an update are about equal, so that rare directions are learnt, too. Its
    root mean square is 0.2 times the learning rate, about that of AdamW (Liu et al. 2025), whose
    learning rates it can take. A convolution [outputs, inputs, h, w] counts as a matrix
    [outputs, inputs h w]. (`torch.optim.Muon`, of torch 2.9, takes matrices only.)
    """

    def __init__(self, weights: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(weights, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._momentum(weight, weight.grad).flatten(1)
                    rate = group["lr"] * 0.2 * math.sqrt(max(update.shape))
                    weight.sub_(orthogonalised(update).view_as(weight), alpha=rate)

    def _momentum(self, weight: nn.Parameter, gradient: Tensor) -> Tensor:
        """The mean of the gradients, with Nesterov's look ahead."""
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T for a matrix U S V^T, float32, roughly: most singular values are from 0.7 to 1.2."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    result: Tensor = matrix / matrix.norm().clamp(min=1e-7)
    result = (result.T if is_tall else result).to(fast_dtype(matrix.device))
    a, b, c = POLYNOMIAL
    for _ in range(ITERATIONS):
        gram = result @ result.T
        result = a * result + (b * gram + c * gram @ gram) @ result
    return (result.T if is_tall else result).float()


class Optimizer:
    """AdamW, and Muon for what it is made for: the wide convolutions of the networks in training.

    Args:
        model: the networks. Their layers next to pixels, and to latents of 4 channels, are left to
            AdamW.
        prior: trained with them, by AdamW.
    """

    def __init__(self, model: nn.Module, prior: nn.Module, learning_rate: float) -> None:
        matrices, others = list[nn.Parameter](), [*prior.parameters()]
        for weight in model.parameters():
            is_wide = weight.dim() == 4 and min(weight.shape[:2]) >= LEAST_SIDE
            (matrices if is_wide else others).append(weight)
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(others, learning_rate, BETAS)
        }
        if matrices:
            self._optimizers["muon"] = Muon(matrices, learning_rate)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    def step(self, learning_rate: float) -> None:
        """Update all weights."""
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both, for a checkpoint."""
        return {name: each.state_dict() for name, each in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])

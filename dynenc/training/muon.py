"""The optimiser of matrices: Muon, which needs fewer steps than AdamW on the same batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynenc.networks.compat import fast_dtype

LEAST_SIDE = 16  # smaller matrices, vectors and scalars are left to AdamW
MOMENTUM = 0.95
ITERATIONS = 5  # of Newton and Schulz
QUINTIC = (3.4445, -4.7750, 2.0315)  # its coefficients, which bring singular values near 1
RMS_OF_ADAM = 0.2  # root mean square of AdamW's updates: both take the same learning rate


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024).

    The update is scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable"). A
    convolution's weight is one matrix, [out, in * area]; that of `HybridDense` is one per group.
    `torch.optim.Muon` takes no convolutions.
    """

    def __init__(self, weights: Sequence[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # a closure has no use here
        """Update the weights by their gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # of a network that this step does not train
                    continue
                state: dict[str, Any] = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                ahead = _matrices(weight.grad.lerp(momentum, MOMENTUM))
                update = orthogonal(ahead) * (RMS_OF_ADAM * max(ahead.shape[-2:]) ** 0.5)
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"])


def optimizers(weights: Sequence[nn.Parameter], lr: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the weights that are matrices and AdamW for all others, by name; none is empty."""
    large = {id(w) for w in weights if w.dim() > 1 and min(_matrices(w).shape[-2:]) >= LEAST_SIDE}
    matrices = [weight for weight in weights if id(weight) in large]
    others = [weight for weight in weights if id(weight) not in large]
    found: dict[str, torch.optim.Optimizer] = {}
    if matrices:
        found["muon"] = Muon(matrices, lr)
    if others:
        found["adamw"] = torch.optim.AdamW(others, lr, (0.9, 0.99))
    return found


def _matrices(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 3 else weight.flatten(1)


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix whose singular values are all 1: [..., R, C] -> the same."""
    found = matrix.to(fast_dtype(matrix.device))
    if upright := found.shape[-2] > found.shape[-1]:
        found = found.mT
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = first * found + (third * square + fifth * square @ square) @ found
    result: Tensor = found.mT if upright else found
    return result.to(matrix.dtype)

"""The accuracy of a small classifier of digits with `DynamicConv`, and with `nn.Conv2d`.

    python tests/bench digits

Trains both on the digits of scikit-learn, in well under a minute.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dynenc import DynamicConv

EPOCHS, BATCH, RATE = 12, 64, 3e-3


def net(conv: Callable[..., nn.Module], widths: tuple[int, int]) -> nn.Sequential:
    """Two convolutions and a linear layer: [B, 1, 8, 8] -> [B, 10]."""
    first, second = widths
    return nn.Sequential(
        conv(1, first, 3, padding="same"),
        nn.ReLU(),
        conv(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * second, 10),
    )


def accuracy(model: nn.Module, train: list[Tensor], test: list[Tensor]) -> float:
    """Train on images and labels; the share of the test images that is then right."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for _ in range(EPOCHS):
        for pick in torch.randperm(len(train[0])).split(BATCH):
            loss = F.cross_entropy(model(train[0][pick]), train[1][pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        right = model.eval()(test[0]).argmax(1) == test[1]
    return right.float().mean().item()


def main() -> None:
    """Print both."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = ([t[half] for t in (images, labels)] for half in (slice(1200), slice(1200, None)))
    nets = {
        "nn.Conv2d": net(nn.Conv2d, (8, 16)),
        "nn.Conv2d, wider": net(nn.Conv2d, (16, 40)),
        "DynamicConv": net(lambda *a, **k: DynamicConv(*a, hidden=1, **k), (8, 16)),
    }
    for name, model in nets.items():
        start = time.perf_counter()
        right = accuracy(model, train, test)
        count = sum(p.numel() for p in model.parameters())
        seconds = time.perf_counter() - start
        print(f"{name:16} {count:6,} parameters  {100 * right:.1f} % right  {seconds:.1f} s")

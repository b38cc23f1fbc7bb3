"""The learning rate over a training run."""

import math


def learning_rate(peak: float, step: int, warmup_steps: int, progress: float) -> float:
    """Linear warm-up to `peak`, then a cosine to 0.

    Args:
        step: counted from 0.
        progress: of the run, 0 to 1.
    """
    rise = min(1.0, (step + 1) / warmup_steps)
    return peak * rise * (0.5 + 0.5 * math.cos(math.pi * progress))

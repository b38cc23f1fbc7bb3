"""The batches of a training run: crops of images, and drawn ones."""

from concurrent.futures import Executor, Future

import numpy as np
import torch
from torch import Tensor

from dynenc.training.config import TrainConfig, TrainPaths
from dynenc.training.crops import open_crops
from dynenc.training.synthetic import Synthetic


def generator(config: TrainConfig, step: int, purpose: int) -> np.random.Generator:
    """Random numbers that depend only on step and purpose, so that a run can resume anywhere."""
    return np.random.default_rng((config.seed, step, purpose))


class Batches:
    """The crops of each step, [B, 3, S, S] uint8.

    `prefetcher` draws those of the next step while the device computes.
    """

    def __init__(self, config: TrainConfig, paths: TrainPaths, prefetcher: Executor) -> None:
        self.config, self.prefetcher = config, prefetcher
        self.crops = open_crops(paths.data, paths.run, config.crop)
        self.synthetic = Synthetic(config.crop, paths.fonts)
        self.futures: dict[int, Future[Tensor]] = {}  # by step

    def of_step(self, step: int) -> Tensor:
        """The crops of a step; those of the next are drawn from now on."""
        for each in (step, step + 1):
            if each not in self.futures:
                self.futures[each] = self.prefetcher.submit(self._draw, each)
        return self.futures.pop(step).result()

    def _draw(self, step: int) -> Tensor:
        config, random = self.config, generator(self.config, step, 0)
        drawn = int(random.binomial(config.batch, config.synthetic))
        parts = [self.crops.sample(config.batch - drawn, random)] if drawn < config.batch else []
        parts += [self.synthetic.sample(drawn, random)] if drawn else []
        return torch.cat(parts)

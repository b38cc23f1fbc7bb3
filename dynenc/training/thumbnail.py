"""Training of the thumbnail decoder: latents -> means of 4x4 and of 8x8 pixels of the originals.

It is small, so that a few minutes of one core suffice, and is quantised at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save
from torch import Tensor

from dynenc.codec import Codec
from dynenc.io.writing import writing
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.training import integers
from dynenc.training.file_latents import Quantised, rounded
from dynenc.training.small_run import AdamSettings, SmallRun
from dynenc.training.synthetic import FLAT_SIDE, Synthetic, flats

CROPS, DRAWN, FLATS = 1600, 160, 64  # images
SIDE = 256  # px, of an image
STEPS = (0.1, 0.2, 0.3, 0.5, 1.0, 0)  # quantiser steps of latents, in turn; 0: not quantised
SCALE = 4  # px of the original in one pixel, in one dimension
PART = 16  # latents that a step sees of an image, in one dimension
BATCH, ADAM = 8, AdamSettings(learning_rate=2e-3, warmup_steps=50, clip=0.5)
EDGE = 4  # pixels of a part that are not judged: what is beyond is missing
FLAT_AREA = 9  # pixels, side of the area that tells how flat an image is
FLAT_WEIGHT, FLAT_VARIANCE = 0.01, 0.004  # more weight where the variance is low: skies show noise
MEANS_WEIGHT = 2.0  # of the error of 8x8 means
CALIBRATION = 64  # images


@dataclass(frozen=True, slots=True)
class Examples:
    """Training pairs: latents, and the image reduced to two sizes."""

    latents: Tensor  # [N, 4, 32, 32]
    steps: Tensor  # [N], of their quantisers
    images: Tensor  # [N, 3, 64, 64] in [-1, 1]

    @classmethod
    def of(cls, images: Tensor, codecs: Sequence[Codec]) -> "Examples":
        """Encode images [N, 3, SIDE, SIDE] uint8 by encoders in turn."""
        examples = []
        for number, image in enumerate(images):
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            [found] = codecs[number % len(codecs)].latents([pixels])
            step = STEPS[number // len(codecs) % len(STEPS)]
            examples.append(rounded(torch.from_numpy(found)[None], step))
        small = F.avg_pool2d(images.float(), SCALE) / 127.5 - 1
        latents, steps = (torch.cat(parts) for parts in zip(*examples, strict=True))
        return cls(latents, steps, small)

    def sample(self, random: np.random.Generator) -> tuple[Quantised, Tensor]:
        """A batch: latents [B, 4, PART, PART], images [B, 3, 2 PART, 2 PART]."""
        picked = random.integers(len(self.latents), size=BATCH)
        top, left = random.integers(self.latents.shape[-1] - PART + 1, size=2)
        rows, columns = slice(top, top + PART), slice(left, left + PART)
        below, right = slice(2 * top, 2 * (top + PART)), slice(2 * left, 2 * (left + PART))
        latents = Quantised(self.latents[picked][..., rows, columns], self.steps[picked])
        return latents, self.images[picked][..., below, right]

    def first(self, count: int) -> list[Quantised]:
        """The latents [1, 4, h, w] of the first images."""
        parts = zip(self.latents[:count].split(1), self.steps[:count].split(1), strict=True)
        return [Quantised(*part) for part in parts]


def loss(decoded: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of pixels and of 2x2 means; flat areas weigh more."""

    def local(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, FLAT_AREA, 1, FLAT_AREA // 2, count_include_pad=False)

    variance = (local(wanted.square()) - local(wanted).square()).clamp(0).mean(1, keepdim=True)
    weight = 0.5 + FLAT_WEIGHT / (variance + FLAT_VARIANCE)
    error = decoded - wanted
    pixels = error.square() * weight
    means = F.avg_pool2d(error, 2).square() * F.avg_pool2d(weight, 2)
    inside, half = slice(EDGE, -EDGE), slice(EDGE // 2, -EDGE // 2)
    return pixels[..., inside, inside].mean() + MEANS_WEIGHT * means[..., half, half].mean()


def train(network: EmbeddedDecoder, examples: Examples, run: SmallRun) -> None:
    """Train a decoder."""
    random = np.random.default_rng(0)

    def error(step: int) -> Tensor:
        latents, wanted = examples.sample(random)
        return loss(network(*latents), wanted)

    run.minimise(network, error, ADAM)


def make(run: SmallRun) -> int:
    """Train the thumbnail decoder, quantise it and write the integers; return the size in bytes."""
    crops = run.crops(SIDE)
    random = np.random.default_rng(0)
    colours = flats(FLATS, random).repeat_interleave(SIDE // FLAT_SIDE, 2)
    drawn = [Synthetic(SIDE).sample(DRAWN, random), colours.repeat_interleave(SIDE // FLAT_SIDE, 3)]
    images = torch.cat([crops.sample(CROPS, random), *drawn])
    images = images[random.permutation(len(images))]
    codecs = [Codec(encoder, "embedded", "cpu") for encoder in run.encoders]
    examples = Examples.of(images, codecs)
    network = run.network("thumbnail")
    assert isinstance(network, EmbeddedDecoder)
    train(network, examples, run)
    tensors = integers.of_network(network, examples.first(CALIBRATION))
    with writing(str(run.export), overwrite=True) as output:
        output.write(data := save(tensors, run.metadata("thumbnail")))
    return len(data)

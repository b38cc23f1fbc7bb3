"""Training of the perceptual network: image -> features that imitate those of VGG-16.

LPIPS on VGG-16 compares normalised features, weighted by channel. Those of its first three layers
are reduced to the principal components of their differences between an image and what a decoder
makes of its latents: these are the differences that refinement has to see. The network regresses to
the components, and to their differences.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from dynenc.evaluation.vgg import LPIPSVGG, VGG16
from dynenc.networks import loading
from dynenc.networks.encoder import to_floats
from dynenc.networks.perceptual_network import PerceptualNetwork
from dynenc.training.crops import Crops
from dynenc.training.small_run import AdamSettings, SmallRun

SIDE, BATCH = 96, 8  # px of a crop, and crops in a batch
ADAM = AdamSettings(learning_rate=3e-3, warmup_steps=50, clip=1.0)
DECAY = 0.998  # of the average that is exported
LARGEST_STEP, LARGEST_NOISE = 0.6, 0.3  # of the latents that are decoded
LEAST_SHARE = 0.4  # of the decoder's error that an image shows
LAYERS = 3  # of VGG-16
COMPONENTS = (40, 56, 96)  # of each layer; the first two are at 1/2 of the image's size
CALIBRATION = 12  # batches that the components are found in
USES, KEPT = 3, 48  # steps for each batch, and batches that they are drawn from
IMITATION = 0.1  # weight of the features themselves, relative to that of their differences


class Examples:
    """Pairs of an image and a worse one: decoded from its latents, more or less.

    Args:
        crops: of SIDE px.
        encoders: names or files of encoders of SD latents, which take turns at random.
    """

    def __init__(self, crops: Crops, encoders: Sequence[str]) -> None:
        self.crops, self.random = crops, np.random.default_rng(0)
        self.encoders = [loading.load_encoder(name) for name in encoders]
        self.decoder = loading.load_named("embedded", "decoder")

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Images, then their worse versions: [2 BATCH, 3, SIDE, SIDE] in [-1, 1]."""
        images = to_floats(self.crops.sample(BATCH, self.random))
        latents = self.encoders[self.random.integers(len(self.encoders))](images)
        step = self._uniform(0.05, LARGEST_STEP)
        noise = self.random.standard_normal(latents.shape, np.float32)
        moved = (latents / step).round() * step
        moved += self._uniform(0, LARGEST_NOISE) * torch.from_numpy(noise)
        decoded: Tensor = self.decoder(moved, step).clamp(-1, 1)
        return torch.cat([images, torch.lerp(images, decoded, self._uniform(LEAST_SHARE, 1))])

    def _uniform(self, low: float, high: float) -> Tensor:
        drawn = self.random.uniform(low, high, (BATCH, 1, 1, 1))
        return torch.from_numpy(drawn.astype(np.float32))


def differences(features: Tensor) -> Tensor:
    """Differences of the features of each pair: [2 BATCH, C, h, w] -> [BATCH, C, h, w]."""
    images, worse = features.split(BATCH)
    found: Tensor = images - worse
    return found


@dataclass(frozen=True, slots=True)
class Components:
    """The principal components of LPIPS's features, in the order of the network's outputs."""

    lpips: LPIPSVGG
    projections: list[Tensor]  # of each layer, [COMPONENTS, C, 1, 1]
    means: list[Tensor]  # [1, C, 1, 1]
    scales: list[float]  # mean squared difference, of each output of the network

    @classmethod
    @torch.no_grad()
    def found_in(cls, lpips: LPIPSVGG, examples: Examples) -> "Components":
        """Find the components in CALIBRATION batches of pairs."""
        batches = [weighted_features(lpips, examples.sample()) for _ in range(CALIBRATION)]
        projections, means = [], []
        for layers, count in zip(zip(*batches, strict=True), COMPONENTS, strict=True):
            columns = torch.cat([differences(one).transpose(0, 1).flatten(1) for one in layers], 1)
            _, vectors = torch.linalg.eigh(columns @ columns.T)  # in ascending order
            projections.append(vectors[:, -count:].T.contiguous()[:, :, None, None])
            means.append(torch.cat(layers).mean((0, 2, 3), keepdim=True))
        found = cls(lpips, projections, means, [])
        seen = [found._projected(layers) for layers in batches]
        for outputs in zip(*seen, strict=True):
            errors = [differences(one).square().sum(1).mean() for one in outputs]
            found.scales.append(float(torch.stack(errors).mean()))
        return found

    @torch.no_grad()
    def of(self, images: Tensor) -> list[Tensor]:
        """The features that the network must imitate: see `PerceptualNetwork.forward`."""
        return self._projected(weighted_features(self.lpips, images))

    def _projected(self, layers: list[Tensor]) -> list[Tensor]:
        kept = [
            F.conv2d(layer - mean, projection)
            for layer, mean, projection in zip(layers, self.means, self.projections, strict=True)
        ]
        return [torch.cat(kept[:-1], 1), kept[-1]]


def weighted_features(lpips: LPIPSVGG, images: Tensor) -> list[Tensor]:
    """Features whose squared differences sum up to LPIPS: at 1/2, 1/2 and 1/4 of the size."""
    found = []
    for number, layer in zip(range(LAYERS), lpips.features(images), strict=False):
        weights = lpips.get_buffer(f"head_{number}").clamp(min=0).sqrt()
        found.append(F.normalize(layer, dim=1, eps=1e-10) * weights)
    found[0] = F.pixel_unshuffle(found[0], 2) / 2  # four pixels' features at one place
    return found


def loss(found: list[Tensor], wanted: list[Tensor], scales: list[float]) -> Tensor:
    """Squared error of differences and of features, relative to the squared differences."""
    total = torch.zeros(())
    for one, two, scale in zip(found, wanted, scales, strict=True):
        for error, weight in ((differences(one - two), 1.0), (one - two, IMITATION)):
            total = total + weight / scale * error.square().sum(1).mean()
    return total


def train(
    network: PerceptualNetwork, components: Components, examples: Examples, run: SmallRun
) -> dict[str, Tensor]:
    """Train a network and return the average of its weights."""
    average = AveragedModel(network, avg_fn=_averaged)
    batches: deque[tuple[Tensor, list[Tensor]]] = deque(maxlen=KEPT)

    def error(step: int) -> Tensor:
        number = -1
        if step % USES == 0:  # VGG-16 takes most of the time
            fresh = examples.sample()
            batches.append((fresh, components.of(fresh)))
        else:
            number = int(examples.random.integers(len(batches)))
        images, wanted = batches[number]
        return loss(network(images), wanted, components.scales)

    def report(done: int) -> None:
        average.update_parameters(network)
        run.report(done)

    replace(run, report=report).minimise(network, error, ADAM)
    return average.module.state_dict()


def _averaged(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """The average with one more tensor; the first ones are forgotten sooner."""
    return average.lerp(current, 1 - min(DECAY, (int(count) + 1) / (int(count) + 10)))


def make(run: SmallRun, vgg: Path) -> int:
    """Train the perceptual network and write its weights; return the size in bytes.

    Args:
        vgg: weights of VGG-16 and LPIPS, see `evaluation/vgg.py`.
    Raises: WeightsError.
    """
    examples = Examples(run.crops(SIDE), run.encoders)
    components = Components.found_in(LPIPSVGG(VGG16(vgg)), examples)
    network = run.network("perceptual")
    assert isinstance(network, PerceptualNetwork)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    weights = train(network, components, examples, run)
    loading.save_weights(weights, run.export, run.metadata("perceptual"))
    return run.export.stat().st_size

"""Training losses on decoded images: pixels, means of blocks and patches, perceptual networks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dynenc.errors import UsageError
from dynenc.evaluation.lpips import LPIPS
from dynenc.evaluation.vgg import DISTS, LPIPSVGG, VGG16
from dynenc.latent_space import PATCH
from dynenc.training.config import TrainConfig, TrainPaths

SHIFT = 8  # px; both images are cropped by less than this before a network compares them
BLOCKS = (4, 8, 16, 32)  # px; sides of the blocks whose means are compared


class ReconstructionLoss(nn.Module):
    """The weighted distances between decoded images and originals, by name.

    LPIPS on VGG-16 and DISTS alternate, each with twice its weight, on a share of the crops, as one
    of them costs more than everything else. Both images are cropped at the top and left by the same
    0 to 7 px for the networks, so that no error can hide in the grids of their strides.
    """

    def __init__(self, config: TrainConfig, paths: TrainPaths) -> None:
        """Load the networks; raises UsageError if their weights are not given."""
        super().__init__()
        self.config = config
        self.alex: LPIPS | None = None
        if config.lpips:
            if paths.lpips is None:
                raise UsageError("LPIPS on AlexNet needs its weights", hint="give --lpips")
            self.alex = LPIPS(paths.lpips)
        self.vgg: LPIPSVGG | None = None
        self.dists: DISTS | None = None
        if config.lpips_vgg or config.dists:
            if paths.vgg is None:
                raise UsageError("LPIPS on VGG-16 and DISTS need their weights", hint="give --vgg")
            network = VGG16(paths.vgg)
            self.vgg, self.dists = LPIPSVGG(network), DISTS(network)

    def forward(
        self, decoded: Tensor, image: Tensor, random: np.random.Generator
    ) -> dict[str, Tensor]:
        """The weighted terms of the loss, for images [B, 3, H, W] roughly in [-1, 1].

        Args:
            random: draws the shift, the crops for the VGG-16 networks, and which of these is used.
        """
        config = self.config
        terms = {
            "mse": config.mse * F.mse_loss(decoded, image),
            "blocks": config.blocks * _block_error(decoded, image),
            "pattern": config.pattern * _pattern_error(decoded, image),
        }
        top, left = random.integers(0, SHIFT, 2).tolist()
        decoded, image = decoded[..., top:, left:], image[..., top:, left:]
        if self.alex:
            terms["lpips"] = config.lpips * self.alex(decoded, image).mean()
        if self.vgg is None or self.dists is None:
            return terms
        count = max(1, round(config.vgg_share * len(image)))
        some = torch.from_numpy(random.permutation(len(image))[:count]).to(image.device)
        decoded, image = decoded[some], image[some]
        if random.random() < 0.5:
            terms["lpips_vgg"] = 2 * config.lpips_vgg * self.vgg(decoded, image).mean()
        else:
            terms["dists"] = 2 * config.dists * self.dists(decoded, image).mean()
        return terms


def _block_error(decoded: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of the block means, over all block sizes.

    It penalises colour casts and blotches, which perceptual networks hardly see.
    """
    difference = decoded - image
    errors = [F.avg_pool2d(difference, side).abs().mean() for side in BLOCKS]
    return torch.stack(errors).mean()


def _pattern_error(decoded: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of the mean of all patches of 8x8 px, the grid of the latents.

    It penalises a faint texture that the decoder repeats in every patch.
    """
    patches = F.pixel_unshuffle(decoded - image, PATCH)
    return patches.mean((2, 3)).abs().mean()


class Discriminator(nn.Module):
    """Scores each patch of an image as original or decoded, given the latents.

    A patch discriminator with spectral norms, conditioned on the latents at 1/8 of the size (HiFiC,
    Mentzer et al. 2020). Shapes: image [B, 3, H, W], latents [B, C, H/8, W/8] -> [B, 1, H/8, W/8].
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        sides = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, 2, padding=1))
            for before, after in zip((3, *sides), sides, strict=False)
        )
        self.latents = nn.Conv2d(channels, width, 3, padding=1)
        self.mix = spectral_norm(nn.Conv2d(5 * width, 4 * width, 3, padding=1))
        self.score = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, image: Tensor, latents: Tensor) -> Tensor:
        """Scores [B, 1, H/8, W/8], high for originals."""
        features = image
        for layer in self.down:
            features = F.leaky_relu(layer(features), 0.2)
        joined = torch.cat([features, self.latents(latents)], 1)
        score: Tensor = self.score(F.leaky_relu(self.mix(joined), 0.2))
        return score


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the scores of originals and of decoded images."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

"""The network whose features refinement compares (`--effort`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.networks.embedded_decoder import EdgeConv


class PerceptualBlock(nn.Module):
    """Residual block: a 3x3 convolution and a 1x1 mix. Shapes: [B, channels, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = EdgeConv(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.mix.weight, std=0.1 * channels**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Add the block's output to its input."""
        mixed: Tensor = self.mix(F.relu(self.spatial(features)))
        return features + mixed


class PerceptualHead(nn.Module):
    """Features of length 1 at each position, as LPIPS compares them, and a projection of them.

    Shapes: [B, channels, h, w] -> [B, outputs, h, w].
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(2 * channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise and project."""
        wide = F.relu(self.widen(features))
        projected: Tensor = self.project(F.normalize(wide, dim=1, eps=1e-3))
        return projected


class PerceptualNetwork(nn.Module):
    """Image -> features whose squared distance approximates LPIPS on VGG-16.

    They imitate the features of the first three layers that LPIPS compares (Zhang et al., CVPR
    2018), normalised, weighted and reduced to their principal components, at a fifth of the
    arithmetic; see `training/perceptual.py`.

    Args:
        widths, blocks: channels and residual blocks at 1/2 and at 1/4 of the image's size.
        outputs: number of features at these sizes.
    """

    def __init__(
        self, widths: tuple[int, int], blocks: tuple[int, int], outputs: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        channels, side = 3, 6
        for width, count, output in zip(widths, blocks, outputs, strict=True):
            down = EdgeConv(channels, width, side, 2, side // 2 - 1)
            residual = (PerceptualBlock(width) for _ in range(count))
            self.stages.append(nn.Sequential(down, nn.ReLU(), *residual))
            self.heads.append(PerceptualHead(width, output))
            channels, side = width, 4

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of images in [-1, 1], at 1/2 and at 1/4 of their size.

        Shapes: [B, 3, H, W], H and W multiples of 4, -> [B, F, H/2, W/2] and [B, F, H/4, W/4].
        """
        features, found = image, []
        for stage, head in zip(self.stages, self.heads, strict=True):
            features = stage(features)
            found.append(head(features))
        return found

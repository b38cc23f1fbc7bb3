"""The encoders: image -> SD latents, by dynamic convolution of every 8x8 patch."""

import torch
from torch import Tensor, nn

from dynenc.layers import DynamicBlock, DynamicConv

PATCH = 8  # px; the side of the patch that one latent position stands for
CHANNELS = 4  # of SD 1.x latents


class Encoder(nn.Module):
    """Image -> latents: a dynamic convolution of 8x8 patches, then blocks of context at 1/8 size.

    With `width` 0 the dynamic convolution gives the latents itself (the paper's encoder). Else it
    gives `width` features to `blocks` residual blocks, and the latents are a linear map of theirs,
    added to a linear map of the patch, the one a closed-form fit starts from.

    Shapes: [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale; H and W multiples of 8.
    """

    def __init__(self, hidden: int, width: int = 0, blocks: int = 0) -> None:
        super().__init__()
        self.stem = DynamicConv(3, width or CHANNELS, PATCH, PATCH, hidden=hidden, batch_norm=False)
        self.context = nn.Sequential(*(DynamicBlock(width) for _ in range(blocks)))
        self.linear = nn.Conv2d(3, CHANNELS, PATCH, PATCH) if width else None
        self.head = nn.Conv2d(width, CHANNELS, 1) if width else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale."""
        latents: Tensor = self.head(self.context(self.stem(image)))
        return latents if self.linear is None else latents + self.linear(image)

    @torch.no_grad()
    def start_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Begin training from a linear map: weight [4, 3, 8, 8], bias [4]; the rest adds ~0."""
        if self.linear is None:
            self.stem.static.copy_(weight.flatten(1))
            self.stem.get_parameter("bias").copy_(bias)
            self.stem.dynamic.mul_(0.1)
        else:
            self.linear.load_state_dict({"weight": weight, "bias": bias})
            for parameter in self.head.parameters():
                parameter.mul_(0.1)

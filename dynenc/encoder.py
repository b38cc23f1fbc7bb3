"""The encoders: image -> SD latents, by dynamic convolution of every 8x8 patch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.layers import DynamicBlock, DynamicConv, by_position, patches

PATCH = 8  # px; the side of the patch that one latent position stands for
CHANNELS = 4  # of SD 1.x latents
LATENT_SCALE = 0.18215  # of SD 1.x latents to those of the VAE; its config says so
CHUNK = 2048  # patches whose products stay within a processor's cache


class Encoder(nn.Module):
    """Image -> latents: a dynamic convolution of 8x8 patches, then blocks of context at 1/8 size.

    With `width` 0 the dynamic convolution gives the latents itself (the paper's encoder). Else it
    gives `width` features to `blocks` residual blocks, and the latents are a linear map of theirs,
    added to a linear map of the patch, the one a closed-form fit starts from.

    Shapes: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, 4, H/8, W/8] in SD scale; H and W
    multiples of 8. It is fastest with the channels last in memory.
    """

    def __init__(self, hidden: int, width: int = 0, blocks: int = 0) -> None:
        super().__init__()
        self.reach = blocks  # patches to each side that a latent depends on, beside its own
        self.stem = DynamicConv(3, width or CHANNELS, PATCH, PATCH, hidden=hidden, batch_norm=False)
        self.context = nn.Sequential(*(DynamicBlock(width) for _ in range(blocks)))
        self.linear = nn.Conv2d(3, CHANNELS, PATCH, PATCH) if width else None
        self.head = nn.Conv2d(width, CHANNELS, 1) if width else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, 4, H/8, W/8] in SD scale."""
        weight, bias = self._rows()
        if image.dtype == torch.uint8:  # pixel / 127.5 - 1, done to the weights
            weight, bias = weight / 127.5, bias - weight.sum(1)
        weight, bias = weight.expand(len(image), -1, -1), bias[:, None]
        n_linear = 0 if self.linear is None else CHANNELS
        features, linear = [], []
        for part in patches(image, (PATCH, PATCH)).split(CHUNK, 1):
            products = torch.baddbmm(bias, weight, part.to(weight.dtype).transpose(1, 2))
            stem, rest = products.split([len(bias) - n_linear, n_linear], 1)
            features.append(self.stem.gated(stem))
            linear.append(rest)
        size = [image.shape[-2] // PATCH, -1]
        latents: Tensor = torch.cat(features, 2).unflatten(2, size)
        if self.linear is None:
            return latents
        rows = self.context(latents.contiguous(memory_format=torch.channels_last))
        weight, bias = self.head.parameters()
        latents = torch.cat(linear, 2).unflatten(2, size)
        rows = F.linear(rows.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return latents + rows.permute(0, 3, 1, 2)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Rows [R, 192] and biases of the stem and the linear map, in the order of `patches`."""
        weight, bias = self.stem.rows()
        if self.linear is not None:
            linear_weight, linear_bias = self.linear.parameters()
            weight = torch.cat([weight, linear_weight.flatten(1)])
            bias = torch.cat([bias, linear_bias])
        return by_position(weight, (PATCH, PATCH)), bias

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

"""The author's forward pass as published: every patch's kernels are built, then applied."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.networks.layers import EPSILON
from dynenc.networks.published import PublishedConv


def materialised(layer: PublishedConv, image: Tensor) -> Tensor:
    """What `layer` must compute: [1, in_channels, H, W] -> [1, out_channels, H', W']."""
    k = layer.kernel_size
    sides = (1, 0, 1, 0) if layer.padding == "same" else (layer.padding,) * 4
    patches = F.pad(image, sides).unfold(2, k, layer.stride).unfold(3, k, layer.stride)
    patches = patches.permute(0, 1, 2, 3, 5, 4).contiguous()
    rows = patches.view(-1, k * k * image.shape[1])
    kernels = []
    for channel in range(len(layer.first_weight)):
        weights = {name: p[channel] for name, p in layer.named_parameters(recurse=False)}
        hidden = rows
        for name in ("first", "second"):
            z = F.linear(hidden, weights[f"{name}_weight"], weights[f"{name}_bias"])
            power = torch.pow(F.relu(z) + EPSILON, weights[f"{name}_power"])
            y = torch.nan_to_num(torch.copysign(torch.mul(weights[f"{name}_scale"], power), z))
            norm = weights[f"{name}_norm_weight"], weights[f"{name}_norm_bias"]
            hidden = F.batch_norm(y, None, None, *norm, training=True)
        kernel = F.linear(hidden, weights["last_weight"], weights["last_bias"])
        kernels.append(kernel.view(*patches.shape).unsqueeze(-3))
    stacked = torch.cat(kernels, dim=-3)
    repeated = patches.unsqueeze(-3).repeat(1, 1, 1, 1, len(kernels), 1, 1)
    out = torch.mul(repeated, stacked).mean(dim=(-1, -2)).mean(dim=1).permute(0, 3, 1, 2)
    if layer.static is None:
        return out
    static = layer.static
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on the cost of "same" with an even kernel
        return out + F.conv2d(image, static.weight, static.bias, layer.stride, layer.padding)

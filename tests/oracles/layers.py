"""The paper's layer as written: every patch's kernel is built, then applied. Slow and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.networks.layers import DynamicConv


def materialised(layer: DynamicConv, image: Tensor) -> Tensor:
    """What `layer` must compute, with the kernels [patches, out_channels, size] in memory.

    The predictor's last layer is Linear(hidden -> size) with weight W = V^T * size and no bias; the
    static kernel is the paper's `similar_conv`. With groups, an output sees its group's channels.
    """
    out_channels, size = layer.static.shape
    hidden, groups = layer.hidden, layer.groups
    like = nn.Conv2d(
        image.shape[1],
        out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        groups,
        bias=layer.bias is not None,
        dtype=image.dtype,
    )
    with torch.no_grad():
        like.weight.copy_(layer.static.reshape(like.weight.shape))
        if layer.bias is not None:
            like.bias.copy_(layer.bias)
    static = like(image)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        down, right = totals
        image = F.pad(image, (right // 2, right - right // 2, down // 2, down - down // 2))
        padding = 0
    else:
        padding = 0 if layer.padding == "valid" else layer.padding
    patches = F.unfold(image, layer.kernel_size, layer.dilation, padding, layer.stride)
    rows = patches.transpose(1, 2).reshape(-1, groups, size)
    per_group = out_channels // groups
    features = torch.stack(
        [layer.predict(rows[:, channel // per_group]) for channel in range(out_channels)]
    ).unflatten(2, (out_channels, hidden))
    features = torch.cat([features[i, :, i] for i in range(out_channels)], dim=1)
    features = layer.refine(layer.norms[0](features.T[None])[0].T)
    features = layer.norms[1](features.T[None])[0].T
    outputs = []
    for channel in range(out_channels):
        part = slice(channel * hidden, (channel + 1) * hidden)
        weight = layer.dynamic[part].T * size  # [size, hidden]
        kernels = features[:, part] @ weight.T  # [patches, size]
        outputs.append((kernels * rows[:, channel // per_group]).mean(dim=1))
    dynamic = torch.stack(outputs, dim=1).unflatten(0, (len(image), -1))
    return dynamic.transpose(1, 2).reshape(static.shape) + static

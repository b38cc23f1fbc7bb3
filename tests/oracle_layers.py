"""The paper's layer as written: every patch's kernel is built, then applied. Slow and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.layers import DynamicConv


def materialised(layer: DynamicConv, image: Tensor) -> Tensor:
    """What `layer` must compute, with the kernels [patches, out_channels, size] in memory.

    The predictor's last layer is Linear(hidden -> size) with weight W = V^T * size and no bias; the
    static kernel is the paper's `similar_conv`.
    """
    out_channels, size = layer.static.shape
    hidden = layer.hidden
    patches = F.unfold(image, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    rows = patches.transpose(1, 2).reshape(-1, size)
    features = layer.predict(rows)
    features = layer.refine(layer.norms[0](features.T[None])[0].T)
    features = layer.norms[1](features.T[None])[0].T
    outputs = []
    for channel in range(out_channels):
        part = slice(channel * hidden, (channel + 1) * hidden)
        weight = layer.dynamic[part].T * size  # [size, hidden]
        kernels = features[:, part] @ weight.T  # [patches, size]
        outputs.append((kernels * rows).mean(dim=1))
    dynamic = torch.stack(outputs, dim=1)
    rows_out, columns_out = (
        (side + 2 * layer.padding - layer.kernel_size) // layer.stride + 1
        for side in image.shape[-2:]
    )
    dynamic = dynamic.reshape(len(image), rows_out, columns_out, out_channels).permute(0, 3, 1, 2)
    weight = layer.static.reshape(out_channels, -1, layer.kernel_size, layer.kernel_size)
    return dynamic + F.conv2d(image, weight, layer.bias, layer.stride, layer.padding)

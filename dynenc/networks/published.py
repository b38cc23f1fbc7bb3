"""The networks published by the author of "Mind Your Own Kernels", computed in the same way.

Differences from `layers.DynamicConv`:

- one row of `view(-1, size)` holds neighbouring patches of one channel, not a patch of all channels
- batch normalisation uses the statistics of the current image, as in the saved files
- padding "same" adds a row above and a column to the left for the patches, torch's for the rest

A patch is multiplied only by its own part of the kernel that its row predicts, so no kernel is
built here either: mean((W h + b) * p) = (h . W^T p + b . p) / size of p.
"""

import json
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dynenc.errors import WeightsError
from dynenc.latent_space import PATCH, SD1
from dynenc.networks.checks import check_batch
from dynenc.networks.encoder import to_floats
from dynenc.networks.layers import EPSILON

MODEL = "imported"  # in the metadata of a converted file
LARGEST = 2**20  # maximum of any number that describes a layer
NORM_EPSILON = 1e-5


class PublishedConv(nn.Module):
    """The author's DynamicConv, with its arguments; `static` adds the `similar_conv`.

    Shapes: [1, in_channels, H, W] -> [1, out_channels, H', W'].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int | str,
        hidden: int,
        static: bool,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        area = kernel_size**2
        shapes = {
            "first_weight": (hidden, in_channels * area),
            "second_weight": (hidden, hidden),
            "last_weight": (in_channels * area, hidden),
            "last_bias": (in_channels * area,),
        }
        for layer in ("first", "second"):
            for name in ("bias", "power", "scale", "norm_weight", "norm_bias"):
                shapes[f"{layer}_{name}"] = (hidden,)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(out_channels, *shape)))
        self.static = nn.Conv2d(in_channels, out_channels, kernel_size, stride) if static else None

    def forward(self, image: Tensor) -> Tensor:
        """Convolve: [1, in_channels, H, W] -> [1, out_channels, H', W']."""
        k = self.kernel_size
        if self.padding == "same":
            patches, padded = F.pad(image, (1, 0, 1, 0)), F.pad(image, ((k - 1) // 2, k // 2) * 2)
        else:
            patches = padded = F.pad(image, (int(self.padding),) * 4)
        patches = patches.unfold(2, k, self.stride).unfold(3, k, self.stride)
        _, channels, height, width, *_ = patches.shape
        rows = patches.transpose(4, 5).reshape(-1, channels, k * k)  # [patches, part, values]
        flat = rows.flatten(1)
        outputs = []
        for channel in range(len(self.get_parameter("first_weight"))):
            weights = {name: p[channel] for name, p in self.named_parameters(recurse=False)}
            hidden = _dense(flat, weights, "first")
            hidden = _dense(hidden, weights, "second")
            values = torch.einsum(
                "nps,psh->nph", rows, weights["last_weight"].unflatten(0, (channels, k * k))
            )
            constant = (rows * weights["last_bias"].view(channels, k * k)).sum(2)
            parts = ((values @ hidden[:, :, None])[..., 0] + constant) / k**2
            outputs.append(parts.reshape(channels, height, width).mean(0))  # the author's order
        dynamic = torch.stack(outputs)[None]
        return dynamic if self.static is None else dynamic + self.static(padded)


def _dense(rows: Tensor, weights: dict[str, Tensor], layer: str) -> Tensor:
    """HybridDense and batch normalisation by the rows' own statistics: [N, in] -> [N, hidden]."""
    z = F.linear(rows, weights[f"{layer}_weight"], weights[f"{layer}_bias"])
    power = weights[f"{layer}_scale"] * (F.relu(z) + EPSILON) ** weights[f"{layer}_power"]
    y = torch.copysign(power, z).nan_to_num()
    variance, mean = torch.var_mean(y, dim=0, correction=0)
    normal = (y - mean) / (variance + NORM_EPSILON).sqrt()
    return normal * weights[f"{layer}_norm_weight"] + weights[f"{layer}_norm_bias"]


class PublishedEncoder(nn.Module):
    """One of the author's encoders: each layer sees the previous features and the pooled image.

    The code of the deeper one was never published; these connections fit the statistics in its file
    best. The encoders were trained on images in [0, 1], and one of them gives better latents for
    images in [-1, 1].

    Shapes: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, 4, H/8, W/8] in SD scale; H and W
    multiples of 8.
    """

    reach = 2**16  # patches that a latent depends on: all, through the statistics

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PublishedConv(**layer) for layer in layers)

    def forward(self, image: Tensor) -> Tensor:
        """Encode each image with its own statistics, independently of the rest of the batch."""
        check_batch("images", image, 3, PATCH)
        images = to_floats(image)
        return SD1.scale * torch.cat([self.latents(one[None]) for one in images])

    def latents(self, image: Tensor) -> Tensor:
        """One image [1, 3, H, W] of any range -> [1, 4, H/8, W/8], in the author's scale."""
        features = image
        for number, layer in enumerate(self.layers):
            if number:
                pooled = F.max_pool2d(image, image.shape[-1] // features.shape[-1])
                features = torch.cat([features, pooled], dim=1)
            features = layer(features)
        return features


class PublishedAutoencoder(nn.Module):
    """The author's autoencoder, trained on images in [0, 1]; it has its own latent space.

    Shapes: [B, 3, H, W] in [-1, 1] -> the same; H and W multiples of 8.
    """

    def __init__(self, layers: list[dict[str, Any]], decoder: list[dict[str, Any]]) -> None:
        super().__init__()
        self.encoder = PublishedEncoder(layers)
        self.decoder = nn.ModuleList(PublishedConv(**layer) for layer in decoder)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode: [B, 3, H, W] in [-1, 1] -> the same, clamped."""
        return torch.cat([self._one(one[None]) for one in image])

    def _one(self, image: Tensor) -> Tensor:
        features = self.encoder.latents((image + 1) / 2)
        for layer in self.decoder:
            features = layer(features)
        return F.pixel_shuffle(features, PATCH).clamp(0, 1) * 2 - 1


Published: TypeAlias = PublishedEncoder | PublishedAutoencoder


def load_imported(data: bytes, metadata: dict[str, str], name: str) -> Published:
    """The network in a file written by `import_checkpoint`; raises WeightsError."""
    try:
        described = json.loads(metadata["network"])
        for layer in [*described["layers"], *described.get("decoder", [])]:
            numbers = [value for value in layer.values() if isinstance(value, int)]
            if any(value < 0 or value > LARGEST for value in numbers):
                raise ValueError("a number of a layer is out of range")
        with torch.device("meta"):  # allocate nothing before the shapes are checked
            kind = PublishedAutoencoder if "decoder" in described else PublishedEncoder
            network: Published = kind(**described)
        network.load_state_dict(load(data), assign=True)
        network = network.eval().requires_grad_(False)
        encoder = network.encoder if isinstance(network, PublishedAutoencoder) else network
        shapes = [tuple(net(torch.zeros(1, 3, 32, 40)).shape) for net in (encoder, network)]
        if shapes[0] != (1, SD1.channels, 4, 5) or shapes[1] not in (shapes[0], (1, 3, 32, 40)):
            raise ValueError("its latents are not 4 of 8x8 pixels")
    except (
        SafetensorError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
    ) as exc:
        raise WeightsError(f"{name} is not a network of the author: {exc}") from exc
    return network

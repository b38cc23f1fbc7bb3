"""Dynamic convolution, after "Mind Your Own Kernels", in its factorised form.

For each patch p a small dense net h predicts the kernel that is applied to that patch:

    out = mean(K(p) * p) + b . p + c        with  K(p) = W h(p)

Because <W h, p> = <h, W^T p>, the kernel never has to exist:

    out = h(p) . (V p) + b . p + c          with  V = W^T / size of p

So the paper's function is exactly one product of the patches with the stacked rows [U; V; b], where
U is the first layer of h, followed by a small dense layer and a gated sum per output channel. The
static kernel b covers both a constant part of K(p) and the paper's `similar_conv`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.arguments import checked_integer
from dynenc.errors import UsageError
from dynenc.networks.checks import check_batch, pair
from dynenc.networks.compat import int8_linear

Pair = int | tuple[int, int]  # one number for both, or (down, right)
EPSILON = 1e-8  # the paper's code adds it before the power
IN_CACHE = 2**18  # values of a tensor that fit into the cache together with others


class HybridDense(nn.Module):
    """Dense layer with a learned power: y = sign(z) * abs(scale) * (relu(z) + 1e-8) ** power.

    Here z = W x + bias; `power` and `scale` are learned per output feature and start at 1 (a ReLU).
    The paper's code has copysign(scale * (relu(z) + 1e-8) ** power, z): the same but where z is 0.
    With groups, the features are split into equal groups that do not mix.

    Shapes: [..., in_features] -> [..., out_features].
    """

    def __init__(self, in_features: int, out_features: int, groups: int = 1) -> None:
        super().__init__()
        for name, number in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("groups", groups),
        ):
            checked_integer(name, number, 1)
        if in_features % groups or out_features % groups:
            raise UsageError(f"{groups} groups do not divide {in_features} and {out_features}")
        self.groups = groups
        bound = (groups / in_features) ** 0.5
        shape = (groups, out_features // groups, in_features // groups)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.power = nn.Parameter(torch.ones(out_features))
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [..., in_features] -> [..., out_features]."""
        width = self.weight.shape[0] * self.weight.shape[2]
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise UsageError("the inputs must be a tensor of floats")
        if inputs.dim() == 0 or inputs.shape[-1] != width:
            raise UsageError(f"the inputs must be [..., {width}], not {list(inputs.shape)}")
        columns = inputs.reshape(1, -1, inputs.shape[-1]).transpose(1, 2)
        return self.columns(columns).transpose(1, 2).reshape(*inputs.shape[:-1], len(self.bias))

    def columns(self, inputs: Tensor) -> Tensor:
        """Apply the layer to columns: [B, in_features, N] -> [B, out_features, N]."""
        mixed = self.weight @ inputs.unflatten(1, (self.groups, -1))
        return self.activate(mixed.flatten(1, 2) + self.bias[:, None])

    def activate(self, z: Tensor) -> Tensor:
        """Raise z = W x + bias, [B, out_features, N], to the learned power; NaN becomes 0."""
        wide = z.float() if z.dtype.itemsize < 4 else z  # float16 has no 1e-8
        # exp(power * log(.)) is three times as fast as pow on a CPU; so is a product vs. copysign
        logarithm = (F.relu(wide) + EPSILON).log() * self.power[:, None]
        signs = wide.sign() * self.scale.abs()[:, None]
        return (logarithm.exp() * signs).nan_to_num(nan=0.0).to(z.dtype)


class DynamicConv(nn.Module):
    """Convolution whose kernel is predicted from the patch it is applied to.

    Every output channel has its own predictor: two `HybridDense` layers of `hidden` features, each
    optionally followed by batch normalisation, and a linear map to the kernel. [U; V; b] multiply
    every patch, so they are one plain convolution: neither kernels nor patches are ever in memory,
    only 2 * hidden + 1 numbers per output value.

    The other arguments are those of `nn.Conv2d`: each a number or a pair; the padding, with zeros,
    can also be 'same' or 'valid'.

    Shapes: [B, in_channels, H, W] -> [B, out_channels, H', W'], H' and W' as for `nn.Conv2d`.
    Raises: UsageError, a ValueError, where `nn.Conv2d` raises one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        hidden: int = 8,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        numbers = {"in_channels": in_channels, "out_channels": out_channels}
        for name, number in (numbers | {"groups": groups, "hidden": hidden}).items():
            checked_integer(name, number, 1)
        pairs = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        for name, value in pairs.items():
            pair(name, value, 1)
        if not isinstance(padding, str):
            pair("padding", padding, 0)
        try:  # checks the other arguments, and defines the shapes
            like = nn.Conv2d(
                *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
                device="meta",
            )
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        self.in_channels = in_channels
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding, self.groups, self.hidden = like.padding, groups, hidden
        size = like.weight[0].numel()
        width = out_channels * hidden
        self.predict = HybridDense(size, width)
        self.refine = HybridDense(width, width, groups=out_channels)
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width) if batch_norm else nn.Identity() for _ in range(2)
        )
        bound = size**-0.5
        self.dynamic = nn.Parameter(torch.empty(width, size).uniform_(-bound, bound) / hidden**0.5)
        self.static = nn.Parameter(torch.empty(out_channels, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, image: Tensor) -> Tensor:
        """Convolve: [B, in_channels, H, W] -> [B, out_channels, H', W']."""
        check_batch("images", image, self.in_channels)
        if self.padding != "same" and not torch.compiler.is_compiling():
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            paddings = self.padding if isinstance(self.padding, tuple) else (0, 0)
            sides = zip(image.shape[2:], paddings, reach, strict=True)
            if any(side + 2 * padding < least for side, padding, least in sides):
                raise UsageError(
                    f"images of {list(image.shape[2:])} px are smaller than the kernel"
                )
        rows, bias = self.rows()
        products = self._products(rows, bias, image)
        rows_last = products.flatten(2).transpose(1, 2)
        out: Tensor = self.gated(rows_last).transpose(1, 2).unflatten(2, products.shape[2:])
        return out

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows [U; V; b] to multiply each patch by, and their biases: [R, size], [R].

        With groups, R consists of equal parts, each with the rows of one group.
        """
        bias = torch.zeros_like(self.static[:, 0]) if self.bias is None else self.bias
        weights = [self.predict.weight[0], self.dynamic, self.static]
        biases = [self.predict.bias, torch.zeros_like(self.predict.bias), bias]
        stacked = (
            torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], 1).flatten(0, 1)
            for parts in (weights, biases)
        )
        return next(stacked), next(stacked)

    def gated(self, products: Tensor) -> Tensor:
        """Outputs from the products of patches and `rows`: [B, N, R] -> [B, N, out_channels]."""
        counts = [len(self.dynamic) // self.groups] * 2 + [len(self.static) // self.groups]
        split = products.transpose(1, 2).unflatten(1, (self.groups, -1)).split(counts, dim=2)
        z, values, static = (part.flatten(1, 2) for part in split)
        gates = self.norms[0](self.predict.activate(z))
        gates = self.norms[1](self.refine.columns(gates))
        out: Tensor = (gates * values).unflatten(1, (-1, self.hidden)).sum(2) + static
        return out.transpose(1, 2)

    def _products(self, rows: Tensor, bias: Tensor, image: Tensor) -> Tensor:
        """Rows [R, in_channels / groups * kernel area] times every patch: [B, R, H', W']."""
        size = self.kernel_size
        apart = self.stride == size and self.groups == 1 and self.dilation == (1, 1)
        if self.padding != (0, 0) or not apart or not rows.is_cpu:
            kernels = rows.unflatten(1, (-1, *size))
            return F.conv2d(
                image, kernels, bias, self.stride, self.padding, self.dilation, self.groups
            )
        # several times as fast on a CPU
        rows = patch_ordered(rows, size).expand(len(image), -1, -1)
        products = torch.baddbmm(bias[:, None], rows, patches(image, size).transpose(1, 2))
        by_place: Tensor = products.unflatten(2, (image.shape[2] // size[0], -1))
        return by_place


class GatedConv(nn.Conv2d):
    """The smallest dynamic convolution: h(p) is one unit with a ReLU, K(p) = V h(p).

    So out = relu(U p + u) * (V p + v); its weights are those of a plain convolution, [U; V].
    Shapes: [B, in_channels, H, W] -> [B, out_channels, H', W'], H' and W' as for `nn.Conv2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair = 1, stride: Pair = 1
    ) -> None:
        super().__init__(in_channels, 2 * out_channels, kernel_size, stride)

    def forward(self, image: Tensor) -> Tensor:
        """Convolve: [B, in_channels, H, W] -> [B, out_channels, H', W']."""
        return self.gated(super().forward(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows [U; V] to multiply each patch by, and their biases: [R, size], [R]."""
        assert self.bias is not None  # get_parameter would not be exported by torch 2.4
        return self.weight.flatten(1), self.bias

    def gated(self, products: Tensor) -> Tensor:
        """Outputs from the products of patches and `rows`: [..., R] -> [..., out_channels]."""
        gates, values = products.chunk(2, dim=-1)
        return F.relu(gates) * values


def patches(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Image [B, C, H, W] -> patches [B, N, patch area * C], in the order y, x, channel.

    With channels last in memory, a patch is a few contiguous runs, so this is a fast copy.
    """
    height, width = (side // part * part for side, part in zip(image.shape[-2:], size, strict=True))
    rows = image[..., :height, :width].permute(0, 2, 3, 1).flatten(2)
    run = size[1] * image.shape[1]
    in_words = rows.dtype == torch.uint8 and not any(
        places % 8 for places in (run, rows.storage_offset(), *rows.stride()[:2])
    )
    if in_words:  # fewer things to copy
        rows, run = rows.view(torch.int64), run // 8
    cut = rows.unflatten(2, (-1, run)).unflatten(1, (-1, size[0])).transpose(2, 3)
    flat: Tensor = cut.flatten(3).flatten(1, 2)
    return flat.view(image.dtype) if in_words else flat


def concatenated(parts: list[Tensor], dim: int) -> Tensor:
    """Like `torch.cat`, but a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class Int8Rows:
    """Rows of weights rounded to 8 bits, for 8-bit pixels: the sums of products are exact.

    They are identical on all machines, and several times as fast as in float32 on many CPUs.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Round rows [R, K], K < 1000, like `fake_quantized`; biases [R]."""
        wide = torch.promote_types(weight.dtype, torch.float32)  # sums are too large for float16
        rows, step = _bytes_and_step(weight.to(wide))
        self.dtype, self.rows, self.scale = weight.dtype, rows.to(torch.int8), step[:, 0] / 127.5
        self.offset = bias + rows.sum(1) * 0.5 * self.scale

    def __call__(self, pixels: Tensor) -> Tensor:
        """Products with pixel / 127.5 - 1: [B, N, K] uint8 -> [B, N, R] in the weights' type."""
        signed = (pixels ^ 128).view(torch.int8)  # pixel - 128
        sums = int8_linear(signed.flatten(0, 1), self.rows)
        products = sums.to(self.scale.dtype).mul_(self.scale).add_(self.offset)
        return products.view(*pixels.shape[:2], len(self.rows)).to(self.dtype)


def fake_quantized(weight: Tensor) -> Tensor:
    """Fake quantisation: rows [R, K] of weights rounded to 8 bits, each with its own step.

    The gradient ignores the rounding.
    """
    rows, step = _bytes_and_step(weight.detach())
    return weight + (rows * step - weight).detach()


def _bytes_and_step(weight: Tensor) -> tuple[Tensor, Tensor]:
    step = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / step).round_(), step


def patch_ordered(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """Rows [R, C * size] of weights, reordered from a convolution's order to that of `patches`."""
    rows: Tensor = weight.unflatten(1, (-1, size[0] * size[1])).transpose(1, 2).flatten(1)
    return rows


class DynamicBlock(nn.Module):
    """Residual block: norm, a 3x3 convolution, a dynamic 1x1 convolution with one hidden unit.

    The norm is over the channels of one position, so the block stays local.
    Shapes: [B, channels, h, w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        self.gate = GatedConv(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.mix.weight, std=0.1 * channels**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Add the block's output to its input: [B, channels, h, w] -> the same."""
        rows = self.norm(features.permute(0, 2, 3, 1))  # channels last; 1x1 convolutions are linear
        rows = self.spatial(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        flat = rows.flatten(0, 2)
        size = max(1, IN_CACHE // features.shape[1]) if rows.is_cpu else len(flat)
        mixed = concatenated([self._mixed(part) for part in flat.split(size)], 0)
        return features + mixed.view(rows.shape).permute(0, 3, 1, 2)

    def _mixed(self, rows: Tensor) -> Tensor:
        """The dynamic 1x1 convolution: [N, channels] -> the same."""
        rows = self.gate.gated(F.linear(rows, *self.gate.rows()))
        return F.linear(rows, self.mix.weight.flatten(1), self.mix.bias)

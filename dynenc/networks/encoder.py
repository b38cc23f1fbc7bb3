"""The encoders: image -> SD latents, by dynamic convolution of every 8x8 patch."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.latent_space import PATCH, SD1, latent_size
from dynenc.native import encoder as native
from dynenc.networks.checks import check_batch
from dynenc.networks.compat import maybe_bfloat16
from dynenc.networks.layers import (
    DynamicBlock,
    DynamicConv,
    GatedConv,
    Int8Rows,
    concatenated,
    fake_quantized,
    patch_ordered,
    patches,
)

WIDE = 64  # channels; narrower blocks are no faster in bfloat16
CHUNK = 8192  # patches per strip of the image; more take more memory, fewer take more time


def to_floats(image: Tensor) -> Tensor:
    """8-bit pixels, 0..255, as float32 in [-1, 1]; floats are unchanged."""
    return image.float().div_(127.5).sub_(1) if image.dtype == torch.uint8 else image


class Encoder(nn.Module):
    """Image -> latents: a dynamic convolution of 8x8 patches, then blocks of context at 1/8 size.

    The dynamic convolution computes `width` features, which pass through `blocks` residual blocks.
    The latents are a linear map of the result, plus a linear map of the patch, which training
    starts from (closed-form fit). `hidden` is the number of units that predict each kernel; with 0
    the convolution is a `GatedConv`, the cheapest. Weights applied to pixels are rounded to 8 bits:
    their products with 8-bit pixels are integers, fast, and identical on every machine.

    Shapes: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, channels, H/8, W/8], as the
    diffusion model takes them; H and W multiples of 8. It is fastest with the channels last in
    memory.

    Without hidden units, the native kernel encodes uint8 images on the CPU with the current
    weights. This is only for inference, as gradients cannot pass through it.
    """

    def __init__(self, hidden: int, width: int, blocks: int, channels: int = SD1.channels) -> None:
        super().__init__()
        self.channels = channels  # of the latents
        self.reach = blocks  # patches to each side that a latent depends on
        self.stem = (
            DynamicConv(3, width, PATCH, PATCH, hidden=hidden, batch_norm=False)
            if hidden
            else GatedConv(3, width, PATCH, PATCH)
        )
        self.context = nn.Sequential(*(DynamicBlock(width) for _ in range(blocks)))
        self.linear = nn.Conv2d(3, channels, PATCH, PATCH)
        self.head = nn.Conv2d(width, channels, 1)
        self._has_native = native.supports(hidden, width, blocks, channels)
        self._native: native.Encoder | None = None  # with the weights of its last use

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, channels, H/8, W/8]."""
        check_batch("images", image, 3, PATCH)
        if self._has_native and self._is_inference_of_bytes(image):
            return self._native_latents(image)
        rows, linear = self._rows_and_linear(image)
        rows = F.linear(rows, self.head.weight.flatten(1), self.head.bias)
        latents: Tensor = rows + linear
        return latents.permute(0, 3, 1, 2)

    def head_inputs(self, image: Tensor) -> Tensor:
        """The features that `head` maps: images as for `forward` -> [B, width, H/8, W/8]."""
        return self._rows_and_linear(image)[0].permute(0, 3, 1, 2)

    def _rows_and_linear(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the head [B, H/8, W/8, width], and the linear map [B, H/8, W/8, channels]."""
        stem, linear = self._products(image)
        with maybe_bfloat16(stem) if self.head.in_channels >= WIDE else nullcontext():
            rows = self.context(stem.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return rows, linear

    def _is_inference_of_bytes(self, image: Tensor) -> bool:
        """Whether the kernel can be used: uint8 on the CPU, and no training or export."""
        weight = self.head.weight
        return (
            (image.dtype == torch.uint8 and image.is_cpu and weight.is_cpu)
            and not (torch.is_grad_enabled() and weight.requires_grad)
            and not torch.compiler.is_compiling()
        )

    def _native_latents(self, image: Tensor) -> Tensor:
        """`forward` in the native kernel; weights are compared at each call, so never stale."""
        tensors = {name: t.detach().float().numpy() for name, t in self.named_parameters()}
        weights = native.flattened(tensors, len(self.context))
        if self._native is None or not np.array_equal(self._native.tensors, weights):
            sizes = self.head.in_channels, len(self.context), self.channels
            self._native = native.Encoder(weights, *sizes)
        encode = self._native.latents
        size = latent_size(*image.shape[2:])
        latents = self.head.weight.new_empty(len(image), self.channels, *size)
        for number, one in enumerate(image):
            latents[number] = torch.from_numpy(encode(one.permute(1, 2, 0).numpy()))
        return latents

    def _products(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The dynamic convolution [B, H/8, W/8, width], and the linear map of the patches.

        The weights are stacked and rounded at each call, so they are never stale; that takes 0.1 to
        0.5 ms.
        """
        weight, bias = self._rows()
        learns = torch.is_grad_enabled() and weight.requires_grad
        in_integers = image.dtype == torch.uint8 and not learns
        if in_integers:
            byte_rows = Int8Rows(patch_ordered(weight, (PATCH, PATCH)), bias)
        else:
            kernels = _kernels(weight)
        features, linear = [], []
        for strip in _strips(image):
            if in_integers:
                products = byte_rows(patches(strip, (PATCH, PATCH)))
            else:
                floats = to_floats(strip).to(kernels.dtype)
                products = F.conv2d(floats, kernels, bias, PATCH)
                products = products.permute(0, 2, 3, 1).flatten(1, 2)
            stem, rest = products.split([products.shape[2] - self.channels, self.channels], 2)
            features.append(self.stem.gated(stem))
            linear.append(rest)
        size = [image.shape[-2] // PATCH, image.shape[-1] // PATCH]
        stem = concatenated(features, 1)
        return stem.unflatten(1, size), concatenated(linear, 1).unflatten(1, size)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Rows [R, 192] and biases [R] of the stem and the linear map."""
        weight, bias = self.stem.rows()
        linear_weight, linear_bias = self.linear.parameters()
        return torch.cat([weight, linear_weight.flatten(1)]), torch.cat([bias, linear_bias])


def _strips(image: Tensor) -> Sequence[Tensor]:
    """The image in strips of whole patches; in an exported program, as one strip."""
    if torch.compiler.is_compiling():
        return [image]
    rows_at_once = max(1, CHUNK * PATCH // image.shape[-1])
    strips: tuple[Tensor, ...] = image.split(rows_at_once * PATCH, 2)
    return strips


def _kernels(weight: Tensor) -> Tensor:
    """Rows [R, 192], rounded to 8 bits, as kernels [R, 3, 8, 8] of a convolution of floats."""
    kernels: Tensor = fake_quantized(weight).unflatten(1, (-1, PATCH, PATCH))
    return kernels.contiguous(memory_format=torch.channels_last)

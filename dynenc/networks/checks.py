"""Checks of the tensors and sizes passed to networks; they raise UsageError."""

from typing import Any

import torch
from torch import Tensor

from dynenc import arguments
from dynenc.errors import UsageError


def check_batch(what: str, tensor: Any, channels: int, multiple: int = 1) -> None:
    """Refuse anything but a tensor [B, channels, H, W] of floats or bytes.

    Args:
        what: what the tensor is, for the message.
        multiple: H and W must be positive multiples of this.
    Nothing is checked while a network is traced or compiled, as sizes may be symbolic then.
    """
    if _is_traced():
        return
    if not isinstance(tensor, Tensor):
        raise UsageError(f"{what} must be a tensor, not {type(tensor).__name__}")
    shape = list(tensor.shape)
    if len(shape) != 4 or shape[1] != channels or not all(side > 0 for side in shape[2:]):
        raise UsageError(f"{what} must have the shape [B, {channels}, H, W], not {shape}")
    if any(side % multiple for side in shape[2:]):
        raise UsageError(f"the sides of {what}, {shape[2:]}, must be multiples of {multiple}")
    if not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        raise UsageError(f"{what} must hold floats, not {tensor.dtype}")


def check_step(step: Any, count: int) -> None:
    """Refuse anything but a quantiser step of 0 or more, or a tensor of one for each image.

    Nothing is checked where `check_batch` checks nothing.
    """
    if _is_traced():
        return
    if not isinstance(step, Tensor):
        if not arguments.checked_number("step", step) >= 0:
            raise UsageError(f"step must be 0 or more, not {step}")
    elif step.shape not in ((), (count,)):
        raise UsageError(f"step must be a number or have the shape [{count}], not {[*step.shape]}")


def _is_traced() -> bool:
    """Whether a network is being traced or compiled."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def pair(name: str, value: Any, least: int) -> Any:
    """An integer or a pair of integers, as torch layers take them."""
    for number in value if isinstance(value, tuple | list) and len(value) == 2 else (value,):
        arguments.checked_integer(name, number, least)
    return value

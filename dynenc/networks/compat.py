"""Code that depends on the machine and on torch's version: devices, bfloat16, integer products.

Private functions of torch are used only here, each with a fallback for when it is missing.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.errors import DeviceError, UsageError

CPU_DTYPE = "DYNENC_CPU_DTYPE"  # environment variable: auto, float32 or bfloat16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device of 'cpu', 'cuda', 'cuda:1', 'mps', or 'auto': a GPU if there is one.

    Raises: DeviceError if the device does not exist; UsageError if DYNENC_CPU_DTYPE is invalid.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    counts = {"cuda": max(1, torch.cuda.device_count()) if cuda else 0, "mps": int(mps), "cpu": 1}
    if not isinstance(device, str | torch.device):
        raise DeviceError(f"no device {device!r}", hint="use --device cpu or auto")
    if device == "auto":
        device = next(kind for kind, count in counts.items() if count)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or (chosen.index or 0) >= counts.get(chosen.type, 0):
        raise DeviceError(f"no device {str(device)!r}", hint="use --device cpu or auto")
    if chosen.type == "cpu":
        cpu_dtype()  # reports an invalid setting before any work
    return chosen


def cpu_dtype() -> torch.dtype:
    """The dtype for matrix products of large networks on the CPU.

    bfloat16 if the CPU has units for it, else float32, which is then faster. DYNENC_CPU_DTYPE
    forces one or the other; bfloat16 without units is emulated, exactly but slowly.
    Raises: UsageError if the variable has another value.
    """
    name = os.environ.get(CPU_DTYPE) or "auto"
    if name == "auto":
        return torch.bfloat16 if has_bfloat16_units() else torch.float32
    try:
        return DTYPES[name]
    except KeyError:
        raise UsageError(f"{CPU_DTYPE} is {name!r}: set it to auto, float32 or bfloat16") from None


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which a large network is fast on a device."""
    return torch.float16 if device.type in ("cuda", "mps") else cpu_dtype()


def maybe_bfloat16(inputs: Tensor) -> AbstractContextManager[Any]:
    """A context with products in bfloat16 if `inputs` are on the CPU and `cpu_dtype` says so.

    It applies only to float32 inputs without gradient, and not while torch exports a program. Sums
    of residual blocks that start in float32 stay in float32.
    """
    plain = inputs.is_cpu and inputs.dtype == torch.float32 and not torch.is_grad_enabled()
    if plain and not torch.compiler.is_compiling() and cpu_dtype() == torch.bfloat16:
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


@contextmanager
def without_autocast() -> Iterator[None]:
    """A context, or decorator, in which networks use their own dtypes, also under autocast."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@functools.cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; False if torch cannot tell."""
    if hasattr(torch.cpu, "get_capabilities"):  # public, in newer versions of torch only
        found = torch.cpu.get_capabilities()
        return any(bool(found.get(unit)) for unit in ("amx_bf16", "avx512_bf16"))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


@functools.cache
def has_exact_int_mm() -> bool:
    """Whether torch can multiply int8 matrices on this CPU without saturating sums."""
    ones = torch.ones(32, 192, dtype=torch.int8, device="cpu")
    extremes = [(i, j) for i in (-128, 127) for j in (-127, 127)]
    try:
        return all(
            bool((torch._int_mm(ones * i, ones.T * j) == 192 * i * j).all()) for i, j in extremes
        )
    except (RuntimeError, AttributeError):
        return False


def int8_linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Exact products of int8 matrices: [N, K] and [R, K], K < 1000 -> [N, R], int32 or float32."""
    if inputs.is_cpu and has_exact_int_mm():
        return torch._int_mm(inputs, weight.T)
    return F.linear(inputs.float(), weight.float())  # sums below 2**24 are exact in float32

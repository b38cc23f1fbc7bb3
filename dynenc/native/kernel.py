"""The native kernel through ctypes: entropy coding and quantisation of latents.

Calls release the GIL, so threads code images at once. `DYNENC_SIMD` in the environment forces an
instruction set: avx512, avx2, sse2, neon or portable; all give the same bytes.
"""

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from dynenc.errors import Corrupt, DynencError, WeightsError
from dynenc.native import compile

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

PATHS = {"avx512": 3, "avx2": 2, "neon": 4, "sse2": 1, "portable": 0}  # the fastest first
VARIABLE = "DYNENC_SIMD"
ALIGNMENT = 64
KEPT = 2**23  # bytes of a workspace that a thread keeps for its next call, as fresh memory is slow
BAD_ARGUMENT = -1
FAULTS = {  # what an error code of the kernel means: dynenc.h
    -3: Corrupt("the payload is damaged, or does not end with the last symbol"),
    -4: Corrupt("the payload is damaged: it escapes what has an entry in the table"),
    -5: WeightsError("the entropy coder's tensors do not fit each other"),
    -6: WeightsError("the entropy coder's weights exceed exact arithmetic"),
    -7: WeightsError("the entropy coder's contexts reach too far"),
    -8: WeightsError("the entropy coder's contexts use symbols that are not decoded yet"),
    -9: WeightsError("the entropy coder's frequencies do not sum to one"),
    -10: WeightsError("the encoder's weights are not finite, or beyond 256"),
}


class Call(ctypes.Structure):
    """`dynenc_call` of dynenc.h."""

    _fields_ = (
        ("coder", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("lattice", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("step_q", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
    )


@cache
def library() -> ctypes.CDLL:
    """The compiled library; in a checkout it is compiled first if a source is newer.

    Raises: DynencError if it is missing and cannot be compiled.
    """
    in_checkout = (compile.FOLDER.parents[1] / "pyproject.toml").is_file()
    try:
        if in_checkout and not compile.is_current():
            compile.build()
        found = ctypes.CDLL(str(compile.LIBRARY))
    except (compile.NoCompiler, OSError) as exc:
        hint = str(exc) if in_checkout else "reinstall dynenc"
        raise DynencError(f"{compile.LIBRARY} cannot be loaded", hint=hint) from exc
    for name in ("encoder_size", "encoder_init", "latents_workspace"):
        getattr(found, f"dynenc_{name}").restype = ctypes.c_int64
    for name in ("workspace_size", "coder_size", "coder_init", "encode", "decode"):
        getattr(found, f"dynenc_{name}").restype = ctypes.c_int64
    for name in ("quantize", "points", "contexts", "gradient", "latents"):

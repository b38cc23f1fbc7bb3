"""What several tests do with .lat files."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dynenc.coding.bitstream import Header
from dynenc.coding.lat_file import LatFile


def read_latents(blob: bytes) -> tuple[Header, torch.Tensor]:
    """The header of a .lat file and its latents [1, 4, h, w]."""
    file = LatFile.parse(blob)
    return file.header, torch.from_numpy(file.latents)[None]


def zero_order_bits(symbols: npt.NDArray[Any]) -> float:
    """Bits of symbols [C, h, w] by the entropy of each channel."""
    bits = 0.0
    for channel in symbols:
        _, counts = np.unique(channel, return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits

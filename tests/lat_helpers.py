"""What several tests do with .lat files."""

import torch

from dynenc.coding.bitstream import Header
from dynenc.coding.lat_file import LatFile


def read_latents(blob: bytes) -> tuple[Header, torch.Tensor]:
    """The header of a .lat file and its latents [1, 4, h, w]."""
    file = LatFile.parse(blob)
    return file.header, torch.from_numpy(file.latents)[None]

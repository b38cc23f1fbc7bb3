"""10,000 images in one process: neither memory nor open files grow."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynenc.codec import Codec
from dynenc.coding.lat_file import read_bytes
from dynenc.imaging.read import open_image

CALLS, EVERY = 10_000, 100
LIMIT = 50  # bytes a call; a leak of one small object a call is more


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_are_flat(tmp_path):
    codec = Codec.from_pretrained("nano", decoder="embedded", device="cpu")
    random = np.random.default_rng(0)
    source, lat, back = (tmp_path / name for name in ("in.png", "x.lat", "out.png"))
    resident, opened = [], []
    for call in range(CALLS):
        height, width = random.integers(1, 17, 2)
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(source)
        Path(lat).write_bytes(codec.encode(open_image(source)))
        codec.decode(read_bytes(str(lat))).save(back)
        if call % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
            opened.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - a path each would open more
    warm = len(resident) // 5
    calls = np.arange(len(resident))[warm:] * EVERY
    slope = np.polyfit(calls, resident[warm:], 1)[0]
    print(f"{slope:.2f} bytes a call, {resident[-1] / 1e6:.1f} MB, {opened[-1]} files open")
    assert slope < LIMIT
    assert opened[warm] == opened[-1]

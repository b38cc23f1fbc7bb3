"""A picture of 100 megapixels encodes and decodes in 2 GB of resident memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SIDE, LIMIT = 10_000, 2e9  # px, bytes


def peak_of(*arguments: object) -> int:
    """Largest resident memory of a `dynenc` command that succeeds, in bytes."""
    command = [sys.executable, "-m", "dynenc", *map(str, arguments)]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("encoder", ["nano", "light", "base"])
def test_a_hundred_megapixels(tmp_path, photo_path, encoder):
    source, lat, back = (tmp_path / name for name in ("in.png", "x.lat", "out.png"))
    with Image.open(photo_path) as photo:
        one = np.asarray(photo.convert("RGB"))
    times = -(-SIDE // one.shape[0]), -(-SIDE // one.shape[1]), 1
    Image.fromarray(np.tile(one, times)[:SIDE, :SIDE]).save(source, compress_level=1)
    peaks = [peak_of("encode", source, "-o", lat, "-e", encoder)]
    if encoder == "nano":  # a decoder does not care
        peaks.append(peak_of("decode", lat, "-o", back, "-d", "embedded"))
    print([f"{peak / 1e6:.0f} MB" for peak in peaks])
    assert max(peaks) <= LIMIT

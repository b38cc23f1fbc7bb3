"""An image of 100 megapixels encodes and decodes in 2 GB of resident memory.

Decoding takes no more bytes per pixel than docs/guarantees.md says.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dynenc.codec import Codec
from dynenc.imaging import signals

WIDE = signals.of_cicp(9, 8)  # an RGB profile
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


DECODE = """if True:
    import sys
    from pathlib import Path
    from dynenc.codec import Codec
    def peak():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    codec = Codec("nano", "embedded", "cpu")
    codec.decode(sys.argv[1])
    before = peak()
    codec.decode(sys.argv[2])
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize(("mode", "limit"), [("RGB", 7), ("LA", 20)])
def test_bytes_per_pixel(tmp_path, photo_path, mode, limit):
    """Of a photograph, and of grey text with opacity and a profile."""
    codec = Codec("nano", "embedded", "cpu")
    with Image.open(photo_path) as photo:
        images = [photo.convert("RGB").resize((side, side)) for side in (64, 3000)]
    paths = [tmp_path / f"{image.width}.lat" for image in images]
    for image, path in zip(images, paths, strict=True):
        if mode == "LA":
            draw = ImageDraw.Draw(image)
            draw.rectangle((0, 0, image.width, image.height), "white")
            for y in range(0, image.height, 14):
                draw.text((0, y), "Text, black on white. " * 30, "black")
            image = image.convert("LA")
            image.putalpha(Image.radial_gradient("L").resize(image.size))
            image.info["icc_profile"] = WIDE
        path.write_bytes(codec.encode(image, keep_metadata=True))
    command = [sys.executable, "-c", DECODE, *map(str, paths)]
    n_bytes = int(subprocess.run(command, check=True, capture_output=True).stdout)
    print(f"{n_bytes / 3000**2:.1f} bytes per pixel")
    assert n_bytes <= limit * 3000**2

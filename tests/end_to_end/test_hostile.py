"""Hostile files are refused at once, with the documented errors, and cost next to nothing."""

import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import hostile
from helpers.lat_files import read_latents

from dynenc.coding import bitstream
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError
from dynenc.imaging import extras

LIMIT_S, LIMIT_BYTES = 0.050, 50e6


def sound_payload() -> bytes:
    return load_coder("fast", has_trellis=False).encode(
        np.arange(4, dtype=np.int32).reshape(4, 1, 1), 307
    )


FILES = hostile.files(sound_payload())


def test_the_payload_they_are_made_from_is_sound():
    _, latents = read_latents(hostile.made(sound_payload()))
    assert latents.flatten().tolist() == [0, 0.2998046875, 0.599609375, 0.8994140625]
    blob = hostile.with_chunks(sound_payload(), hostile.chunk(b"file", hostile.made(b"abc")))
    assert read_latents(blob)[1].equal(latents)


def resident_bytes(name: str) -> int:
    """VmRSS, or VmHWM: the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def read(blob: bytes) -> None:
    file = LatFile.parse(blob)
    extras.from_chunks(file.chunks, file.size)


def refuse(blob: bytes) -> None:
    with pytest.raises(BitstreamError):
        read(blob)


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_refused_at_once(name):
    refuse(FILES[name])
    times = []
    for _ in range(3):  # in seconds of this process: others may run at the same time
        start = time.process_time()
        refuse(FILES[name])
        times.append(time.process_time() - start)
    tracemalloc.start()
    refuse(FILES[name])
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if sys.platform == "linux":  # this counts what is not Python's, too
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        refuse(FILES[name])
        used = max(used, resident_bytes("VmHWM") - before)
    print(f"{1e3 * min(times):.3f} ms, {used / 1e6:.2f} MB")  # pytest -rP shows it
    assert min(times) <= LIMIT_S
    assert used <= LIMIT_BYTES


def test_a_file_cannot_claim_more_pixels_than_its_payload_can_hold():
    """A flat image is the most pixels a byte can hold; a few more are refused unread."""
    model = load_coder("fast", has_trellis=False)
    flat = model.encode(np.zeros((4, 96, 96), np.int32), 307)
    assert len(model.decode(flat, 96, 96, 307).nonzero()[0]) == 0
    start = time.process_time()
    refuse(hostile.made(flat, width=13_000, height=13_000))
    assert time.process_time() - start < LIMIT_S


def test_decoding_stops_soon_after_the_payload_ends():
    """Zeros never run out for the coder, and are no error to it; the whole takes far longer."""
    blob = hostile.made(bytes(1200), width=4000, height=4000)
    start = time.process_time()
    refuse(blob)
    stopped = time.process_time() - start
    model = load_coder("fast", has_trellis=False)
    whole = model.encode(np.zeros((4, 500, 500), np.int32), 307)
    start = time.process_time()
    model.decode(whole, 500, 500, 307)
    assert stopped < 0.5 * (time.process_time() - start)


def test_no_length_overflows_the_reader():
    for length in range(2**32 - 40, 2**32):
        refuse(hostile.with_chunks(b"", hostile.chunk(b"exif", b"abc", length=length)))
        refuse(hostile.with_chunks(b"abcd", length=length))
    assert bitstream.read(hostile.made(b"x" * 9))[1] == b"x" * 9

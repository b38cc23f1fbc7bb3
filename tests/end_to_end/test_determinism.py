"""The same file gives the same symbols everywhere, and almost the same pixels."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from helpers.lat_files import read_latents
from PIL import Image

from dynenc import metrics
from dynenc.codec import Codec
from dynenc.coding.lat_file import LatFile

LEAST_DB, LEAST_HALF_DB = 50.0, 35.0  # in float32, as docs/guarantees.md promises; in bfloat16

SYMBOLS = """
import hashlib, sys
from dynenc.coding.lat_file import LatFile
symbols = LatFile.open(sys.argv[1]).symbols
print(hashlib.sha256(symbols.astype("<i4").tobytes()).hexdigest())
"""
ENCODE = """
import sys
import torch
from dynenc.cli import main
torch.set_num_threads(1)
main.app(["encode", "-e", "nano", "-o", "-", "--device", "cpu", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def embedded():
    return Codec("nano", decoder="embedded", device="cpu")


@pytest.fixture
def blob(embedded, photo_path):
    return embedded.encode(Image.open(photo_path), quality=80)


@pytest.fixture
def one_thread():
    """Torch in one thread, for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_symbols_do_not_depend_on_threads(blob, tmp_path):
    (path := tmp_path / "x.lat").write_bytes(blob)
    digests = set()
    for threads in ("1", "2", "5"):
        variables = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        command = [sys.executable, "-c", SYMBOLS, path]
        digests.add(subprocess.check_output(command, env=os.environ | variables))
    symbols = LatFile.parse(blob).symbols.astype("<i4")
    assert digests == {hashlib.sha256(symbols.tobytes()).hexdigest().encode() + b"\n"}


def test_another_process_encodes_to_the_same_bytes(embedded, photo_path, one_thread):
    blob = embedded.encode(Image.open(photo_path))
    assert embedded.encode(Image.open(photo_path)) == blob
    command = [sys.executable, "-c", ENCODE, photo_path]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    assert result.stdout == blob


@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_hardly_depend_on_threads(embedded, blob, one_thread, threads):
    expected = embedded.decode_tensor(blob)
    torch.set_num_threads(threads)
    assert metrics.psnr_db(embedded.decode_tensor(blob), expected) >= LEAST_DB


def test_pixels_hardly_depend_on_the_batch(embedded, blob):
    _, latents = read_latents(blob)
    with torch.inference_mode():
        alone = embedded.decoder(latents)
        batch = embedded.decoder(latents.repeat(8, 1, 1, 1))
    worst = min(metrics.psnr_db(image[None], alone) for image in batch)
    print(f"{worst:.1f} dB")  # pytest -rP shows it
    assert worst >= LEAST_DB


def test_a_decoder_in_half_precision_changes_no_symbol(blob):
    half = Codec("nano", decoder="embedded", device="cpu")
    expected, (_, before) = half.decode_tensor(blob), read_latents(blob)
    half.decoder.to(torch.bfloat16)
    psnr_db = metrics.psnr_db(half.decode_tensor(blob), expected)
    assert read_latents(blob)[1].equal(before)
    print(f"{psnr_db:.1f} dB")  # pytest -rP shows it
    assert psnr_db >= LEAST_HALF_DB

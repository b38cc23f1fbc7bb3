"""Files of every version decode for ever; damage to any of them is noticed."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from golden import make
from PIL import Image

from dynenc import metrics
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError
from dynenc.imaging import extras
from dynenc.imaging.tensors import to_tensor
from dynenc.interop import cache_chunk
from dynenc.latent_space import SD1
from dynenc.native import kernel

FOLDER = Path(__file__).parent
LEAST_DB = 50.0  # as docs/guarantees.md promises
CASES = {name: case for name, case in make.cases().items() if name in ("v1_nano_q0", "v1_chunks")}

HERE = [
    name for name, path in kernel.INSTRUCTION_SETS.items() if kernel.library().dynenc_has_path(path)
]
SPACES = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("spaces/*.lat"))]
GOLDENS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.lat"))]
every_golden = pytest.mark.parametrize("lat", GOLDENS)


@pytest.fixture(scope="module")
def embedded():
    return Codec(decoder="embedded", device="cpu")


def check_symbols(lat):
    """The symbols are those stored, and are coded to the same file."""
    blob, expected = lat.read_bytes(), np.load(lat.with_suffix(".npy"), allow_pickle=False)
    file = LatFile.parse(blob)
    assert np.array_equal(file.symbols, expected)
    again = file.coder.encode(expected.astype(np.int32), file.header.step_q)
    assert again == file.payload
    assert file.to_bytes() == blob


def check_pixels(lat, decoder):
    """The pixels are those that the same decoder gave, or near them if it computes in floats."""
    blob = lat.read_bytes()
    file = LatFile.parse(blob)
    decoded = decoder.decode(blob)
    with Image.open(lat.with_suffix(".png")) as stored:
        assert (decoded.size, decoded.mode) == (stored.size, stored.mode)
        for kind in ("exif", "xmp", "icc_profile"):
            assert decoded.info.get(kind) == stored.info.get(kind)
        if decoded.mode in ("LA", "RGBA"):
            assert decoded.getchannel("A").tobytes() == stored.getchannel("A").tobytes()
        if stored.info["decoder"] != make.decoder_sha256(decoder, file):
            return  # another decoder gives another image
        if file.model.space is SD1:
            assert decoded.tobytes() == stored.tobytes()
        psnr_db = metrics.psnr_db(*(to_tensor(one.convert("RGB")) for one in (decoded, stored)))
    print(f"{psnr_db:.1f} dB")  # pytest -rP shows it
    assert psnr_db >= LEAST_DB


def check_row(lat):
    """The README says how the file was made, and of which bytes it is."""
    readme = (lat.parent / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{lat.stem}` \| .+ \| `(\w+)` \|$", readme, re.MULTILINE)
    assert row
    assert row.group(1) == hashlib.sha256(lat.read_bytes()).hexdigest()


def check_damage(lat):
    """Every single-bit flip, every truncation and 500 random bursts are noticed."""
    blob = lat.read_bytes()
    random = np.random.default_rng(0)
    damaged = [blob[:length] for length in range(len(blob))]
    for bit in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for _ in range(500):
        start, length = random.integers(len(blob)), random.integers(1, 64)
        burst = random.bytes(len(blob[start : start + length]))
        if (copy := blob[:start] + burst + blob[start + length :]) != blob:
            damaged.append(copy)
    for each in damaged:
        with pytest.raises(BitstreamError):
            bitstream.read(each, 2**32)
    print(f"{8 * len(blob)} flips, {len(blob)} truncations")  # pytest -rP shows it


@every_golden
def test_symbols(lat):
    check_symbols(lat)


@pytest.mark.parametrize("lat", SPACES)
def test_other_spaces(lat):
    check_symbols(lat)
    check_row(lat)
    assert lat.stem in make.space_cases()


@every_golden
def test_pixels(lat, embedded):
    check_pixels(lat, embedded)


@every_golden
def test_chunks(lat):
    """They hold what is listed."""
    chunks = LatFile.parse(lat.read_bytes()).chunks
    listed = lat.with_suffix(".json")
    expected = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else []
    assert make.contents(chunks) == expected


def test_chunks_are_read_as_they_were_written():
    file = LatFile.parse((FOLDER / "v1_light_more_metadata.lat").read_bytes())
    assert extras.from_chunks(file.chunks, file.size).metadata == make.METADATA
    found = cache_chunk.from_chunks(file.chunks)
    assert found.metadata == {"caption": "Čelči"}
    assert [(t.key, t.kind, t.shape) for t in found.tensors] == [
        ("latents_5x5", "payload", (4, 5, 5)),
        ("latents_1x1", "lat", (4, 1, 1)),
        ("crop_ltrb", "data", (2, 2)),
    ]
    assert LatFile.parse(found.tensors[1].data).size == (8, 8)
    assert np.frombuffer(found.tensors[2].data, "<i8").tolist() == [0, -1, 33, 40]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "spaces"], ids=lambda f: f.name)
def test_pixels_are_the_same_with_every_instruction_set(folder, path, threads, monkeypatch):
    monkeypatch.setenv(kernel.SIMD_VARIABLE, path)
    for kind, table in make.SUMS.items():
        if found := make.sums(folder, kind, threads):
            assert found == (folder / table).read_text(encoding="utf-8")


@every_golden
def test_row_of_its_readme(lat):
    check_row(lat)


@every_golden
def test_damage(lat):
    check_damage(lat)


def test_files_are_added_and_never_rewritten(tmp_path, embedded):
    assert make.add(tmp_path, CASES) == list(CASES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3 * len(CASES) + 1 + 3  # chunks of one of them; README and sums
    other = {name: ("otherwise", lambda: b"other bytes") for name in CASES}
    assert make.add(tmp_path, other) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for name in CASES:
        lat = tmp_path / f"{name}.lat"
        check_symbols(lat)
        check_pixels(lat, embedded)
        check_row(lat)
        check_damage(lat)

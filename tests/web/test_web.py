"""The reader in WebAssembly gives the pixels of the golden files, and one error for bad ones."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from golden import make
from helpers import hostile
from PIL import Image

from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.lat_file import LatFile
from dynenc.errors import OutputError
from dynenc.web import build

GOLDEN = Path(make.__file__).parent
MOST_BYTES = 4_500_000  # of all that a page loads
IGNORED = ("alpha", "EXIF", "XMP", "profile of", "text", "resolution")  # chunks passed on unread


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of a reader."""
    has_compiler = importlib.util.find_spec("ziglang") or shutil.which("zig")
    if not (shutil.which("node") and has_compiler):
        pytest.skip("needs node, and zig or ziglang")
    folder = tmp_path_factory.mktemp("reader")
    build.build(folder)
    return folder


def decoded(reader, paths, **options):
    """What the reader says of files."""
    call = ["node", Path(__file__).with_name("decode.mjs"), reader, json.dumps(options)]
    names = "\n".join(map(str, paths))
    done = subprocess.run(call, input=names, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def written(folder, blobs):
    """Files of bytes, by name."""
    paths = [folder / f"{index}.lat" for index in range(len(blobs))]
    for path, blob in zip(paths, blobs.values(), strict=True):
        path.write_bytes(blob)
    return dict(zip(blobs, paths, strict=True))


def test_golden_files_have_the_pixels_of_every_machine(reader):
    lines = (GOLDEN / make.SUMS["decoder"]).read_text(encoding="utf-8").splitlines()
    expected = dict(reversed(line.split("  ")) for line in lines)
    paths = sorted(GOLDEN.glob("*.lat"))
    sums, refused = {}, {}
    for path, found in zip(paths, decoded(reader, paths), strict=True):
        if "error" in found:
            refused[path.stem] = found["error"], found["message"]
            continue
        file = LatFile.parse(path.read_bytes())
        assert (found["width"], found["height"]) == file.size
        assert found["chunks"] == list(dict.fromkeys(tag for tag, _ in file.chunks))
        sums[path.stem] = found["sha256"]
    assert sums == {name: value for name, value in expected.items() if name not in refused}
    detail = "LatError", "the file has a detail layer, which this reader cannot decode"
    assert refused == {
        **{path.stem: detail for path in paths if "detail" in path.stem},
        "v1_autoencoder_photo_q50": (
            "LatError",
            "the latents are of model 5, which this reader has no decoder for",
        ),
    }


def test_what_a_page_loads_is_small(reader):
    assert sum(path.stat().st_size for path in reader.iterdir()) <= MOST_BYTES


def test_the_program_imports_nothing(reader):
    code = "const file = require('fs').readFileSync(process.argv[1]);"
    code += "console.log(WebAssembly.Module.imports(new WebAssembly.Module(file)).length)"
    call = ["node", "-e", code, reader / build.PROGRAM]
    assert subprocess.run(call, stdout=subprocess.PIPE, check=True).stdout == b"0\n"


def test_pixels_with_opacity_and_the_limit(reader, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 20, 3), np.uint8))
    blob = Codec("nano", device="cpu").encode(image, detail="off")
    path = tmp_path / "a.lat"
    path.write_bytes(blob)
    pixels = Codec(decoder="embedded", device="cpu").decode(blob).convert("RGBA").tobytes()
    [found] = decoded(reader, [path], channels=4, maxPixels=180)
    assert found["sha256"] == hashlib.sha256(pixels).hexdigest()
    [found] = decoded(reader, [path], maxPixels=179)
    assert found["message"] == "the file declares 20x9 pixels, the limit is 179"
    [found] = decoded(reader, [path], channels="4")
    assert found == {"error": "TypeError", "message": "channels is 4, not 3 or 4"}


def test_other_tables_and_programs_are_refused(reader, tmp_path):
    other = shutil.copytree(reader, tmp_path / "reader")
    tables, program = (reader / name for name in (build.TABLES, build.PROGRAM))
    whole = tables.read_bytes()
    without_decoder = whole.replace(b"decoder.", b"encoder.")
    for blob in (b"", b"{}", whole[:100], whole[:-6], program.read_bytes(), without_decoder):
        (other / build.TABLES).write_bytes(blob)
        [found] = decoded(other, [GOLDEN / "v1_light_7x13.lat"])
        assert found["error"] == "LatError"
        assert "the tables are not those of dynenc.safetensors" in found["message"]
    (other / build.TABLES).write_bytes(whole)
    empty = b"\0asm\1\0\0\0"
    importing = empty + b"\1\4\1\x60\0\0" + b"\2\7\1\1a\1b\0\0"  # a function b of a module a
    for blob in (empty, importing):
        (other / build.PROGRAM).write_bytes(blob)
        [found] = decoded(other, [GOLDEN / "v1_light_7x13.lat"])
        assert found == {"error": "LatError", "message": "the program is not that of dynenc.wasm"}


def test_a_folder_that_cannot_be_written_is_an_error_of_dynenc(tmp_path):
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(OutputError, match="file cannot be written: File exists"):
        build.build(taken)


def test_hostile_files_end_in_one_error(reader, tmp_path):
    payload = LatFile.parse(Codec("nano", device="cpu").encode(Image.new("RGB", (8, 8)))).payload
    paths = written(tmp_path, hostile.files(payload))
    for name, found in zip(paths, decoded(reader, paths.values()), strict=True):
        if not name.startswith(IGNORED) or "twice" in name:
            assert (name, found.get("error")) == (name, "LatError")


def test_damaged_payloads_end_in_one_error(reader, tmp_path):
    random, blobs = np.random.default_rng(0), {}
    for lat in sorted(GOLDEN.glob("v1_f*.lat")):
        body = bytearray(lat.read_bytes()[: -bitstream.CRC.size])
        for index in range(10):
            for at in random.integers(bitstream.FIXED_BYTES, len(body), 1 + index):
                body[at] = random.integers(256)
            blobs[f"{lat.stem} {index}"] = hostile.sealed(bytes(body))
    paths = written(tmp_path, blobs)
    found = decoded(reader, paths.values())
    assert {each.get("error") for each in found} <= {"LatError", None}
    assert sum("error" in each for each in found) > len(found) // 2

"""Golden files have the pixels of their pixels.sha256 on arm64, too, where qemu runs it."""

import hashlib
import shutil
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from golden import make
from safetensors.numpy import load

from dynenc import registry
from dynenc.coding import entropy
from dynenc.coding.lat_file import LatFile
from dynenc.latent_space import SD1, SPACES
from dynenc.native import compile, kernel
from dynenc.networks import integer_tensors
from dynenc.networks.integer_tensors import Sizes

GOLDEN = Path(make.__file__).parent
HERE = [space for space in SPACES.values() if registry.counterpart("embedded", space)]
SMALL = 2**13  # px; larger files take minutes where a processor is emulated
PROCESSORS = {"portable": "max", "neon": "cortex-a53", "neondot": "max"}  # for each path


def files_of_coders(folder, space, most_pixels):
    """Name, header and payload of golden files of a space, by coder and lattice."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.lat")):
        file = LatFile.parse(path.read_bytes())
        n_pixels = file.header.width * file.header.height
        if file.model.space is space and n_pixels <= most_pixels:
            key = registry.coder(file.header.coder_id, space).name, file.header.has_trellis
            found[key].append((path.stem, file.header, file.payload))
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The driver, for arm64."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if not (compiler and shutil.which("qemu-aarch64")):
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64")
    target = tmp_path_factory.mktemp("arm64") / "conformance"
    flags = ["-static", "-std=c11", "-O2", "-ffp-contract=off", f"-I{compile.FOLDER}"]
    files = [Path(__file__).with_name("conformance.c"), *compile.sources()]
    subprocess.run([compiler, *flags, *files, "-lm", "-o", target], check=True)
    return target


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, space):
    """Files of the tensors of a space's embedded decoder."""
    folder = tmp_path_factory.mktemp("decoder")
    model = registry.counterpart("embedded", space)
    packed = integer_tensors.packed(integer_tensors.read(model), Sizes.of(model))
    (folder / "numbers").write_bytes(packed.numbers.tobytes())
    (folder / "weights").write_bytes(packed.weights.tobytes())
    return folder


def decoded(program, path, coder, decoder, files):
    """The sha256 of the pixels of files, by name; `coder` is a file of tensors and the lattice."""
    fields = [(h.width, h.height, h.step_q, len(payload)) for _, h, payload in files]
    call = [
        "qemu-aarch64",
        "-cpu",
        PROCESSORS[path],
        program,
        str(kernel.INSTRUCTION_SETS[path]),
        *coder,
    ]
    pixels = subprocess.run(
        [*call, decoder / "numbers", decoder / "weights"],
        input=b"".join(
            struct.pack("<4I", *f) + file[2] for f, file in zip(fields, files, strict=True)
        ),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    lengths = [3 * width * height for width, height, *_ in fields]
    ends = np.cumsum(lengths)
    assert len(pixels) == ends[-1]
    parts = [pixels[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return {
        file[0]: hashlib.sha256(part).hexdigest() for file, part in zip(files, parts, strict=True)
    }


@pytest.mark.parametrize("space", HERE, ids=lambda s: s.name, scope="module")
@pytest.mark.parametrize("path", PROCESSORS)
@pytest.mark.parametrize(
    "most_pixels", [SMALL, pytest.param(2**32, marks=pytest.mark.slow)], ids=["small", "all"]
)
def test_pixels_on_arm64(program, space, decoder, tmp_path, path, most_pixels):
    folder = GOLDEN if space is SD1 else GOLDEN / "spaces"
    lines = (folder / make.SUMS["decoder"]).read_text(encoding="utf-8").splitlines()
    expected = dict(reversed(line.split("  ")) for line in lines)
    for (name, has_trellis), files in files_of_coders(folder, space, most_pixels).items():
        tensors = load(registry.read_file(registry.named(name, "coder")))
        coder = tmp_path / "coder"
        coder.write_bytes(entropy.packed(tensors, has_trellis=has_trellis).tobytes())
        sums = decoded(program, path, (coder, str(int(has_trellis))), decoder, files)
        assert sums == {name: expected[name] for name, *_ in files}

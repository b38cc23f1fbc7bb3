"""Fuzz the native kernel with libFuzzer, under the sanitizers of addresses and undefined behaviour.

python tests/fuzz/kernel.py TARGET FOLDER [OPTION OF LIBFUZZER]...

needs clang. TARGET is kernel, or pixels for the integer decoder of pictures alone. FOLDER
keeps the inputs that were found; those of the kernel begin with the golden files. An option such as
-max_total_time=60 or -runs=10000000 ends it.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from dynenc import registry
from dynenc.coding import bitstream, entropy
from dynenc.native import compile
from dynenc.native.kernel import Ints

NAMES = ("neighbours", "hidden", "middle", "output", "bias")
INPUTS, UNITS = 7, 9  # of the coder's networks, each hidden layer's
PIXELS = ("cpu", "decoder", "pixels", "products")  # sources of the integer decoder of pictures
HERE = Path(__file__).parent
FLAGS = ["-std=c11", "-g", "-O2", "-ffp-contract=off", "-fno-sanitize-recover=all"]
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-coverage=trace-cmp"]


def tensors() -> bytes:
    """The trellis tables of the full coder, as the kernel takes them.

    Networks keep a few of their inputs and units: they are checked and run by the same code, in
    less time.
    """
    found = load(registry.read_file(registry.named("full", "coder")))
    for stage in range(len(entropy.STAGES)):
        names = [f"trellis.{stage}.{name}" for name in NAMES]
        found.update(zip(names, _small(*(found[name] for name in names)), strict=True))
    return entropy.packed(found, has_trellis=True).tobytes()


def _small(
    neighbours: Ints, hidden: Ints, middle: Ints, output: Ints, bias: Ints
) -> tuple[Ints, ...]:
    """The tensors of a stage, [channels, ...] each, with fewer inputs and units."""
    inputs, units = np.arange(INPUTS), np.arange(UNITS)
    n_hidden, n_middle = hidden.shape[1], middle.shape[1]
    outputs = np.concatenate([units, n_middle + units, n_middle + n_hidden + inputs])
    biases = np.concatenate([units, n_hidden + units, n_hidden + n_middle + np.arange(3)])
    return (
        neighbours[:, :INPUTS],
        hidden[:, :UNITS, :INPUTS],
        middle[:, :UNITS, :UNITS],
        output[:, :, outputs],
        bias[:, biases],
    )


def first_inputs(target: str) -> dict[str, bytes]:
    """What fuzzing begins with, by name."""
    if target == "pixels":
        random = np.random.default_rng(0)
        return {f"random_{mode}": bytes([mode]) + random.bytes(99) for mode in range(64)}
    found = {}
    for file in (HERE.parent / "golden").glob("*.lat"):
        header, payload, _ = bitstream.read(file.read_bytes())
        size = -(-header.height // 8), -(-header.width // 8)
        if max(size) < 20:
            step = divmod(header.step_q, 256)[::-1]
            for mode in (0, 5, 7, 8):
                start = bytes([mode, 3, header.has_trellis, *size, *step])
                found[f"{file.stem}_{mode}"] = start + payload
    return found


def main() -> None:
    """Compile, write the first inputs, and run."""
    target, folder = sys.argv[1], Path(sys.argv[2])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (folder / "tensors").write_bytes(tensors())
    program = folder / f"fuzz_{target}"
    sources = [each for each in compile.sources() if target == "kernel" or each.stem in PIXELS]
    files = [str(path) for path in (HERE / f"{target}.c", *sources)]
    include = f"-I{compile.FOLDER}"
    command = ["clang", *FLAGS, *SANITIZERS, include, *files, "-o", str(program)]
    subprocess.run(command, check=True)
    for name, start in first_inputs(target).items():
        (corpus / name).write_bytes(start)
    call = [str(program), str(corpus), *sys.argv[3:]]
    environment = os.environ | {"TENSORS": str(folder / "tensors")}
    sys.exit(subprocess.run(call, env=environment).returncode)


if __name__ == "__main__":
    main()

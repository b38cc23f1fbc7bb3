"""Fuzz the native kernel with libFuzzer, under the sanitizers of addresses and undefined behaviour.

python tests/fuzz/kernel.py TARGET FOLDER [OPTION OF LIBFUZZER]...

needs clang. TARGET is kernel, or pixels for the integer decoder of images alone. FOLDER keeps the
inputs that were found; those of the kernel begin with payloads of the golden files. An option such
as -max_total_time=60 or -runs=10000000 ends it.
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
MAX_BYTES = 512  # of an input
MODES = 18  # of kernel.c
CODERS = (  # name, tables, and of the networks inputs and units of each hidden layer
    ("full", [*range(10), *range(70, 80), *range(140, 150)], 7, 5),
    ("full-flux1", [*range(10), *range(70, 80), *range(140, 150)], 4, 5),
    ("full", range(10), 7, 9),
)
PIXELS = ("cpu", "decoder", "pixels", "products")  # sources of the integer decoder of images
HERE = Path(__file__).parent
FLAGS = ["-std=c11", "-g1", "-ffp-contract=off", "-fno-sanitize-recover=all"]
SANITIZERS = [
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-coverage=trace-cmp"),
    "-fno-sanitize=null,object-size",  # what they find, that of addresses finds too
]
SLOW_TO_COMPILE = ("latents",)  # at -O2: minutes


def tensors() -> bytes:
    """The trellis tables of three coders, as the kernel takes them, each after their number.

    They have 4 channels, 16, and 4 again with few tables, which the fuzzer changes. They keep a
    few tables, and networks a few inputs and units: the code is the same, and takes less time.
    """
    found = b""
    for name, tables, inputs, units in CODERS:
        coder = load(registry.read_file(registry.named(name, "coder")))
        for stage in range(len(entropy.STAGES)):
            names = [f"trellis.{stage}.{part}" for part in NAMES]
            small = _small([coder[part] for part in names], inputs, units)
            coder.update(zip(names, small, strict=True))
        coder["trellis.counts"] = coder["trellis.counts"][list(tables)]
        packed = entropy.packed(coder, has_trellis=True)
        found += len(packed).to_bytes(4, sys.byteorder) + packed.tobytes()
    return found


def _small(stage: list[Ints], n_inputs: int, n_units: int) -> tuple[Ints, ...]:
    """The tensors of a stage, [channels, ...] each, with fewer inputs and units."""
    neighbours, hidden, middle, output, bias = stage
    inputs, units = np.arange(n_inputs), np.arange(n_units)
    n_hidden, n_middle = hidden.shape[1], middle.shape[1]
    outputs = np.concatenate([units, n_middle + units, n_middle + n_hidden + inputs])
    biases = np.concatenate([units, n_hidden + units, n_hidden + n_middle + np.arange(3)])
    return (
        neighbours[:, :n_inputs],
        hidden[:, :n_units, :n_inputs],
        middle[:, :n_units, :n_units],
        output[:, :, outputs],
        bias[:, biases],
    )


def first_inputs(target: str) -> dict[str, bytes]:
    """What fuzzing begins with, by name."""
    random = np.random.default_rng(0)
    if target == "pixels":
        return {f"random_{mode}": bytes([mode]) + random.bytes(99) for mode in range(64)}
    found = {}
    for file in (HERE.parent / "golden").glob("*.lat"):
        _, payload, _ = bitstream.read(file.read_bytes())
        for mode in range(MODES):
            start = bytes([mode]) + random.bytes(7)
            found[f"{file.stem}_{mode}"] = start + payload[: random.integers(MAX_BYTES)]
    return found


def compiled(target: str, folder: Path) -> Path:
    """The program that fuzzes the target."""
    sources = [each for each in compile.sources() if target == "kernel" or each.stem in PIXELS]
    objects = []
    for source in (HERE / f"{target}.c", *sources):
        level = "-O1" if source.stem in SLOW_TO_COMPILE else "-O2"
        objects.append(str(folder / f"{source.parent.name}_{source.stem}.o"))
        command = ["clang", level, *FLAGS, *SANITIZERS, f"-I{compile.FOLDER}", "-c", str(source)]
        subprocess.run([*command, "-o", objects[-1]], check=True)
    program = folder / f"fuzz_{target}"
    subprocess.run(["clang", *SANITIZERS, *objects, "-o", str(program)], check=True)
    return program


def main() -> None:
    """Compile, write the first inputs, and run."""
    target, folder = sys.argv[1], Path(sys.argv[2])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (folder / "tensors").write_bytes(tensors())
    program = compiled(target, folder)
    for name, start in first_inputs(target).items():
        (corpus / name).write_bytes(start)
    call = [str(program), str(corpus), f"-max_len={MAX_BYTES}", *sys.argv[3:]]
    environment = os.environ | {"TENSORS": str(folder / "tensors")}
    sys.exit(subprocess.run(call, env=environment).returncode)


if __name__ == "__main__":
    main()

"""Fuzz the native kernel with libFuzzer, under the sanitizers of addresses and undefined behaviour.

python tests/fuzz/kernel.py FOLDER [OPTION OF LIBFUZZER]...

needs clang. FOLDER keeps the inputs that were found; the golden files are the first ones. An
option such as -max_total_time=60 or -runs=10000000 ends it.
"""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load

from dynenc import registry
from dynenc.coding import bitstream, entropy
from dynenc.native import compile

HERE = Path(__file__).parent
FLAGS = ["-std=c11", "-g", "-O1", "-ffp-contract=off", "-fno-sanitize-recover=all"]


def tensors() -> bytes:
    """The trellis tables of the full coder, as the kernel takes them."""
    found = load(registry.read_file(registry.named("full", "coder")))
    return entropy.packed(found, has_trellis=True).tobytes()


def main() -> None:
    """Compile, write the first inputs, and run."""
    folder = Path(sys.argv[1])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (folder / "tensors").write_bytes(tensors())
    program = folder / "fuzz_kernel"
    files = [str(path) for path in (HERE / "kernel.c", *compile.sources())]
    include = f"-I{compile.FOLDER}"
    sanitizers = "-fsanitize=fuzzer,address,undefined"
    command = ["clang", *FLAGS, sanitizers, include, *files, "-o", str(program)]
    subprocess.run(command, check=True)
    for file in (HERE.parent / "golden").glob("*.lat"):
        header, payload, _ = bitstream.read(file.read_bytes())
        size = -(-header.height // 8), -(-header.width // 8)
        if max(size) < 20:
            for mode in (0, 5, 7, 8):
                start = bytes(
                    [mode, 3, header.has_trellis, *size, *divmod(header.step_q, 256)[::-1]]
                )
                (corpus / f"{file.stem}_{mode}").write_bytes(start + payload)
    call = [str(program), str(corpus), *sys.argv[2:]]
    sys.exit(
        subprocess.run(call, env={**os.environ, "TENSORS": str(folder / "tensors")}).returncode
    )


if __name__ == "__main__":
    main()

"""Build the reader of .lat files for JavaScript: `python -m dynenc.web.build FOLDER`.

FOLDER receives dynenc.js, dynenc.wasm, and dynenc.safetensors with the tables of the entropy coders
and of the embedded decoder. The compiler is that of the PyPI package ziglang, or `zig`.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load as load_tensors
from safetensors.numpy import save

from dynenc import registry
from dynenc.coding import entropy
from dynenc.errors import DynencError, OutputError
from dynenc.latent_space import SD1
from dynenc.native import compile
from dynenc.networks import integer_tensors
from dynenc.networks.integer_tensors import Sizes

HERE = Path(__file__).parent
SCRIPT, PROGRAM, TABLES = "dynenc.js", "dynenc.wasm", "dynenc.safetensors"
SOURCES = ("coder", "cpu", "decoder", "entropy", "job", "networks", "pixels", "products")
MEMORY = 2**31 - 2**16  # bytes, so that no address is negative: reader.c
STACK = 2**18
FLAGS = [
    *("-target", "wasm32-freestanding", "-nostdlib", f"-I{HERE / 'include'}"),
    "-mcpu=generic+simd128+bulk_memory",  # all engines since 2021
    *("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"),
    *("-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--gc-sections"),
    *(f"-Wl,-z,stack-size={STACK}", f"-Wl,--max-memory={MEMORY}"),
]


def build(folder: Path) -> None:
    """Write the three files to a folder, creating it; raises DynencError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        compile_program(folder / PROGRAM)
        (folder / TABLES).write_bytes(tables())
        shutil.copyfile(HERE / SCRIPT, folder / SCRIPT)
    except OSError as exc:
        raise OutputError(f"{folder} cannot be written: {exc.strerror or exc}") from exc


def compiler() -> list[str]:
    """The command of a WebAssembly compiler; raises DynencError."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    if found := shutil.which("zig"):
        return [found, "cc"]
    raise DynencError(
        "there is no compiler for WebAssembly", hint=f"pip install '{compile.FALLBACK}'"
    )


def compile_program(target: Path) -> None:
    """Compile the native kernel and reader.c; raises DynencError."""
    sources = [HERE / "reader.c", *(compile.FOLDER / f"{name}.c" for name in SOURCES)]
    command = [*compiler(), *FLAGS, f"-I{compile.FOLDER}", *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise DynencError(f"{command[0]} cannot compile the reader: {done.stderr.strip()[-2000:]}")


def tables() -> bytes:
    """The tables as the kernel takes them, in the safetensors format.

    `coder.NUMBER.LATTICE` int32, `decoder.numbers` int32 and `decoder.weights` int8; the metadata
    name the models whose latents the decoder decodes.
    """
    tensors: entropy.Tensors = {}
    for model in registry.coders(SD1):
        file = load_tensors(registry.read_file(model))
        for has_trellis in (False, True)[: 1 + model.has_trellis]:
            name = f"coder.{model.number}.{entropy.lattice_name(has_trellis=has_trellis)}"
            tensors[name] = entropy.packed(file, has_trellis=has_trellis)
    model = registry.named("embedded", "decoder")
    decoder = integer_tensors.packed(integer_tensors.read(model), Sizes.of(model))
    tensors |= {"decoder.numbers": decoder.numbers, "decoder.weights": decoder.weights}
    known = [each for each in registry.LATENT_MODELS if each.space is SD1]
    return save(tensors, {"models": " ".join(str(each.number) for each in known)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    try:
        build(parser.parse_args().folder)
    except DynencError as exc:
        sys.exit(exc.sentence)

"""Compile the C of this folder to the shared library that `kernel.py` loads.

`python -m dynenc.native.compile` does so in a checkout; the build hook, for a wheel. The compiler
is `$CC` if that is set, else `cc`, `gcc` or `clang`, or else the one in the PyPI package ziglang.
This file imports nothing but the standard library, as the build hook runs it before dynenc is
installed.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / ("_kernel.dll" if sys.platform == "win32" else "_kernel.so")
FALLBACK = "ziglang>=0.13"  # a C compiler as a wheel
# no multiply-add may be fused: all machines give the same bytes
FLAGS = [
    *("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-shared"),
]
PROBE = "#include <stdint.h>\n#include <string.h>\nint32_t probe(void) { return 0; }\n"


class NoCompiler(Exception):
    """No C compiler was found, or it failed on the sources."""


def sources() -> list[Path]:
    """The C files, each compiled by itself."""
    return sorted(FOLDER.glob("*.c"))


def is_current() -> bool:
    """Whether the library exists and is newer than all sources, and the flags in this file."""
    files = [*sources(), *FOLDER.glob("*.h"), Path(__file__)]
    newest = max(file.stat().st_mtime for file in files)
    return LIBRARY.is_file() and LIBRARY.stat().st_mtime >= newest


def build(library: Path = LIBRARY) -> None:
    """Compile the library, and replace it atomically; raises NoCompiler."""
    compiler = find_compiler()
    if compiler is None:
        if chosen := os.environ.get("CC"):
            raise NoCompiler(f"CC is {chosen!r}, which cannot compile here: correct or unset it")
        raise NoCompiler(
            "dynenc contains C code and no C compiler works here: install gcc or clang, "
            f"or run `pip install '{FALLBACK}'`, and try again"
        )
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        made = Path(folder, library.name)
        failure = compiled(compiler, sources(), made)
        if failure is not None:
            raise NoCompiler(f"{shlex.join(compiler)} cannot compile dynenc's C code: {failure}")
        made.replace(library)


def find_compiler() -> list[str] | None:
    """The command of the first C compiler that can build shared libraries here, or None."""
    for command in candidates():
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text(PROBE)
            if compiled(command, [probe], Path(folder, LIBRARY.name)) is None:
                return command
    return None


def candidates() -> Iterator[list[str]]:
    """Candidate C compiler commands, in order of preference."""
    if chosen := os.environ.get("CC"):
        yield [chosen] if shutil.which(chosen) else shlex.split(chosen)
        return
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            yield [name]
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]  # not only this machine's


def compiled(command: list[str], files: list[Path], library: Path) -> str | None:
    """Compile files to a shared library; returns None, or the compiler's error output."""
    flags = FLAGS if sys.platform == "win32" else [*FLAGS, "-fPIC"]
    if sys.platform == "darwin":
        flags = [*flags, "-arch", platform.machine()]
    call = [*command, *flags, *map(str, files), "-o", str(library)]
    try:
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False)
    except OSError as exc:
        return str(exc)
    return None if done.returncode == 0 and library.is_file() else done.stderr.strip()[-2000:]


if __name__ == "__main__":
    try:
        build()
    except NoCompiler as exc:
        sys.exit(str(exc))

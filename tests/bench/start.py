"""Seconds of processor time of whole commands, from start to end.

    python tests/bench start

Commands take turns; the least of --rounds rounds counts, as it depends least on what else the
machine does. `python -c pass` and `import numpy` are controls. dynenc's modules are compiled to
bytecode first, as pip does it.
"""

import argparse
import compileall
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from speed import photo

import dynenc


def cpu_seconds(command: list[str]) -> float:
    """Processor time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print the table."""
    from PIL import Image

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    package = Path(dynenc.__file__).parent
    compileall.compile_dir(package, quiet=1)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(package.parent), os.environ.get("PYTHONPATH", "")]
    )
    with tempfile.TemporaryDirectory() as folder:
        png, lat = Path(folder, "a.png"), Path(folder, "a.lat")
        Image.fromarray(photo(512, 512)).save(png)
        program = [sys.executable, "-m", "dynenc"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import numpy": [sys.executable, "-c", "import numpy"],
            "dynenc encode -e nano": [*program, "encode", "-e", "nano", "-f", str(png)],
            "dynenc info": [*program, "info", str(lat)],
            "dynenc verify": [*program, "verify", str(lat)],
            "dynenc decode": [*program, "decode", "-f", str(lat), "-o", str(Path(folder, "b.png"))],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command))
    print("| a 512x512 PNG | CPU |\n|---|---|")
    for name, each in times.items():
        print(f"| {name} | {min(each):.3f} s |")

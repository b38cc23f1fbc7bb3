"""How coding scales with the threads of one process.

    python tests/bench threads [--size SIZE] [--count COUNT] [--threads 1 2]

Each thread codes images of its own. Every figure is a rate per second of wall-clock time, the
median of --rounds rounds in which the numbers of threads take turns; "x" is against the first.
Only an idle machine with as many cores tells anything.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageOps

from dynenc import Codec
from dynenc.coding.lat_file import LatFile

PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"


def works(size: int, count: int) -> dict[str, list[Callable[[], object]]]:
    """For each row, calls that do not depend on each other."""
    photo = Image.open(PHOTO).convert("RGB")
    images = [
        ImageOps.fit(photo.crop((i, i, 300 + i, 200 + i)), (size, size)) for i in range(count)
    ]
    found: dict[str, list[Callable[[], object]]] = {}
    for name in ("nano", "light"):
        codec = Codec(name, device="cpu")
        blobs = [codec.encode(image) for image in images]
        found[f"encode, {name}"] = [lambda c=codec, i=image: c.encode(i) for image in images]
        found[f"read latents, {name}"] = [lambda b=blob: LatFile.parse(b).latents for blob in blobs]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="px, of a side")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print("| | " + " | ".join(f"{n} threads, 1/s | x" for n in arguments.threads) + " |")
    print("|---|" + "---|---|" * len(arguments.threads))
    for row, calls in works(arguments.size, arguments.count).items():
        times: dict[int, list[float]] = {n: [] for n in arguments.threads}
        for _ in range(arguments.rounds):
            for n in arguments.threads:
                with ThreadPoolExecutor(n) as pool:
                    list(pool.map(lambda call: call(), calls[: 2 * n]))  # threads and workspaces
                    start = time.perf_counter()
                    list(pool.map(lambda call: call(), calls))
                    times[n].append(time.perf_counter() - start)
        rates = [len(calls) / statistics.median(each) for each in times.values()]
        print(f"| {row} | " + " | ".join(f"{r:.0f} | {r / rates[0]:.2f}" for r in rates) + " |")

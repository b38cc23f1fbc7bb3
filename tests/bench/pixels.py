"""The cost of a pixel by the size of the picture: `python tests/bench/pixels.py [SIDE ...]`.

From an RGB array to the bytes of a file, and back by the embedded decoder, in nanoseconds a pixel,
and as a multiple of that at the first size. All take turns at each size, and JPEG is measured, too,
to tell what the machine does. Prints Markdown.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent))
from speed import Call, Key, codecs, seconds

SIDES = (512, 1024, 2048, 4096, 8192)  # px; 0.26 to 67 megapixels
ROWS = (
    *(("array to bytes", name) for name in ("nano", "light", "base", "JPEG")),
    ("bytes to array", "light, embedded"),
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sides", nargs="*", type=int, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    costs: dict[Key, list[float]] = {row: [] for row in ROWS}
    for side in arguments.sides:
        calls: dict[Key, Call] = codecs(side, side, torch.device("cpu"))
        times: dict[Key, list[float]] = {row: [] for row in ROWS}
        for _ in range(arguments.rounds):
            for row in ROWS:
                times[row].append(seconds(calls[row], 0.2))
        for row in ROWS:
            costs[row].append(1e9 * statistics.median(times[row]) / side**2)
    print("| | " + " | ".join(f"{side}x{side}" for side in arguments.sides) + " | most / least |")
    print("|---" * (len(arguments.sides) + 2) + "|")
    for (kind, name), cost in costs.items():
        cells = [f"{each:.1f} ns ({each / cost[0]:.2f}x)" for each in cost]
        spread = np.max(cost) / np.min(cost)
        print(f"| {name}, {kind} | " + " | ".join(cells) + f" | {spread:.2f} |")


if __name__ == "__main__":
    main()

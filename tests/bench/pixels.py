"""Time for each pixel by the size of the image.

    python tests/bench pixels [SIDE ...]

From an RGB array to the bytes of a file, and back by the embedded decoder, in nanoseconds a pixel,
and as a multiple of that at the first size. All sizes take turns, so that the load of the machine
is the same for all; JPEG is a control.
"""

import argparse
import statistics

import numpy as np
import torch
from speed import Key, codecs, seconds

SIDES = (512, 1024, 2048, 4096, 8192)  # px; 0.26 to 67 megapixels
ROWS = (
    *(("array to bytes", name) for name in ("nano", "light", "base", "JPEG")),
    ("bytes to array", "light, embedded"),
)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sides", nargs="*", type=int, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    calls = {side: codecs(side, side, torch.device("cpu"), ["jpeg"]) for side in arguments.sides}
    times: dict[tuple[Key, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for row in ROWS:
            for side in arguments.sides:
                times.setdefault((row, side), []).append(seconds(calls[side][row], 0.2))
    print("| | " + " | ".join(f"{side}x{side}" for side in arguments.sides) + " | most / least |")
    print("|---" * (len(arguments.sides) + 2) + "|")
    for kind, name in ROWS:
        medians = {side: statistics.median(times[(kind, name), side]) for side in arguments.sides}
        cost = [1e9 * median / side**2 for side, median in medians.items()]
        cells = [f"{each:.1f} ns ({each / cost[0]:.2f}x)" for each in cost]
        spread = np.max(cost) / np.min(cost)
        print(f"| {name}, {kind} | " + " | ".join(cells) + f" | {spread:.2f} |")

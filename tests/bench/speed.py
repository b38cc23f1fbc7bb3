"""The README's table of speed: `python tests/bench/speed.py [SIZE ...]`.

Every figure is a ratio against its peer in the same run: the two take turns, each is warm, and the
medians are compared. Weights do not matter for time, so the peers' are random. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynenc import load_decoder, load_encoder

SD_VAE = {  # the architecture of SD 1.x
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def peers() -> dict[str, tuple[nn.Module, nn.Module]]:
    """Encoder and decoder of the SD VAE and of TAESD, with random weights."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    big, tiny = AutoencoderKL(**SD_VAE), AutoencoderTiny()
    models = {"SD VAE": (big.encoder, big.decoder), "TAESD": (tiny.encoder, tiny.decoder)}
    for pair in models.values():
        for half in pair:
            half.eval().to(memory_format=torch.channels_last)
    return models


def seconds(run: Callable[[Tensor], Tensor], tensor: Tensor, at_least: float = 0.2) -> float:
    """Mean time of one call, over as many calls as fill `at_least` seconds."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < at_least:
        run(tensor)
        count += 1
    return spent / count


@torch.inference_mode()
def compare(rounds: int, size: int) -> None:
    """Print the ratios for square pictures of one size."""
    torch.manual_seed(0)
    image = (torch.rand(1, 3, size, size) * 2 - 1).to(memory_format=torch.channels_last)
    latents = torch.randn(1, 4, size // 8, size // 8)
    others = peers()
    ours = {
        **{name: (load_encoder(name), 0, image) for name in ("nano", "light", "base")},
        "embedded decoder": (load_decoder("embedded"), 1, latents),
    }
    for name, (network, half, tensor) in ours.items():
        network(tensor)
        times: dict[str, list[float]] = {key: [] for key in ("ours", *others)}
        for _ in range(rounds):
            times["ours"].append(seconds(network, tensor))
            for key, pair in others.items():
                times[key].append(seconds(pair[half], tensor))
        medians = {key: statistics.median(values) for key, values in times.items()}
        ratios = " | ".join(f"{medians[key] / medians['ours']:.0f}x" for key in others)
        print(f"| {size}x{size} | {name} | {1e3 * medians['ours']:.2f} ms | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| picture | network | time | faster than SD VAE's | faster than TAESD's |")
    print("|---|---|---|---|---|")
    for size in arguments.sizes:
        compare(arguments.rounds, size)


if __name__ == "__main__":
    main()

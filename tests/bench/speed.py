"""The README's table of speed: `python tests/bench/speed.py [SIZE ...]`.

Every figure is a ratio against a peer in the same run: all take turns, each is warm, and medians
are compared. Weights do not matter for time, so the peers' are random. Prints Markdown.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from dynenc import load_decoder, load_encoder, models

SD_VAE = {  # the architecture of SD 1.x
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def networks() -> dict[str, tuple[nn.Module, nn.Module | None]]:
    """Encoders and decoders to compare: the peers with random weights, then dynenc's."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    big, tiny = AutoencoderKL(**SD_VAE), AutoencoderTiny()
    return {
        "SD VAE": (big.encoder, big.decoder),
        "TAESD": (tiny.encoder, tiny.decoder),
        **{name: (load_encoder(name), None) for name in models.names("encoder")},
        "embedded": (nn.Identity(), load_decoder("embedded")),
    }


def seconds(run: nn.Module, tensor: Tensor, at_least: float = 0.3) -> float:
    """Mean time of one call, after one to warm up, over calls that fill `at_least` seconds."""
    run(tensor)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < at_least:
        run(tensor)
        count += 1
    return spent / count


@torch.inference_mode()
def compare(size: int, rounds: int) -> None:
    """Print the ratios for square pictures of one size; everything takes turns in every round."""
    torch.manual_seed(0)
    image = (torch.rand(1, 3, size, size) * 2 - 1).to(memory_format=torch.channels_last)
    latents = torch.randn(1, 4, size // 8, size // 8)
    runs = {}
    for name, (encoder, decoder) in networks().items():
        for kind, network, tensor in (("encoder", encoder, image), ("decoder", decoder, latents)):
            if network is not None and not isinstance(network, nn.Identity):
                network = network.eval().to(memory_format=torch.channels_last)
                runs[kind, name] = network, tensor
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, (network, tensor) in runs.items():
            times[key].append(seconds(network, tensor))
    medians = {key: statistics.median(values) for key, values in times.items()}
    for (kind, name), median in medians.items():
        ratios = " | ".join(f"{medians[kind, peer] / median:,.1f}x" for peer in ("SD VAE", "TAESD"))
        print(f"| {size}x{size} | {name} {kind} | {1e3 * median:,.2f} ms | {ratios} |", flush=True)


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
        compare(size, arguments.rounds)


if __name__ == "__main__":
    main()

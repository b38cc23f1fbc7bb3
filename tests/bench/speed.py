"""Speed of networks and codecs against others.

    python tests/bench speed [SIZE|WIDTHxHEIGHT ...] [--keep]

Every figure is a ratio against a peer in the same run, its time over ours: all take turns, after
one call to warm up, and medians are compared. Networks are timed alone, dynenc's encoders on uint8
pixels, as the codec runs them, and on float32, as all others; codecs from an RGB array to the bytes
of a file and back, each at its usual setting. Weights do not matter for time, so those of others'
networks are random. --keep writes the run into speed.tsv, as this release's.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, features

from dynenc import Codec, __version__, load_decoder, load_encoder, registry
from dynenc.evaluation.reference_codecs import ReferenceCodec, installed
from dynenc.latent_space import SD1

SIZES = ["256", "512", "768x512", "2048"]
PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"
TABLE = Path(__file__).with_name("speed.tsv")
SD_VAE = {  # the architecture of SD 1.x
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD_VAE_PIXELS = 2**19  # larger images take it minutes on a CPU, and tens of GB
ENCODERS = [*registry.encoders(SD1), *registry.names("autoencoder")]
PEERS = {  # of each kind of figure
    "encoder": ["SD VAE", "TAESD"],
    "decoder": ["SD VAE", "TAESD"],
    "array to bytes": ["JPEG", "WebP", "AVIF", "JPEG XL"],
    "bytes to array": ["JPEG", "WebP", "AVIF", "JPEG XL"],
}

USUAL_SETTINGS: dict[str, tuple[int, dict[str, object]]] = {  # quality, and options of Pillow's
    "jpeg": (75, {"optimize": False}),
    "webp": (80, {"method": 4}),
    "avif": (75, {"speed": 6}),
    "jxl": (75, {"effort": 7}),
}

Call = Callable[[], object]
Key = tuple[str, str]  # kind and name


def networks(width: int, height: int, device: torch.device) -> dict[Key, Call]:
    """Encoders and decoders, others' in the layout that suits them best."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    others = {"TAESD": AutoencoderTiny()}
    if width * height <= SD_VAE_PIXELS or device.type != "cpu":
        others["SD VAE"] = AutoencoderKL(**SD_VAE)
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, device=device)
    inputs = {
        "encoder": torch.rand(1, 3, height, width, device=device) * 2 - 1,
        "decoder": torch.randn(1, 4, height // 8, width // 8, device=device),
    }
    pairs = {("decoder", "embedded"): (load_decoder("embedded", device), inputs["decoder"])}
    for name in ENCODERS:
        network = load_encoder(name)
        pairs["encoder", name] = network, pixels
        pairs["encoder", f"{name}, float32"] = network, inputs["encoder"]
    for name, both in others.items():
        pairs["encoder", name] = both.encoder, inputs["encoder"]
        pairs["decoder", name] = both.decoder, inputs["decoder"]

    def call(network: torch.nn.Module, tensor: torch.Tensor) -> Call:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        network = network.eval().to(device, memory_format=torch.channels_last)

        def run() -> None:
            network(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    return {key: call(*pair) for key, pair in pairs.items()}


def codecs(
    width: int, height: int, device: torch.device, others: Sequence[str] = tuple(USUAL_SETTINGS)
) -> dict[Key, Call]:
    """From an RGB array to the bytes of a file, and back, by dynenc and others' codecs."""
    pixels = photo(width, height)
    calls: dict[Key, Call] = {}
    for name in ENCODERS:
        codec = Codec(name, decoder="embedded", device=device.type)
        blob = codec.encode(pixels)
        calls["array to bytes", name] = lambda codec=codec: codec.encode(pixels)
        back = "bytes to array", f"{name}, embedded"
        calls[back] = lambda codec=codec, blob=blob: np.asarray(codec.decode(blob))
    for peer in installed():
        if peer.name not in others:
            continue
        quality, options = USUAL_SETTINGS[peer.name]

        def encode(
            peer: ReferenceCodec = peer,
            quality: int = quality,
            options: dict[str, object] = options,
        ) -> bytes:
            return peer.encode(Image.fromarray(pixels), quality, **options)

        blob = encode()
        calls["array to bytes", peer.label] = encode
        calls["bytes to array", peer.label] = lambda peer=peer, blob=blob: np.asarray(
            peer.decode(blob)
        )
    return calls


def photo(width: int, height: int) -> np.ndarray:
    """A photograph of any size: mirrored copies beside each other. [H, W, 3] uint8."""
    with Image.open(PHOTO) as opened:
        one = opened.convert("RGB")
    row = np.concatenate([np.asarray(one), np.asarray(ImageOps.mirror(one))], 1)
    both = np.concatenate([row, row[::-1]], 0)
    times = -(-height // len(both)), -(-width // both.shape[1]), 1
    return np.ascontiguousarray(np.tile(both, times)[:height, :width])


def seconds(run: Call, at_least: float) -> float:
    """Mean time of one call, after one to warm up, over calls that fill `at_least` seconds."""
    run()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < at_least or not count:
        run()
        count += 1
    return spent / count


@torch.inference_mode()
def compare(
    width: int, height: int, device: torch.device, rounds: int, at_least: float
) -> list[dict[str, str]]:
    """Time everything at one size, in turns; a row for each figure, printed too."""
    torch.manual_seed(0)
    runs = networks(width, height, device) | codecs(width, height, device)
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(seconds(run, at_least))
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for kind, peers in PEERS.items():
        there = [peer for peer in peers if (kind, peer) in medians]
        print(
            f"\n| {width}x{height}, {kind} | ms | " + " | ".join(f"faster than {p}" for p in there)
        )
        print("|---" * (2 + len(there)) + "|")
        for (other, name), median in medians.items():
            if other != kind:
                continue
            ratios = {peer: f"{medians[kind, peer] / median:.3g}" for peer in there}
            row = {"size": f"{width}x{height}", "kind": kind, "name": name}
            rows.append(row | {"ms": f"{1e3 * median:.3g}"} | ratios)
            print(f"| {name} | {1e3 * median:,.2f} | " + "x | ".join(ratios.values()) + "x |")
    print(flush=True)
    return rows


def keep(rows: list[dict[str, str]], device: str) -> None:
    """Write a run into the table, in place of the last one of this release on this device."""
    run = {"release": __version__, "device": device}
    peers = dict.fromkeys(peer for names in PEERS.values() for peer in names)
    columns = [*run, "size", "kind", "name", "ms", *peers]
    before = []
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            before = list(csv.DictReader(file, delimiter="\t"))
    before = [row for row in before if any(row[key] != value for key, value in run.items())]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*before, *(run | row for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=SIZES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each, in a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true", help="write speed.tsv")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    on = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        on = torch.cuda.get_device_name()
    print(f"{on}, torch {torch.__version__}, Pillow's AVIF {features.version('avif')}")
    rows = []
    for size in arguments.sizes:
        width, _, height = size.partition("x")
        sides = int(width), int(height or width)
        rows += compare(*sides, device, arguments.rounds, arguments.seconds)
    if arguments.keep:
        keep(rows, on)

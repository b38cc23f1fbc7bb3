"""The networks of the paper's author compared with those of dynenc.

    python tests/bench paper IMAGES TEACHER LPIPS AUTHOR

IMAGES is a folder (Kodak for the published tables), TEACHER a TAESD in diffusers form, LPIPS the
weights that `dynenc eval --lpips` takes, AUTHOR a folder of the author's checkpoints (.pt). With
--train CACHE, which `dynenc train` keeps beside its run, the ablation is also trained and measured;
with --montage FILE the images are shown side by side in it. --count N takes the first N of them
only, --part names one of the tables.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from oracles.published import materialised
from PIL import Image, ImageDraw
from speed import SD_VAE
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynenc import Codec, DynamicConv, load_encoder, registry
from dynenc.coding import bitstream
from dynenc.coding.lat_file import LatFile
from dynenc.evaluation.measure import Measure, load_distances, means
from dynenc.imaging import tensors
from dynenc.imaging.sources import iter_images
from dynenc.interop import paper_checkpoints
from dynenc.latent_space import PATCH, SD1
from dynenc.networks import published
from dynenc.networks.decoders import load_autoencoder
from dynenc.training.crops import Crops
from dynenc.training.start import LeastSquares

SIDE = 512  # px, of the image that is timed
SIDES = (256, 512, 1024, 2048)  # px, where sizes are compared
STEPS, BATCH, CROP, RATE = 600, 8, 128, 2e-3  # of the ablation
SEEDS = (0, 1, 2)
COLUMNS, VIEW, LABEL = 4, 208, 16  # px, of the montage


class Row(NamedTuple):
    """One line of the first table."""

    name: str
    encode: Callable[[Tensor], Tensor]  # [1, 3, H, W] in [-1, 1] -> latents in SD scale
    network: nn.Module
    n_bytes: int  # of the weights as they are published
    unit: bool = False  # takes images in [0, 1], and so are those its latents stand for
    measured: bool = True  # not where the function is that of the row above
    pixels: bool = False  # takes images as uint8 with the channels last, as the codec gives them


def author(folder: Path) -> dict[str, tuple[int, published.Published]]:
    """The author's networks by the name of their checkpoint, with its bytes."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(folder.glob("*.pt")):
            target = Path(scratch) / "weights.safetensors"
            network = paper_checkpoints.import_checkpoint(path, target, overwrite=True)
            found[path.stem] = path.stat().st_size, network
    return found


def as_published(network: published.PublishedEncoder) -> Callable[[Tensor], Tensor]:
    """The author's encoder as its code runs: with every kernel in memory."""

    def encode(image: Tensor) -> Tensor:
        features = image
        for number, layer in enumerate(network.layers):
            if number:
                pooled = F.max_pool2d(image, image.shape[-1] // features.shape[-1])
                features = torch.cat([features, pooled], dim=1)
            features = materialised(layer, features)
        return SD1.scale * features

    return encode


def image_for(row: Row, side: int = SIDE) -> Tensor:
    """An image to be timed with, in the form that the encoder is fastest with."""
    if row.pixels:
        pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
        return pixels.contiguous(memory_format=torch.channels_last)
    return torch.rand(1, 3, side, side) * 2 - 1


def timed(
    rows: list[Row],
    rounds: int,
    side: int = SIDE,
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Median seconds for one image, in turn, so that all meet the same machine."""
    images = [image_for(row, side) for row in rows]
    times: list[list[float]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for row, image, spent in zip(rows, images, times, strict=True):
            if number > 3 and spent[0] > 1:  # the slow ones vary little
                continue
            start = clock()
            row.encode(image)
            if number:  # the first round warms up
                spent.append(clock() - start)
    return [statistics.median(spent) for spent in times]


def peak_bytes(row: Row) -> int:
    """What the process grows by, at most, while it encodes one image for the first time."""

    def grow(pipe: multiprocessing.connection.Connection) -> None:
        image = image_for(row)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with torch.inference_mode():
            row.encode(image)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(peak - pages * os.sysconf("SC_PAGE_SIZE"))

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=grow, args=(theirs,))
    process.start()
    grown: int = ours.recv()
    process.join()
    return grown


def mac_per_pixel(encode: Callable[[Tensor], Tensor]) -> float:
    """Multiplications of all matrix products and convolutions, for a pixel."""
    with FlopCounterMode(display=False) as counter:
        encode(torch.rand(1, 3, SIDE, SIDE) * 2 - 1)
    return counter.get_total_flops() / 2 / SIDE**2


def fidelity(
    encode: Callable[[Tensor], Tensor], decode: nn.Module, arguments: argparse.Namespace, unit: bool
) -> tuple[float, float]:
    """Mean PSNR in dB and LPIPS of the images, through an encoder and a decoder."""
    figures = []
    for image in arguments.opened:
        padded = tensors.pad(tensors.to_tensor(image))
        rebuilt = decode(encode((padded + 1) / 2 if unit else padded))
        rebuilt = rebuilt.clamp(0, 1) * 2 - 1 if unit else rebuilt
        figures.append(measured(rebuilt, image, arguments.measure))
    mean = means(figures)
    return mean["psnr-rgb"], mean["lpips"]


def measured(rebuilt: Tensor, original: Image.Image, measure: Measure) -> dict[str, float]:
    """Figures of one image, rounded to 8 bits and cropped."""
    return measure(tensors.to_image(rebuilt).crop((0, 0, *original.size)), original)


@torch.inference_mode()
def encoders(arguments: argparse.Namespace) -> None:
    """All encoders of SD latents through the same decoder."""
    from diffusers import AutoencoderKL

    teacher, decode = load_autoencoder(arguments.teacher)
    rows = []
    for name, (n_bytes, network) in author(arguments.author).items():
        if isinstance(network, published.PublishedEncoder):
            rows.append(Row(f"author's {name}", as_published(network), network, n_bytes))
            rows.append(Row("the same, fed [0, 1]", as_published(network), network, n_bytes, True))
            rows.append(Row("the same, factorised", network, network, n_bytes, measured=False))
    for name in registry.encoders(SD1):
        network = load_encoder(name)
        rows.append(
            Row(name, network, network, len(registry.read_file(registry.MODELS[name])), pixels=True)
        )
    count = sum(p.numel() for p in teacher.parameters())
    rows.append(Row("TAESD's", teacher, teacher, 4 * count))
    full = AutoencoderKL(**SD_VAE).encoder.eval()
    size = 4 * sum(p.numel() for p in full.parameters())
    rows.append(Row("the SD VAE's (random weights)", full, full, size, measured=False))
    times = timed(rows, arguments.rounds)
    print("| encoder | parameters | bytes | MAC per pixel | time | memory | PSNR | LPIPS |")
    print("|---|---|---|---|---|---|---|---|")
    for row, spent in zip(rows, times, strict=True):
        parameters = sum(p.numel() for p in row.network.parameters())
        quality = ("", "")
        if row.measured:
            psnr, lpips = fidelity(row.encode, decode, arguments, row.unit)
            quality = f"{psnr:.2f} dB", f"{lpips:.3f}"
        print(
            f"| {row.name} | {parameters:,} | {row.n_bytes:,} | {mac_per_pixel(row.encode):,.0f} | "
            f"{1000 * spent:.1f} ms | "
            f"{peak_bytes(row) / 2**20:.0f} MiB | {quality[0]} | {quality[1]} |",
            flush=True,
        )


@torch.inference_mode()
def sizes(arguments: argparse.Namespace) -> None:
    """nano against the author's code, which builds every kernel, on one core and on all."""
    network = author(arguments.author)["lightencoder-86k"][1]
    nano = load_encoder("nano")
    rows = [Row("", as_published(network), network, 0), Row("", nano, nano, 0, pixels=True)]
    print("| pixels | threads | the author's code | nano | ratio |\n|---|---|---|---|---|")
    for side in SIDES:
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            torch.set_num_threads(threads)
            theirs, ours = timed(rows, arguments.rounds, side, time.perf_counter)
            print(
                f"| {side}x{side} | {threads} | {1000 * theirs:.1f} ms | {1000 * ours:.2f} ms | "
                f"{theirs / ours:.1f}x |",
                flush=True,
            )
    torch.set_num_threads(1)


@torch.inference_mode()
def autoencoders(arguments: argparse.Namespace) -> None:
    """The author's autoencoder, and ours in whole files."""
    print("| autoencoder | parameters | bytes | bpp | PSNR | LPIPS |")
    print("|---|---|---|---|---|---|")
    for name, (n_bytes, network) in author(arguments.author).items():
        if isinstance(network, published.PublishedAutoencoder):
            psnr, lpips = fidelity(network, nn.Identity(), arguments, unit=False)
            count = sum(p.numel() for p in network.parameters())
            print(
                f"| author's {name}, not quantised | {count:,} | {n_bytes:,} | "
                f"(float latents) | {psnr:.2f} dB | {lpips:.3f} |",
                flush=True,
            )
    codec = Codec("autoencoder", device="cpu")
    decoder = codec.decoder_of(codec.model)
    n_bytes = len(registry.read_file(codec.model))
    count = sum(p.numel() for half in (codec.encoder, decoder) for p in half.parameters())
    for quality in (25, 50, 75):
        rows = []
        for image in arguments.opened:
            blob = codec.encode(image, quality=quality)
            file = LatFile.parse(blob)
            rebuilt = decoder(torch.from_numpy(file.latents)[None], file.step)
            figures = measured(rebuilt, image, arguments.measure)
            rows.append({"bpp": bitstream.bpp(len(blob), *image.size), **figures})
        mean = means(rows)
        print(
            f"| `autoencoder`, quality {quality} | {count:,} | {n_bytes:,} | "
            f"{mean['bpp']:.3f} | {mean['psnr-rgb']:.2f} dB | {mean['lpips']:.3f} |",
            flush=True,
        )


class Plain(nn.Module):
    """What `paper_encoder` is without its dynamic part: a convolution of the patch.

    With `width`, a second one with a ReLU is added that gives it as many parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, 4, 8, 8)
        layers = [nn.Conv2d(3, width, 8, 8), nn.ReLU(), nn.Conv2d(width, 4, 1)] if width else []
        self.rest = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8]."""
        latents: Tensor = self.linear(image)
        return latents + self.rest(image) if len(self.rest) else latents


@torch.no_grad()
def paper_encoder(weight: Tensor, bias: Tensor) -> DynamicConv:
    """The paper's encoder, one dynamic convolution of 8x8 patches, that starts as a linear map."""
    model = DynamicConv(3, 4, 8, 8, hidden=16, batch_norm=False)
    model.static.copy_(weight.flatten(1))
    model.get_parameter("bias").copy_(bias)
    model.dynamic.mul_(0.1)
    return model


def fitted(variant: str, seed: int, crops: Crops) -> nn.Module:
    """A small encoder regressed to the teacher's latents; the same for all but the network."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    fit = LeastSquares()
    for _ in range(64):
        image, target = crops.sample(2 * BATCH, random)
        fit.add(F.pixel_unshuffle(image, PATCH), target)
    weight, bias = fit.solution()
    weight = weight.view(-1, 3, PATCH, PATCH)
    model: nn.Module
    if variant == "dynamic":
        model = paper_encoder(weight, bias)
    else:
        model = Plain(132 if variant == "plain, as many parameters" else 0)
        model.linear.load_state_dict({"weight": weight, "bias": bias})
        with torch.no_grad():
            for parameter in model.rest[2:].parameters():
                parameter.mul_(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        image, target = crops.sample(BATCH, random)
        loss = F.l1_loss(model(image), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    return model.eval()


def ablation(arguments: argparse.Namespace) -> None:
    """The dynamic part off and on: same size, same training, several seeds."""
    if not arguments.train:
        return
    teacher, decode = load_autoencoder(arguments.teacher)
    crops = Crops(arguments.train, CROP)
    padded = [tensors.pad(tensors.to_tensor(image)) for image in arguments.opened]
    with torch.inference_mode():
        targets = [teacher(one) for one in padded]
    print("| encoder | parameters | L1 to the teacher's latents | PSNR, mean of seeds | spread |")
    print("|---|---|---|---|---|")
    for variant in ("plain convolution", "plain, as many parameters", "dynamic"):
        distances, figures = [], []
        for seed in SEEDS:
            model = fitted(variant, seed, crops)
            with torch.inference_mode():
                pairs = zip(padded, targets, strict=True)
                distances += [F.l1_loss(model(one), target).item() for one, target in pairs]
                figures.append(fidelity(model, decode, arguments, unit=False)[0])
        count = sum(p.numel() for p in model.parameters())
        print(
            f"| {variant} | {count:,} | {statistics.mean(distances):.4f} | "
            f"{statistics.mean(figures):.2f} dB | {min(figures):.2f} to {max(figures):.2f} |",
            flush=True,
        )


@torch.inference_mode()
def montage(arguments: argparse.Namespace) -> None:
    """The middle of the same photographs through each system, in one image with labels."""
    if not arguments.montage:
        return
    teacher, decode = load_autoencoder(arguments.teacher)
    ours = Codec("autoencoder", device="cpu")
    found = {path: network for path, (_, network) in author(arguments.author).items()}
    networks = {
        "author's 86 KB": found["lightencoder-86k"],
        **{name: load_encoder(name) for name in registry.encoders(SD1)},
        "TAESD's encoder": teacher,
    }

    def whole_file(image: Tensor) -> Tensor:
        return ours.decode_tensor(ours.encode(tensors.to_image(image)))

    systems: dict[str, Callable[[Tensor], Tensor]] = {
        "original": nn.Identity(),
        **{name: nn.Sequential(network, decode) for name, network in networks.items()},
        "author's autoencoder": found["autoencoder-1.8m"],
        "autoencoder, quality 50": whole_file,
    }
    cell, rows = (VIEW, VIEW + LABEL), len(systems) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * cell[0], len(arguments.opened) * rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for number, image in enumerate(arguments.opened):
        whole = tensors.pad(tensors.to_tensor(image))
        top, left = ((side - VIEW) // 2 for side in whole.shape[-2:])
        for place, (name, system) in enumerate(systems.items()):
            x, y = place % COLUMNS * cell[0], (number * rows + place // COLUMNS) * cell[1]
            view = system(whole)[..., top : top + VIEW, left : left + VIEW]
            sheet.paste(tensors.to_image(view), (x, y + LABEL))
            pen.text((x + 4, y + 2), name, "black")
    sheet.save(arguments.montage, quality=92)


PARTS = {
    "encoders": encoders,
    "sizes": sizes,
    "autoencoders": autoencoders,
    "ablation": ablation,
    "montage": montage,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "teacher", "lpips", "author"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--montage", type=Path, help="image to write")
    parser.add_argument("--train", type=Path, action="append", default=[])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--count", type=int, help="of images")
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    arguments = parser.parse_args()
    arguments.measure = Measure(load_distances(arguments.lpips))
    arguments.opened = [p for _, p in islice(iter_images(arguments.images), arguments.count)]
    torch.set_num_threads(1)
    for part in arguments.part or PARTS:
        PARTS[part](arguments)
        print(flush=True)

"""The size, loss and reading speed of cached latents, as .lat files and as others keep them.

    python tests/bench latents IMAGES

IMAGES is a folder or tar of at least --count images. Their latents come from --encoder, or from
--vae, an SD VAE or TAESD in diffusers form, which decodes, too; with --effort those in the .lat
files are refined, through the embedded decoder alone. PSNR of latents is that of all of them, their
whole range as the peak; that of decoded images is against the originals, the mean of every tenth.
Files are read one after another by one thread, from a warm page cache; of --rounds
rounds through all formats the median counts. Prints Markdown.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynenc import LatentDataset, codec, load_decoder, load_encoder, metrics, registry
from dynenc.coding import quantize
from dynenc.coding.encode_latents import encode_latents
from dynenc.imaging import tensors
from dynenc.imaging.sources import iter_images
from dynenc.interop import latent_export
from dynenc.latent_space import SD1
from dynenc.networks.decoders import load_autoencoder
from dynenc.refine import Refiner

EVERY = 10  # images of which one is decoded


def write_caches(
    folder: Path, arguments: argparse.Namespace, encode: Callable, decode: Callable
) -> list[Tensor]:
    """Write all caches below a folder; return every tenth image."""
    kept = []
    backend = codec.Codec(device="cpu").backend  # loads its networks only if an effort needs them
    made_by = registry.IMPORTED if arguments.vae else registry.encoder_model(arguments.encoder)
    names = [f"lat {quality:g}" for quality in arguments.qualities]
    for name in ("npz", "gzip", "float16", *names):
        (folder / name).mkdir()
    images = itertools.islice(iter_images(arguments.images), arguments.count)
    for number, (_, image) in enumerate(images):
        tensor = tensors.to_tensor(image)
        latents = encode(tensors.pad(tensor))
        if number % EVERY == 0:
            kept.append(tensor)
        height, width = tensor.shape[-2:]
        stem = f"{number:06d}"
        exact = encode_latents(latents[0].numpy(), (width, height), 1, made_by)
        npz, _ = latent_export.write("npz", exact, latents[0].numpy())
        (folder / "npz" / f"{stem}.npz").write_bytes(npz)
        np.savez_compressed(folder / "gzip" / f"{stem}.npz", **np.load(folder / f"npz/{stem}.npz"))
        half = {"latents": latents[0].half().contiguous()}
        save_file(half, folder / "float16" / f"{stem}.safetensors")
        for quality, name in zip(arguments.qualities, names, strict=True):
            step_q = quantize.quality_to_step(quality, has_trellis=made_by.has_trellis)
            size = width, height
            file = encode_latents(latents[0].numpy(), size, step_q, made_by)
            if arguments.effort:
                refiner = Refiner(backend.perceptual, decode, arguments.effort)
                file = refiner.refine(file, latents, tensor)
            (folder / name / f"{stem}.lat").write_bytes(file.to_bytes())
    return kept


def read_npz(path: Path) -> Tensor:
    with np.load(path) as file:
        key = next(key for key in file.files if key.startswith("latents"))
        return torch.from_numpy(file[key]) * SD1.scale


def readers(folder: Path) -> dict[str, list[Callable[[], Tensor]]]:
    """For each format, what reads each of its files to [4, h, w]."""

    def each(name: str, read: Callable[[Path], Tensor]) -> list[Callable[[], Tensor]]:
        return [lambda p=path: read(p) for path in sorted((folder / name).iterdir())]

    def samples(source: Path) -> list[Callable[[], Tensor]]:
        dataset = LatentDataset(source)
        return [lambda i=index: dataset[i]["latents"] for index in range(len(dataset))]

    found = {
        "float32 .npz": each("npz", read_npz),
        "float32 .npz, gzip": each("gzip", read_npz),
        "float16 .safetensors": each("float16", lambda path: load_file(path)["latents"].float()),
    }
    for path in sorted(folder.glob("lat *")):
        found[".lat, quality " + path.name.removeprefix("lat ")] = samples(path)
    return found


def n_bytes(folder: Path, name: str) -> int:
    """Bytes of all files of a format."""
    places = {
        "float32 .npz": "npz",
        "float32 .npz, gzip": "gzip",
        "float16 .safetensors": "float16",
    }
    place = places.get(name, f"lat {name.rpartition(' ')[2]}")
    return sum(path.stat().st_size for path in (folder / place).iterdir())


def psnr_of_latents(latents: list[Tensor], exact: list[Tensor]) -> float:
    error = sum(((a - b) ** 2).sum().item() for a, b in zip(latents, exact, strict=True))
    span = max(t.max().item() for t in exact) - min(t.min().item() for t in exact)
    count = sum(t.numel() for t in exact)
    return 10 * math.log10(span**2 * count / error) if error else math.inf


def psnr_of_images(latents: list[Tensor], images: list[Tensor], decode: Callable) -> float:
    figures = []
    for one, image in zip(latents, images, strict=True):
        decoded = decode(one[None])[..., : image.shape[-2], : image.shape[-1]]
        figures.append(metrics.psnr_db(tensors.to_tensor(tensors.to_image(decoded)), image))
    return statistics.mean(figures)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--qualities", type=float, nargs="+", default=[50, 60, 80])
    parser.add_argument("--effort", type=int, default=0, help="of the .lat files")
    parser.add_argument("--encoder", default="light")
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encode, decode = load_encoder(arguments.encoder), load_decoder("embedded")
    if arguments.vae:
        encode, decode = load_autoencoder(arguments.vae)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = write_caches(folder, arguments, encode, decode)
        formats = readers(folder)
        times: dict[str, list[float]] = {name: [] for name in formats}
        content: dict[str, list[Tensor]] = {}
        for _ in range(arguments.rounds):
            for name, reads in formats.items():
                start = time.perf_counter()
                content[name] = [read() for read in reads]
                times[name].append(time.perf_counter() - start)
        exact = content["float32 .npz"]
        whole = n_bytes(folder, "float32 .npz")
        plain = psnr_of_images(exact[::EVERY], images, decode)
        fastest = statistics.median(times["float32 .npz"])
        print(f"{len(exact)} images\n")
        print("| cache | bytes | smaller | latents' PSNR | images' PSNR | loss | latents/s | x |")
        print("|---|---|---|---|---|---|---|---|")
        for name, latents in content.items():
            size, seconds = n_bytes(folder, name), statistics.median(times[name])
            psnr = psnr_of_images(latents[::EVERY], images, decode)
            closeness = psnr_of_latents(latents, exact)
            print(
                f"| {name} | {size:,} | {whole / size:.1f}x | {closeness:.1f} dB | {psnr:.2f} dB |"
                f" {plain - psnr:.3f} dB | {len(latents) / seconds:,.0f} |"
                f" {fastest / seconds:.2f} |",
                flush=True,
            )

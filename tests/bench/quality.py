"""The image quality of weights, shipped or new: a table of photographs, and one of flat colours.

    python tests/bench quality KODAK --lpips ALEX --vgg VGG16
    python tests/bench quality KODAK --lpips ALEX --vgg VGG16 --every 2 --encoders base \
        --weights runs/base/base.safetensors runs/base/embedded.safetensors
    python tests/bench quality --encoders light base       (flat colours alone, in seconds)

KODAK is a folder of photographs; ALEX and VGG16 are weights as `dynenc eval --lpips --vgg` takes
them. Each file of --weights replaces the shipped network that it names in its metadata (as
`dynenc train` writes it), with the entropy coder of that network; a changed coder is not covered.

Photographs: means of bpp of whole files, PSNR, LPIPS and DISTS; how many percent of the bits of
AVIF (speed 6) each point spends at equal LPIPS-Alex, LPIPS-VGG and DISTS; and BD-rates against AVIF
over that part of dynenc's curve that lies between 0.05 and 0.25 bpp. AVIF goes up to where it is as
good, about 0.8 bpp. `-` means that AVIF is never as good, or never as bad. The points of AVIF are
kept in --cache, because they are the same for all weights. --every 2 takes Kodak 1, 3, 5, ...

Flat colours: images of one colour, each channel one of 0, 85, 170, 255, at quality 50. The mean
error is that of an image's mean, the corner error that of the worst pixel in its four corners of
8x8 px, both in levels of 255 and of the worst channel. Colours with channels 255 apart have columns
of their own.

The networks of the metrics run in bfloat16, which changes the figures by less than 0.1 %;
--float32 switches that off.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, features
from safetensors import safe_open

from dynenc import Codec
from dynenc.evaluation import benchmark
from dynenc.evaluation.benchmark import Candidate
from dynenc.evaluation.curves import Curve, bd_rate, percent, table
from dynenc.evaluation.measure import FIGURES, Measure, load_distances
from dynenc.evaluation.reference_codecs import REFERENCE_CODECS
from dynenc.imaging import pixels
from dynenc.networks import loading
from dynenc.networks.tiling import EMBEDDED_TILES, TiledDecoder

QUALITIES = (10, 30, 50, 70)
AVIF_QUALITIES = (5, 12, 20, 30, 42, 54)
BPP_RANGE = (0.05, 0.25)
SHOWN = ("bpp", "psnr-rgb", "lpips", "lpips-vgg", "dists")
DISTANCES = SHOWN[2:]
LEVELS = (0, 85, 170, 255)
CORNER = 8  # px
FLAT_QUALITY = 50


def codec_with(encoder: str, decoder: str, weights: dict[str, Path], device: str) -> Codec:
    """A codec whose networks are replaced by those of weight files, where there are any."""
    codec = Codec(encoder, decoder, device)
    if encoder in weights:
        codec.encoder = loading.load_path(weights[encoder]).to(codec.device)
    if decoder in weights:
        network = loading.load_path(weights[decoder]).to(codec.device)
        codec.decoder = TiledDecoder(str(weights[decoder]), network, tiles=EMBEDDED_TILES)
    return codec


def by_name(files: Sequence[Path]) -> dict[str, Path]:
    """Weight files by the name of the network that they say they are for."""
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found[file.metadata()["model"]] = path
    return found


def avif_curve(images: Sequence[Path], measure: Measure, cache: Path, setting: str) -> Curve:
    """AVIF on the images, from the cache if it was measured there on equal terms."""
    candidate = benchmark.pillow_candidate(REFERENCE_CODECS["avif"], AVIF_QUALITIES)
    terms = [candidate.description, features.version("avif"), list(AVIF_QUALITIES), setting]
    terms += [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in images]
    terms += [sorted(measure.distances)]
    key = hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:16]
    file = cache / f"avif-{key}.json"
    if file.exists():
        return Curve(**json.loads(file.read_text()))
    [curve] = benchmark.curves_of([candidate], images, measure, lambda: None)
    cache.mkdir(parents=True, exist_ok=True)
    fields = {"name": curve.name, "description": curve.description, "results": curve.results}
    file.write_text(json.dumps(fields))
    return curve


def within(curve: Curve, low: float, high: float) -> Curve:
    """The part of a curve between two rates; its ends are interpolated over log(bpp)."""
    order = np.argsort(curve.results["bpp"])
    rates = np.log([curve.results["bpp"][i] for i in order])
    ends = [math.log(end) for end in (low, high) if rates[0] < math.log(end) < rates[-1]]
    inner = [rate for rate in rates if math.log(low) <= rate <= math.log(high)]
    at = np.sort([*ends, *inner])
    results = {"bpp": np.exp(at).tolist()}
    for name in SHOWN[1:]:
        if name in curve.results:
            values = [curve.results[name][i] for i in order]
            results[name] = np.interp(at, rates, values).tolist()
    return Curve(curve.name, curve.description, results)


def bits_against(curve: Curve, index: int, anchor: Curve, metric: str) -> float:
    """Bits of one point against those of an anchor at the same distance, in percent, or NaN."""
    distance = curve.results[metric][index]
    points = sorted(zip(anchor.results[metric], np.log(anchor.results["bpp"]), strict=True))
    distances, rates = zip(*points, strict=True)
    if not distances[0] <= distance <= distances[-1]:
        return math.nan
    rate = math.exp(np.interp(distance, distances, rates))
    return 100 * (curve.results["bpp"][index] / rate - 1)


def photographs(curves: Sequence[Curve], avif: Curve) -> str:
    """Both tables of photographs."""
    shown = [name for name in SHOWN if name in avif.results]
    metrics = [name for name in DISTANCES if name in avif.results]
    head = ["codec", "quality", *(FIGURES[name].label for name in shown)]
    head += [f"bits, {FIGURES[name].label}" for name in metrics]
    rows = []
    for curve in [*curves, avif]:
        for i, quality in enumerate(curve.results["q"]):
            figures = [f"{curve.results[n][i]:.{FIGURES[n].decimals + 1}f}" for n in shown]
            against = [percent(bits_against(curve, i, avif, name)) for name in metrics]
            rows.append([curve.name, f"{quality:g}", *figures, *against])
    head_bd = ["BD-rate against AVIF", *(FIGURES[name].label for name in shown[1:])]
    rows_bd = []
    for curve in curves:
        part = within(curve, *BPP_RANGE)
        rows_bd.append([curve.name, *(percent(bd_rate(part, avif, n)) for n in shown[1:])])
    return f"{table(head, rows)}\n\n{table(head_bd, rows_bd)}"


def flat_errors(codec: Codec, colour: tuple[int, int, int], side: int) -> tuple[float, float]:
    """Errors of an image of one colour, in levels: of its mean, and in its worst corner."""
    blob = codec.encode(Image.new("RGB", (side, side), colour), quality=FLAT_QUALITY)
    rebuilt = np.asarray(pixels.to_rgb(codec.decode(blob)), np.float64)
    corners = [
        rebuilt[rows, columns]
        for rows, columns in product((slice(CORNER), slice(-CORNER, None)), repeat=2)
    ]
    of_mean = np.abs(rebuilt.mean((0, 1)) - colour).max()
    return float(of_mean), float(max(np.abs(corner - colour).max() for corner in corners))


def flat_colours(codecs: dict[str, Codec]) -> str:
    """The table of flat colours."""
    colours = list(product(LEVELS, repeat=3))
    saturated = [max(colour) - min(colour) == 255 for colour in colours]
    head = ["flat colours", "side", "mean", "corner", "saturated: mean", "corner", "median mean"]
    rows = []
    for (name, codec), side in product(codecs.items(), (128, 16, 8)):
        errors = [flat_errors(codec, colour, side) for colour in colours]
        worst = [
            f"{max(e[which] for e, s in zip(errors, saturated, strict=True) if s == kind):.1f}"
            for kind in (False, True)
            for which in (0, 1)
        ]
        rows.append([name, f"{side}", *worst, f"{median(e[0] for e in errors):.1f}"])
    return table(head, rows)


def candidate(name: str, codec: Codec, qualities: Sequence[float]) -> Candidate:
    """A codec at some qualities."""

    def encode(image: Image.Image, quality: float) -> bytes:
        return codec.encode(image, quality=quality)

    decode: Callable[[bytes], Image.Image] = lambda blob: pixels.to_rgb(codec.decode(blob))  # noqa: E731
    return Candidate(name, "", qualities, encode, decode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--encoders", nargs="+", default=["light", "base"])
    parser.add_argument("--decoders", nargs="+", default=["embedded"])
    parser.add_argument("--weights", nargs="+", type=Path, default=[])
    parser.add_argument("--qualities", nargs="+", type=float, default=QUALITIES)
    parser.add_argument("--every", type=int, default=1, help="of so many images the first")
    parser.add_argument("--lpips", type=Path)
    parser.add_argument("--vgg", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--no-flat", action="store_true", help="photographs only")
    parser.add_argument("--cache", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = by_name(arguments.weights)
    codecs = {
        f"{encoder} -> {Path(decoder).name}": codec_with(
            encoder, decoder, weights, arguments.device
        )
        for encoder, decoder in product(arguments.encoders, arguments.decoders)
    }
    for name, path in weights.items():
        print(f"{name}: {path}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")
    if not arguments.no_flat:
        print(f"{flat_colours(codecs)}\n", flush=True)
    if arguments.images is None:
        return
    distances = load_distances(arguments.lpips, arguments.vgg)
    measure = Measure(distances, arguments.device, bfloat16=not arguments.float32)
    images = benchmark.images_of(arguments.images)[0][:: arguments.every]
    ours = [candidate(name, codec, arguments.qualities) for name, codec in codecs.items()]
    curves = benchmark.curves_of(ours, images, measure, lambda: None)
    setting = "float32" if arguments.float32 else "bfloat16"
    avif = avif_curve(images, measure, arguments.cache, setting)
    print(f"{len(images)} images of {arguments.images.name}, {avif.description}\n")
    print(photographs(curves, avif))

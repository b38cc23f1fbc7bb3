"""Rate and distortion over the pictures of a folder, of dynenc and of the codecs Pillow has."""

from __future__ import annotations

import io
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image, features
from torch import Tensor, nn

from dynenc import __version__, metrics
from dynenc.batch.plan import input_suffixes
from dynenc.codec import Codec
from dynenc.errors import ImageError, UsageError
from dynenc.evaluation.lpips import LPIPS
from dynenc.imaging import image
from dynenc.io import storage
from dynenc.networks.external_vae import load_teacher
from dynenc.training.crops import iter_images

logger = logging.getLogger(__name__)

QUALITIES = (0.0, 20.0, 35.0, 50.0, 65.0, 80.0)  # of dynenc
FIGURES = {  # names as in CompressAI's result files: how they are called, and their decimals
    "bpp": ("bpp", 3),
    "psnr-rgb": ("PSNR", 2),
    "ms-ssim-rgb": ("MS-SSIM", 4),
    "lpips": ("LPIPS", 3),
    "encoding_time": ("s to encode", 3),
    "decoding_time": ("s to decode", 3),
}
PLOTS = (".png", ".svg", ".pdf")
QUALITY = {"psnr-rgb": 1, "ms-ssim-rgb": 1, "lpips": -1}  # 1: higher is better; -1: lower is


@dataclass(frozen=True, slots=True)
class Contestant:
    """A codec at several qualities."""

    name: str
    description: str
    qualities: Sequence[float]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], Image.Image]


@dataclass(slots=True)
class Curve:
    """Means over all pictures, a value for each quality; the shape of CompressAI's result files."""

    name: str
    description: str
    results: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured; both forms end without a line break."""

    curves: list[Curve]
    anchors: list[Curve]
    left_out: int  # pictures

    def bd_rates(self, curve: Curve) -> dict[str, dict[str, float]]:
        """For each metric the BD-rate against each anchor; empty without `bjontegaard`."""
        if not self.anchors or find_spec("bjontegaard") is None:
            return {}
        return {
            metric: {one.name: bd_rate(curve, one, metric) for one in self.anchors}
            for metric in QUALITY
            if metric in curve.results
        }

    def as_json(self) -> str:
        """An object a line for each codec: CompressAI's, and for ours its BD-rates in percent."""
        rows = [{**asdict(one), "bd-rate": _known(self.bd_rates(one))} for one in self.curves]
        return "\n".join(json.dumps(row) for row in [*rows, *map(asdict, self.anchors)])

    def as_tables(self) -> str:
        """Markdown: a table of all points and one of BD-rates."""
        curves = [*self.curves, *self.anchors]
        names = [name for name in FIGURES if name in curves[0].results]
        lines = [_row(["codec", "quality", *(FIGURES[name][0] for name in names)])]
        lines.append("|---" * (len(names) + 2) + "|")
        for curve in curves:
            for i, quality in enumerate(curve.results["q"]):
                values = (f"{curve.results[name][i]:.{FIGURES[name][1]}f}" for name in names)
                lines.append(_row([curve.name, f"{quality:g}", *values]))
        if self.anchors and find_spec("bjontegaard") is None:
            lines += ["", "BD-rates need the package bjontegaard: pip install 'dynenc[eval]'"]
        elif self.anchors:
            lines += ["", _row(["BD-rate", "by", *(f"against {a.name}" for a in self.anchors)])]
            lines.append("|---" * (len(self.anchors) + 2) + "|")
            for curve in self.curves:
                for metric, rates in self.bd_rates(curve).items():
                    cells = ("-" if math.isnan(r) else f"{r:+.1f} %" for r in rates.values())
                    lines.append(_row([curve.name, FIGURES[metric][0], *cells]))
        return "\n".join(lines)


def _known(rates: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """The same with null for NaN, which JSON does not have."""
    return {
        metric: {name: None if math.isnan(rate) else rate for name, rate in row.items()}
        for metric, row in rates.items()
    }


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def distortion(
    rebuilt: Image.Image, original: Image.Image, perceptual: nn.Module | None = None
) -> dict[str, float]:
    """PSNR in dB, MS-SSIM (if the sides allow it) and LPIPS (if its network is given)."""
    pair = image.to_tensor(rebuilt), image.to_tensor(original)
    figures = {"psnr-rgb": metrics.psnr_db(*pair)}
    if (similarity := metrics.ms_ssim(*pair)) is not None:
        figures["ms-ssim-rgb"] = similarity
    if perceptual is not None:
        with torch.inference_mode():
            figures["lpips"] = perceptual(*pair).item()
    return figures


@torch.inference_mode()
def evaluate(
    reconstruct: Callable[[Tensor], Tensor], folder: Path, perceptual: nn.Module
) -> dict[str, float]:
    """Mean PSNR and LPIPS of reconstructed pictures.

    Args:
        reconstruct: [1, 3, H, W] in [-1, 1] -> the same shape; H and W multiples of 8.
        folder: pictures, or a tar shard of them.
        perceptual: `lpips.LPIPS`.
    Returns: `pictures`, `psnr_db` and `lpips`. The rebuilt picture is rounded to 8 bits first.
    """
    rows = []
    for _, picture in iter_images(folder):
        rebuilt = image.to_picture(reconstruct(image.pad(image.to_tensor(picture))))
        rows.append(distortion(rebuilt.crop((0, 0, *picture.size)), picture, perceptual))
    means = _means(rows)
    return {"pictures": len(rows), "psnr_db": means["psnr-rgb"], "lpips": means["lpips"]}


def ours(
    encoders: Sequence[str],
    decoders: Sequence[str],
    efforts: Sequence[int],
    qualities: Sequence[float],
    device: str,
) -> list[Contestant]:
    """dynenc with every encoder, decoder and effort; a decoder is also what the effort is for."""
    found = []
    for encoder, decoder, effort in product(encoders, decoders, efforts):
        name = f"{encoder} -> {Path(decoder).name}" + (f", effort {effort}" if effort else "")
        found.append(_dynenc(name, Codec(encoder, decoder, device), qualities, effort))
    return found


class _TeacherCodec(Codec):
    """A codec with both halves of an autoencoder; the number in its files means nothing."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(decoder=str(path), device=device)
        teacher, decoder = load_teacher(path)
        self.teacher, self.decoder = teacher.to(self.device), decoder.to(self.device)

    def _latents(self, pictures: list[Image.Image | Tensor]) -> Tensor:
        padded = [image.pad(image.to_tensor(picture)) for picture in pictures]
        latents: Tensor = self.teacher(torch.cat(padded).to(self.device))
        return latents


def latents_of(path: Path, qualities: Sequence[float], device: str) -> Contestant:
    """The latents of an autoencoder's own encoder, coded by dynenc, through its own decoder."""
    return _dynenc(f"{path.name} -> {path.name}", _TeacherCodec(path, device), qualities)


def _dynenc(name: str, codec: Codec, qualities: Sequence[float], effort: int = 0) -> Contestant:
    def encode(picture: Image.Image, quality: float) -> bytes:
        return codec.encode(picture, quality=quality, effort=effort)

    return Contestant(name, f"dynenc {__version__}", qualities, encode, codec.decode)


def others() -> list[Contestant]:
    """The codecs that Pillow has here, at qualities that give about 0.05 to 0.4 bpp."""
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  # makes JPEG XL known to Pillow
    Image.init()
    found = [_pillow("JPEG", "JPEG", (2, 5, 10, 15, 20, 30), optimize=True)]
    if features.check("webp"):
        found.append(_pillow("WebP", "WEBP", (0, 5, 10, 20, 30, 50), method=6))
    if features.check("avif"):
        found.append(_pillow("AVIF", "AVIF", (5, 12, 20, 28, 36, 44), speed=6))
    if "JXL" in Image.SAVE:
        found.append(_pillow("JPEG XL", "JXL", (0, 5, 10, 20, 30, 40)))
    return found


def _pillow(name: str, form: str, qualities: Sequence[float], **options: Any) -> Contestant:
    def encode(picture: Image.Image, quality: float) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, form, quality=int(quality), **options)
        return buffer.getvalue()

    def decode(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    settings = ", ".join(f"{key} {value}" for key, value in options.items())
    description = f"Pillow {PIL.__version__}, {settings or 'its defaults'}"
    return Contestant(name, description, qualities, encode, decode)


def run(
    folder: Path,
    contestants: Sequence[Contestant],
    anchors: Sequence[Contestant] = (),
    *,
    lpips: Path | None = None,
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]],
) -> Evaluation:
    """Measure codecs on the pictures of a folder.

    Args:
        anchors: codecs that are measured, too, and that BD-rates are against.
        lpips: weights of LPIPS, as `lpips.LPIPS` takes them; None leaves LPIPS out.
        progress: given the number of encodings, a context; what it gives is called after each.
    Raises: ImageError if the folder is not there or holds no picture, WeightsError.
    """
    perceptual = LPIPS(lpips) if lpips else None
    pictures, left_out = pictures_of(folder)
    everyone = [*contestants, *anchors]
    with progress(len(pictures) * sum(len(one.qualities) for one in everyone)) as advance:
        curves = [_curve(one, pictures, perceptual, advance) for one in everyone]
    return Evaluation(curves[: len(contestants)], curves[len(contestants) :], left_out)


def pictures_of(folder: Path) -> tuple[list[Path], int]:
    """The pictures of a folder, sorted by name, and how many were left out, with a word each.

    Raises: ImageError if there is no such folder, or no picture is left.
    """
    found, left_out = [], 0
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder of pictures")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in input_suffixes("encode"):
            continue
        try:
            picture = _open(path)
        except ImageError as exc:
            logger.warning("%s: left out", exc)
            left_out += 1
            continue
        if min(picture.size) < metrics.MS_SSIM_SIDE:
            size = f"{picture.width}x{picture.height} px"
            least = metrics.MS_SSIM_SIDE
            logger.warning("%s is too small, %s, for MS-SSIM's %d: left out", path, size, least)
            left_out += 1
            continue
        found.append(path)
    if not found:
        raise ImageError(f"{folder} holds no picture that can be measured")
    return found, left_out


def _open(path: Path) -> Image.Image:
    return image.to_rgb(image.open_image(path))  # colours are what all the codecs have


def _curve(
    one: Contestant,
    pictures: Sequence[Path],
    perceptual: nn.Module | None,
    advance: Callable[[], None],
) -> Curve:
    """Measure a codec at each of its qualities on every picture."""
    small = _open(pictures[0]).crop((0, 0, 64, 64))
    one.decode(one.encode(small, one.qualities[0]))  # load networks before the clock starts
    curve = Curve(one.name, one.description, {"q": list(one.qualities)})
    for quality in one.qualities:
        rows = []
        for path in pictures:
            rows.append(_measure(one, quality, _open(path), perceptual))
            advance()
        for name, mean in _means(rows).items():
            curve.results.setdefault(name, []).append(mean)
    return curve


def _measure(
    one: Contestant, quality: float, picture: Image.Image, perceptual: nn.Module | None
) -> dict[str, float]:
    start = time.perf_counter()
    data = one.encode(picture, quality)
    middle = time.perf_counter()
    rebuilt = one.decode(data)
    end = time.perf_counter()
    return {
        "bpp": metrics.bpp(len(data), *picture.size),
        **distortion(rebuilt, picture, perceptual),
        "encoding_time": middle - start,
        "decoding_time": end - middle,
    }


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    shared = (name for name in rows[0] if all(name in row for row in rows))
    return {name: sum(row[name] for row in rows) / len(rows) for name in shared}


def bd_rate(curve: Curve, anchor: Curve, metric: str) -> float:
    """Bits, in percent, that a curve spends more than an anchor at equal distortion; < 0: saves.

    The Bjontegaard delta rate with piecewise cubic interpolation, over the distortions that both
    curves have; NaN if they share none. Needs the package `bjontegaard`.
    """
    import bjontegaard

    pairs = [_rising(one, metric) for one in (anchor, curve)]
    if min(len(bpp) for bpp, _ in pairs) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that curves share little or nothing
        rate = bjontegaard.bd_rate(
            *pairs[0], *pairs[1], method="pchip", require_matching_points=False, min_overlap=0
        )
    return float(rate)


def _rising(curve: Curve, metric: str) -> tuple[list[float], list[float]]:
    """A curve's points by rate, without those no better than a cheaper one: bpp and quality."""
    sign = QUALITY[metric]
    bpp: list[float] = []
    values: list[float] = []
    points = zip(curve.results["bpp"], curve.results[metric], strict=True)
    for rate, value in sorted(points):
        if math.isfinite(value) and (not values or sign * value > values[-1]):
            bpp.append(rate)
            values.append(sign * value)
    return bpp, values


def plotter(path: Path) -> Callable[[Evaluation], None]:
    """What draws rate-distortion curves, a panel for each metric, to a file; it is overwritten.

    Raises: UsageError at once if matplotlib is not installed, or the suffix is not known.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UsageError("--plot needs matplotlib: pip install 'dynenc[eval]'") from exc
    if path.suffix.lower() not in PLOTS:
        raise UsageError(f"{path} is no name of a plot: let it end in {', '.join(PLOTS)}")

    def draw(evaluation: Evaluation) -> None:
        curves = [*evaluation.curves, *evaluation.anchors]
        shown = [name for name in QUALITY if name in curves[0].results]
        figure = Figure(figsize=(4.5 * len(shown), 4), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, metric in zip(panels, shown, strict=True):
            for one in curves:
                axes.plot(one.results["bpp"], one.results[metric], marker=".", label=one.name)
            axes.set_xlabel("bits per pixel")
            better = ", lower is better" if QUALITY[metric] < 0 else ""
            axes.set_title(FIGURES[metric][0] + better)
            axes.grid(alpha=0.3)
        panels[-1].legend()
        with storage.writing(str(path), overwrite=True) as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)

    return draw

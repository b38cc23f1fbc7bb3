"""Measure dynenc and other codecs on the images in a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import torch
from PIL import Image

from dynenc import __version__, metrics, registry
from dynenc.batch.plan import input_suffixes
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.encode_options import DetailMode
from dynenc.errors import ImageError
from dynenc.evaluation import reference_codecs
from dynenc.evaluation.curves import Curve, Evaluation
from dynenc.evaluation.measure import Measure, means
from dynenc.evaluation.reference_codecs import ReferenceCodec
from dynenc.imaging import notes, pixels, tensors
from dynenc.imaging.arrays import RgbImage
from dynenc.imaging.sources import open_rgb
from dynenc.native.kernel import Floats
from dynenc.networks.decoders import load_autoencoder

logger = logging.getLogger(__name__)

QUALITIES = (0.0, 20.0, 35.0, 50.0, 65.0, 80.0)  # of dynenc


@dataclass(frozen=True, slots=True)
class Candidate:
    """A codec, and the qualities that it is measured at."""

    name: str
    description: str
    qualities: Sequence[float]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], Image.Image]


def dynenc_candidates(
    encoders: Sequence[str],
    decoders: Sequence[str],
    efforts: Sequence[int],
    qualities: Sequence[float],
    device: str,
    detail: DetailMode = "auto",
) -> list[Candidate]:
    """One candidate for each combination of encoder, decoder and effort.

    Args:
        efforts: 0 to 9; the latents are refined for the decoder of the candidate.
        qualities: 0 to 100; each is a point of its curve.
    Raises: WeightsError, DeviceError.
    """
    candidates = []
    for encoder, decoder, effort in product(encoders, decoders, efforts):
        name = f"{Path(encoder).name} -> {Path(decoder).name}"
        if effort:
            name += f", effort {effort}"
        codec = Codec(encoder, decoder, device)
        candidates.append(_candidate(name, codec, qualities, effort, detail))
    return candidates


class _AutoencoderCodec(Codec):
    """A codec with both halves of an external autoencoder; its files name no encoder of dynenc."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(decoder=str(path), device=device)
        encoder, decoder = load_autoencoder(path)
        self.external_encoder = encoder.to(self.device)
        self.decoder = decoder.to(self.device)
        self.model = registry.IMPORTED_MODELS[decoder.space.name]

    @torch.inference_mode()
    def latents(self, images: Sequence[RgbImage]) -> Floats:
        padded = [tensors.pad(tensors.to_tensor(image)) for image in images]
        latents: Floats = self.external_encoder(torch.cat(padded).to(self.device)).cpu().numpy()
        return latents


def autoencoder_candidate(
    path: Path, qualities: Sequence[float], device: str, detail: DetailMode = "auto"
) -> Candidate:
    """An autoencoder with its own encoder and decoder, whose latents dynenc codes."""
    codec, name = _AutoencoderCodec(path, device), f"{path.name} -> {path.name}"
    return _candidate(name, codec, qualities, detail=detail)


def _candidate(
    name: str,
    codec: Codec,
    qualities: Sequence[float],
    effort: int = 0,
    detail: DetailMode = "auto",
) -> Candidate:
    def encode(image: Image.Image, quality: float) -> bytes:
        return codec.encode(image, quality=quality, effort=effort, detail=detail)

    def decode(blob: bytes) -> Image.Image:
        return pixels.to_rgb(codec.decode(blob))

    return Candidate(name, f"dynenc {__version__}", qualities, encode, decode)


def pillow_candidates() -> list[Candidate]:
    """The codecs of this Pillow, at qualities that give about 0.05 to 0.4 bpp."""
    return [pillow_candidate(codec, codec.qualities) for codec in reference_codecs.installed()]


def pillow_candidate(codec: ReferenceCodec, qualities: Sequence[float]) -> Candidate:
    """A codec of Pillow at the given qualities."""
    return Candidate(codec.label, codec.description, qualities, codec.encode, codec.decode)


def run(
    folder: Path,
    candidates: Sequence[Candidate],
    anchors: Sequence[Candidate] = (),
    *,
    measure: Measure,
    on_progress: Callable[[int, int], object],
) -> Evaluation:
    """Measure codecs on the images in a folder.

    Args:
        anchors: codecs that are also measured, as references of the BD-rates.
        on_progress: called after each encoding with how many are done, and the total.
    Raises: ImageError if the folder does not exist or has no image that can be measured.
    """
    images, left_out = images_of(folder)
    everyone = [*candidates, *anchors]
    total = len(images) * sum(len(candidate.qualities) for candidate in everyone)
    done = count(1)
    curves = curves_of(everyone, images, measure, lambda: on_progress(next(done), total))
    return Evaluation(curves[: len(candidates)], curves[len(candidates) :], left_out)


def images_of(folder: Path) -> tuple[list[Path], int]:
    """The images in a folder that can be measured, by name; the others are counted and logged.

    Raises: ImageError if the folder does not exist, or no image is left.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder")
    suffixes = input_suffixes("encode")
    found, left_out = [], 0
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes):
        try:
            with notes.collected():  # told when the image is measured
                width, height = open_rgb(path).size
        except ImageError as exc:
            logger.warning("%s: skipped", exc)
            left_out += 1
            continue
        if min(width, height) < metrics.MS_SSIM_SIDE:
            least = f"sides of {metrics.MS_SSIM_SIDE} px"
            logger.warning("%s: skipped, MS-SSIM needs %s, not %dx%d", path, least, width, height)
            left_out += 1
            continue
        found.append(path)
    if not found:
        raise ImageError(f"{folder} has no image that can be measured")
    return found, left_out


def curves_of(
    candidates: Sequence[Candidate],
    images: Sequence[Path],
    measure: Measure,
    advance: Callable[[], object],
) -> list[Curve]:
    """A curve for each candidate: means over the images, each of which is read once."""
    with notes.collected():
        small = open_rgb(images[0]).crop((0, 0, 64, 64))
        for one in candidates:  # load networks before the clock starts
            one.decode(one.encode(small, one.qualities[0]))
    points = [(one, quality) for one in candidates for quality in one.qualities]
    rows: list[list[dict[str, float]]] = [[] for _ in points]
    for path in images:
        with notes.logged(logger, path):
            image = open_rgb(path)
            figures_of = measure.against(image)
            for (one, quality), row in zip(points, rows, strict=True):
                row.append(_figures(one, quality, image, figures_of))
                advance()
    return _curves(candidates, [means(row) for row in rows])


def _figures(
    one: Candidate,
    quality: float,
    image: Image.Image,
    figures_of: Callable[[Image.Image], Mapping[str, float]],
) -> dict[str, float]:
    start = time.perf_counter()
    data = one.encode(image, quality)
    middle = time.perf_counter()
    decoded = one.decode(data)
    end = time.perf_counter()
    return {
        "bpp": bitstream.bpp(len(data), *image.size),
        **figures_of(decoded),
        "encoding_time": middle - start,
        "decoding_time": end - middle,
    }


def _curves(candidates: Sequence[Candidate], points: Sequence[dict[str, float]]) -> list[Curve]:
    curves, rest = [], iter(points)
    for one in candidates:
        own = [next(rest) for _ in one.qualities]
        results = {name: [point[name] for point in own] for name in own[0]}
        curves.append(Curve(one.name, one.description, {"q": list(one.qualities), **results}))
    return curves

"""All metrics between a decoded image and its original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dynenc import metrics
from dynenc.evaluation.lpips import LPIPS
from dynenc.evaluation.perceptual import MIN_SIDE, PerceptualDistance
from dynenc.evaluation.vgg import DISTS, LPIPSVGG, VGG16
from dynenc.imaging import tensors
from dynenc.imaging.sources import iter_images

KEPT_PIXELS = 2**20  # largest original whose features are kept: about 1 GB with the VGG metrics


@dataclass(frozen=True, slots=True)
class Figure:
    """The title of a metric in tables, its decimals, and whether higher values are better."""

    label: str
    decimals: int
    higher_is_better: bool | None = None  # None: not a measure of quality


FIGURES = {  # by the names in CompressAI's result files, where there are any
    "bpp": Figure("bpp", 3),
    "psnr-rgb": Figure("PSNR", 2, True),
    "ms-ssim-rgb": Figure("MS-SSIM", 4, True),
    "lpips": Figure("LPIPS-Alex", 3, False),
    "lpips-vgg": Figure("LPIPS-VGG", 3, False),
    "dists": Figure("DISTS", 3, False),
    "encoding_time": Figure("encode, s", 3),
    "decoding_time": Figure("decode, s", 3),
}
QUALITY_FIGURES = [name for name, one in FIGURES.items() if one.higher_is_better is not None]


def load_distances(
    lpips: Path | None = None, vgg: Path | None = None
) -> dict[str, PerceptualDistance]:
    """The perceptual distances for which weights are given, by their names in FIGURES.

    Args:
        lpips: weights of LPIPS on AlexNet, see `lpips.LPIPS`.
        vgg: weights of LPIPS on VGG-16 and of DISTS, see `vgg`.
    Raises: WeightsError if a file is missing or has other contents.
    """
    distances: dict[str, PerceptualDistance] = {}
    if lpips:
        distances["lpips"] = LPIPS(lpips)
    if vgg:
        network = VGG16(vgg)
        distances |= {"lpips-vgg": LPIPSVGG(network), "dists": DISTS(network)}
    return distances


class Measure:
    """Measures pairs of RGB images of equal size.

    Args:
        distances: from `load_distances`.
        device: computes the distances.
        bfloat16: compute their convolutions in bfloat16, several times faster on recent CPUs; on
            Kodak the values change by less than 0.1 %.
    """

    def __init__(
        self,
        distances: Mapping[str, PerceptualDistance],
        device: torch.device | str = "cpu",
        *,
        bfloat16: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.distances = {name: each.to(self.device) for name, each in distances.items()}
        self.bfloat16 = bfloat16

    def __call__(self, decoded: Image.Image, original: Image.Image) -> dict[str, float]:
        """PSNR in dB, MS-SSIM and the distances, without those that need longer sides."""
        return self.against(original)(decoded)

    def against(self, original: Image.Image) -> Callable[[Image.Image], dict[str, float]]:
        """Measure many images against one original, whose features are computed once."""
        reference = tensors.to_tensor(original)
        distances = self.distances if min(original.size) >= MIN_SIDE else {}
        kept: dict[str, list[Tensor]] = {}
        if original.width * original.height <= KEPT_PIXELS:
            with self._computing():
                on_device = reference.to(self.device)
                kept = {name: list(one.features(on_device)) for name, one in distances.items()}

        def figures(decoded: Image.Image) -> dict[str, float]:
            tensor = tensors.to_tensor(decoded)
            found = {"psnr-rgb": metrics.psnr_db(tensor, reference)}
            if (similarity := metrics.ms_ssim(tensor, reference)) is not None:
                found["ms-ssim-rgb"] = similarity
            with self._computing():
                tensor = tensor.to(self.device)
                for name, one in distances.items():
                    features = kept.get(name) or one.features(reference.to(self.device))
                    found[name] = one.compare(one.features(tensor), features).item()
            return found

        return figures

    @contextmanager
    def _computing(self) -> Iterator[None]:
        bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)
        with torch.inference_mode(), bfloat16:
            yield


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all rows have."""
    shared = (name for name in rows[0] if all(name in row for row in rows))
    return {name: sum(row[name] for row in rows) / len(rows) for name in shared}


@torch.inference_mode()
def evaluate(
    reconstruct: Callable[[Tensor], Tensor],
    folder: Path,
    distances: Mapping[str, PerceptualDistance],
) -> dict[str, float]:
    """Mean metrics of reconstructed images.

    Args:
        reconstruct: [1, 3, H, W] in [-1, 1] -> the same shape; H and W multiples of 8.
        folder: folder or tar shard of images.
        distances: from `load_distances`.
    Returns: `images` (their number), `psnr_db`, and the mean of each distance that all of them
        are large enough for; nothing without images. Reconstructions are rounded to 8 bits first.
    """
    measure = Measure(distances)
    rows = []
    for _, image in iter_images(folder):
        decoded = tensors.to_image(reconstruct(tensors.pad(tensors.to_tensor(image))))
        rows.append(measure(decoded.crop((0, 0, *image.size)), image))
    if not rows:
        return {}
    mean = means(rows)
    figures = {"images": len(rows), "psnr_db": mean["psnr-rgb"]}
    return figures | {name: mean[name] for name in distances if name in mean}

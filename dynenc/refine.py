"""Latents that a decoder turns into a better picture, in no more bytes: what `--effort` buys.

The encoder's latents are moved by gradient descent through the decoder (as Campos et al., "Content
Adaptive Optimization for Neural Image Compression", 2019). Rounding is within the loop: it is soft
at the beginning of a stage and hard at its end (Agustsson and Theis, "Universally Quantized Neural
Compression", 2020). The rate is that of the coder's own tables, together with what a latent costs
its neighbours, in whose contexts it is; its weight is moved until the file is as large as it may
be. What is returned is the best of what was coded and decoded for true.

Least squares alone would blur, and exploit the decoder. So the picture should also have the same
features as the original, by an encoder: those of deep networks tell what eyes see better than
pixels do (Johnson et al., "Perceptual Losses for Real-Time Style Transfer", 2016).

An effort is that of one less and a further, longer stage, and there is no chance in it: a higher
effort never gives a worse picture, and on one machine the same picture gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.encoder import PATCH, Encoder
from dynenc.entropy import EntropyModel
from dynenc.errors import OutOfMemory
from dynenc.image import pad
from dynenc.quantize import STEP_UNIT, from_symbols, to_symbols

if TYPE_CHECKING:
    from dynenc.decoder import Decoder

STAGES = (3, 4, 6, 9, 13, 20, 30, 45, 70)  # steps that each effort adds
LEARNING_RATE = 0.3  # symbols; of Adam, at the beginning of a stage; falls to 0 along a cosine
SOFTEST, HARDEST = 1.0, 13.0  # sharpness of the rounding at the two ends of a stage
RATE_WEIGHT = 0.2  # distortion that a bit is worth at a step of 1 latent, to begin with
GAIN = 3.0  # of the rate's weight's logarithm, for the share by which the file is too large
EXCESS = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0)  # of the bits too many, to be saved by cheaper rounding
MARGIN = 12  # latents decoded around a window, so that its edge is as it is within the whole
STRUCTURE = 0.0185  # weight of the lost structure beside the squared error
LIKENESS = 4.0  # weight of the squared error of an encoder's features
SCALES, BLOCK = 3, 8  # octaves on which structure is compared, and px, side of the blocks it is in
PROBE = 16  # latents, side of the window on which the need of memory is found


MEMINFO = Path("/proc/meminfo")  # of Linux


class Window(NamedTuple):
    """A part of the latents, and which part of the picture made of it is looked at."""

    latents: tuple[slice, slice]
    inner: tuple[slice, slice]  # px, of what the decoder makes of these latents
    pixels: tuple[slice, slice]  # the same px, of the whole picture


@torch.inference_mode(False)
@torch.enable_grad()
def refine(
    latents: Tensor,
    plain: Tensor,
    picture: Tensor,
    step_q: int,
    effort: int,
    coder: EntropyModel,
    eye: Encoder,
    decoder: Decoder,
    most_bytes: int,
    on_step: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.int32] | None:
    """The symbols of the best picture that an effort finds, or None if it finds none.

    Args:
        latents: [1, 4, h, w] float32 in SD scale, the encoder's.
        plain: [1, 4, h, w], what a file without effort holds of them.
        picture: [1, 3, H, W] in [-1, 1], on the decoder's device.
        step_q: quantiser step in 1/1024.
        effort: 1..9: how many of `STAGES` to go through.
        coder: one without a trellis.
        eye: an encoder whose features the picture should keep.
        decoder: `decoder.Decoder`; only its output counts, and its gradient.
        most_bytes: of the payload.
        on_step: called after each step with its number and that of all.
    Returns: [4, h, w] int32. Their payload is no larger than allowed and their picture, by
        `distortion`, better than that of the plain latents.
    Raises: OutOfMemory if the memory does not suffice.
    """
    best: npt.NDArray[np.int32] | None = None
    try:
        search = _Descent(latents.clone(), picture.clone(), step_q, coder, eye, decoder, most_bytes)
        check_memory(eye, decoder, search.windows)
        least = search.distortion_of(plain)
        for stage, steps in enumerate(STAGES[:effort]):
            for done in range(steps):
                search.step(done / steps)
                if on_step:
                    on_step(sum(STAGES[:stage]) + done + 1, sum(STAGES[:effort]))
            found = search.fitting_symbols()
            if found is None:
                continue
            reached = search.distortion_of(from_symbols(found, step_q, coder))
            if reached < least:
                best, least = found, reached
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise OutOfMemory(f"the memory does not suffice for --effort {effort}: use 0") from exc
    return best


def distortion(rebuilt: Tensor, original: Tensor, eye: Encoder, features: Tensor) -> Tensor:
    """How far a picture is from another, summed over its pixels; two [1, 3, H, W] in [-1, 1].

    The squared error of pixels; that of an encoder's features, which are given for the original;
    and what is lost of contrast and structure in 8x8 blocks of three octaves (the second term of
    SSIM, Wang et al. 2004), which keeps texture that the error alone blurs.
    """
    pixels = original[0, 0].numel()
    total = F.mse_loss(rebuilt, original)
    total = total + LIKENESS * F.mse_loss(eye.features(pad(rebuilt)), features)
    for scale in range(SCALES):
        if scale:
            rebuilt, original = F.avg_pool2d(rebuilt, 2), F.avg_pool2d(original, 2)
        if min(original.shape[-2:]) < BLOCK:
            break
        total = total + STRUCTURE / SCALES * (1 - _structure(rebuilt, original).mean())
    return total * pixels


def _structure(one: Tensor, two: Tensor) -> Tensor:
    """SSIM's contrast and structure term of overlapping blocks."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, BLOCK, BLOCK // 2)

    mean_one, mean_two = mean(one), mean(two)
    variances = mean(one * one) - mean_one**2 + mean(two * two) - mean_two**2
    covariance = mean(one * two) - mean_one * mean_two
    constant = 2 * 0.03**2 * 2  # SSIM's second, for values of a range of 2
    return (2 * covariance + constant) / (variances + constant)


class _Descent:
    """The state of a descent: latents in units of symbols, and the weight of the rate."""

    def __init__(
        self,
        latents: Tensor,
        picture: Tensor,
        step_q: int,
        coder: EntropyModel,
        eye: Encoder,
        decoder: Decoder,
        most_bytes: int,
    ) -> None:
        self.picture, self.step_q, self.coder = picture, step_q, coder
        self.eye, self.decoder = eye, decoder
        self.unit = step_q / STEP_UNIT
        self.most_bytes = most_bytes
        self.weight = RATE_WEIGHT * self.unit**2
        self.latents = (latents.float().nan_to_num(0) / self.unit).detach().requires_grad_()
        self.optimizer = torch.optim.Adam([self.latents], betas=(0.9, 0.99))
        self.windows = list(windows(picture.shape[-2], picture.shape[-1], side_of(decoder)))
        with torch.no_grad():
            seen = [pad(picture[(..., *window.pixels)]) for window in self.windows]
            self.aims = [eye.features(part) for part in seen]

    def symbols(self) -> npt.NDArray[np.int32]:
        """The present latents, rounded."""
        return to_symbols(self.latents.detach() * self.unit, self.step_q, self.coder)

    def fitting_symbols(self) -> npt.NDArray[np.int32] | None:
        """The same, some of them rounded to the cheaper side until the payload fits, or None.

        Those first of which a bit less moves the latents least.
        """
        symbols = self.symbols()
        excess = 8 * (len(self.coder.encode(symbols, self.step_q)) - self.most_bytes)
        below, here, above = self.coder.bits_near(symbols, self.step_q)
        offset = self.latents.detach()[0].cpu().numpy() - symbols
        change = np.where(offset > 0, 1, -1)
        saved = here - np.where(offset > 0, above, below)
        saved -= change * self.coder.context_slopes(symbols, self.step_q)
        price = np.where(saved > 0, (1 - 2 * np.abs(offset)) / np.maximum(saved, 1e-6), np.inf)
        order = np.argsort(price, axis=None, kind="stable")[: int((saved > 0).sum())]
        total = np.cumsum(saved.ravel()[order])
        for share in EXCESS:
            chosen = order[: np.searchsorted(total, share * excess)]
            fitting = symbols.copy()
            fitting.ravel()[chosen] += change.ravel()[chosen]
            if len(self.coder.encode(fitting, self.step_q)) <= self.most_bytes:
                return fitting
        return None

    @torch.no_grad()
    def distortion_of(self, latents: Tensor) -> float:
        """The distortion of the picture that latents are decoded to."""
        latents = latents.to(self.picture.device)
        return sum(self._distortion(latents, i).item() for i in range(len(self.windows)))

    def _distortion(self, latents: Tensor, number: int) -> Tensor:
        """The distortion of one of the windows."""
        window, aim = self.windows[number], self.aims[number]
        rebuilt = self.decoder(latents[(..., *window.latents)])[(..., *window.inner)].clamp(-1, 1)
        return distortion(rebuilt, self.picture[(..., *window.pixels)], self.eye, aim)

    def step(self, progress: float) -> None:
        """Move the latents once; progress is that within the stage, 0 to 1."""
        sharpness = SOFTEST + (HARDEST - SOFTEST) * progress
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
        symbols = self.symbols()
        below, here, above = torch.from_numpy(self.coder.bits_near(symbols, self.step_q)).to(
            self.latents.device
        )
        self.weight *= math.exp(GAIN * (here.sum().item() / (8 * self.most_bytes) - 1))
        rounded = soft_round(self.latents, sharpness)
        self.optimizer.zero_grad(set_to_none=True)
        # the decoder's part first, window by window: what it keeps for the gradient is freed
        leaf = rounded.detach().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        for number in range(len(self.windows)):
            self._distortion(leaf * self.unit, number).backward()
        offset = leaf.detach()[0] - torch.from_numpy(symbols).to(leaf)
        slope = torch.where(offset > 0, above - here, here - below)
        slope += torch.from_numpy(self.coder.context_slopes(symbols, self.step_q)).to(slope)
        rounded.backward(leaf.grad + self.weight * slope)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()


def soft_round(values: Tensor, sharpness: float) -> Tensor:
    """Round softly: the identity for a sharpness near 0, true rounding for an infinite one."""
    middle = values.detach().floor() + 0.5
    return middle + torch.tanh(sharpness * (values - middle)) / (2 * math.tanh(sharpness / 2))


def side_of(decoder: Decoder) -> int:
    """The side in latents of a decoder's windows: with their margins they are within its tile."""
    return decoder.tile // 2


def windows(height: int, width: int, side: int) -> Iterator[Window]:
    """Windows of at most side x side latents, as equal as can be, of a picture of that size."""
    for top, bottom in _spans(height, side):
        for left, right in _spans(width, side):
            spans = []
            for first, last, pixels in ((top, bottom, height), (left, right, width)):
                begin = max(0, first - MARGIN)
                end = min(-(-pixels // PATCH), last + MARGIN)
                start, stop = first * PATCH, min(last * PATCH, pixels)
                inner = slice(start - begin * PATCH, stop - begin * PATCH)
                spans.append((slice(begin, end), inner, slice(start, stop)))
            yield Window(*zip(*spans, strict=True))


def _spans(pixels: int, side: int) -> Iterator[tuple[int, int]]:
    length = -(-pixels // PATCH)
    count = -(-length // side)
    bounds = [i * length // count for i in range(count + 1)]
    return pairwise(bounds)


def check_memory(eye: Encoder, decoder: Decoder, windows: list[Window]) -> None:
    """Raise OutOfMemory if the largest window's gradient takes more memory than is free.

    What is kept for the gradient of a small window tells what a large one takes.
    """
    device = next(decoder.parameters()).device
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    probe = torch.zeros(1, 4, PROBE, PROBE, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        eye.features(decoder(probe))
    parameters = *eye.parameters(), *decoder.parameters()
    own = {parameter.data_ptr() for parameter in parameters}
    bytes_each = sum(n for place, n in kept.items() if place not in own) / PROBE**2
    largest = max(math.prod(s.stop - s.start for s in one.latents) for one in windows)
    need, free = 1.5 * bytes_each * largest, free_memory(device)
    if need > free:
        raise OutOfMemory(
            f"--effort needs about {need / 1e9:.1f} GB of memory with this decoder and "
            f"{free / 1e9:.1f} GB are free: use --effort 0, or a smaller decoder"
        )


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
    return math.inf

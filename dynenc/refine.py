"""Latents that a decoder turns into a better picture, in no more bytes: what `--effort` buys.

The encoder's latents are moved by gradient descent through the decoder (as Campos et al., "Content
Adaptive Optimization for Neural Image Compression", 2019). Rounding is within the loop: it is soft
at the beginning of a stage and hard at its end (Agustsson and Theis, "Universally Quantized Neural
Compression", 2020). The rate is that of the coder's own tables, together with what a latent costs
its neighbours, in whose contexts it is; its weight is moved until the file is as large as it may
be.

Soft rounding leaves latents halfway, and what they are rounded to at last is not the best there is.
So a search goes on from it, by changes of single symbols by one (iterated conditional modes, Besag,
"On the Statistical Analysis of Dirty Pictures", 1986). A change is seen close by only, so one is
tried in every neighbourhood at once, that which the gradient promises most of; those that keep it
stay. What is returned is the best of what was coded and decoded for true.

Least squares alone would blur, and exploit the decoder. So the picture should also have the same
features as the original, by an encoder: those of deep networks tell what eyes see better than
pixels do (Johnson et al., "Perceptual Losses for Real-Time Style Transfer", 2016).

An effort is that of one less and a further, longer stage of both, and there is no chance in it: a
higher effort never gives a worse picture, and on one machine the same picture gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.coding.entropy import EntropyModel, Floats, Index, Ints
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.errors import OutOfMemory
from dynenc.imaging.image import pad
from dynenc.latent_space import SD1
from dynenc.networks.encoder import Encoder

if TYPE_CHECKING:
    from dynenc.networks.external_vae import Decoder

STAGES = (3, 4, 6, 9, 13, 20, 30, 45, 70)  # steps of descent that each effort adds ...
ROUNDS = (2, 2, 3, 5, 7, 10, 15, 23, 35)  # ... and rounds of search
LEARNING_RATE = 0.3  # symbols; of Adam, at the beginning of a stage; falls to 0 along a cosine
SOFTEST, HARDEST = 1.0, 13.0  # sharpness of the rounding at the two ends of a stage
RATE_WEIGHT = 0.2  # distortion that a bit is worth at a step of 1 latent, to begin with
GAIN = 3.0  # of the rate's weight's logarithm, for the share by which the file is too large
EXCESS = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0)  # of the bits too many, to be saved by cheaper rounding
NEAR = 2  # latents to each side by which a change is judged, and where no other one is tried
HALF = 0.5  # symbols by which latents are moved to see how the gradient changes
MARGIN = 12  # latents decoded around a window, so that its edge is as it is within the whole
STRUCTURE = 0.0185  # weight of the lost structure beside the squared error
LIKENESS = 4.0  # weight of the squared error of an encoder's features
SCALES, BLOCK = 3, 8  # octaves on which structure is compared, and px, side of the blocks it is in
PROBE = 16  # latents, side of the window on which the need of memory is found


MEMINFO = Path("/proc/meminfo")  # of Linux


class Window(NamedTuple):
    """A part of the latents, and which part of the picture made of it is looked at."""

    latents: tuple[slice, slice]
    patches: tuple[slice, slice]  # those of them whose pixels are looked at
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
) -> Ints | None:
    """The symbols of the best picture that an effort finds, or None if it finds none.

    Args:
        latents: [1, 4, h, w] float32 in SD scale, the encoder's.
        plain: [1, 4, h, w], what a file without effort holds of them.
        picture: [1, 3, H, W] in [-1, 1], on the decoder's device.
        step_q: quantiser step in 1/1024.
        effort: 1..9: how many of `STAGES` and `ROUNDS` to go through.
        coder: one without a trellis.
        eye: an encoder whose features the picture should keep.
        decoder: `decoder.Decoder`; only its output counts, and its gradient.
        most_bytes: of the payload.
        on_step: called after each step and round with its number and that of all.
    Returns: [4, h, w] int32. Their payload is no larger than allowed and their picture, by
        `distortion`, better than that of the plain latents.
    Raises: OutOfMemory if the memory does not suffice.
    """
    best: Ints | None = None
    every, done = sum(STAGES[:effort]) + sum(ROUNDS[:effort]), 0

    def tell(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if on_step:
            on_step(done, every)

    try:
        state = _State(latents.clone(), picture.clone(), step_q, coder, eye, decoder, most_bytes)
        check_memory(eye, decoder, state.windows)
        least = state.errors(plain).sum()
        for steps, rounds in zip(STAGES[:effort], ROUNDS, strict=False):
            for number in range(steps):
                state.step(number / steps)
                tell()
            found = state.fitting_symbols()
            if found is None:
                tell(rounds)
                continue
            found, reached = state.searched(found, rounds, tell)
            if reached < least:
                best, least = found, reached
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise OutOfMemory(
            f"there is not enough memory for effort {effort}", hint="use --effort 0"
        ) from exc
    return best


def distortion(rebuilt: Tensor, original: Tensor, eye: Encoder, features: Tensor) -> Tensor:
    """How far a picture is from another, summed over the pixels of each patch: [H/8, W/8].

    The squared error of pixels; that of an encoder's features, which are given for the original;
    and what is lost of contrast and structure in 8x8 blocks of three octaves (the second term of
    SSIM, Wang et al. 2004), which keeps texture that the error alone blurs.

    Args:
        rebuilt, original: [1, 3, H, W] in [-1, 1].
        features: those that the eye has of the original, once padded.
    """

    def by_patch(errors: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        return F.adaptive_avg_pool2d(errors.mean(1), (height, width))[0]

    total = by_patch((pad(rebuilt) - pad(original)).square())
    total = total + LIKENESS * by_patch((eye.features(pad(rebuilt)) - features).square())
    for scale in range(SCALES):
        if scale:
            rebuilt, original = F.avg_pool2d(rebuilt, 2), F.avg_pool2d(original, 2)
        if min(original.shape[-2:]) < BLOCK:
            break
        total = total + STRUCTURE / SCALES * by_patch(1 - _structure(rebuilt, original))
    return total * SD1.patch**2


def _structure(one: Tensor, two: Tensor) -> Tensor:
    """SSIM's contrast and structure term of overlapping blocks."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, BLOCK, BLOCK // 2)

    mean_one, mean_two = mean(one), mean(two)
    variances = mean(one * one) - mean_one**2 + mean(two * two) - mean_two**2
    covariance = mean(one * two) - mean_one * mean_two
    constant = 2 * 0.03**2 * 2  # SSIM's second, for values of a range of 2
    return (2 * covariance + constant) / (variances + constant)


class _State:
    """What an effort has reached: latents in units of symbols, and the weight of the rate."""

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

    def symbols(self) -> Ints:
        """The present latents, rounded."""
        return to_symbols(self.latents.detach() * self.unit, self.step_q, self.coder)

    def fitting_symbols(self) -> Ints | None:
        """The same, some of them rounded to the cheaper side until the payload fits, or None.

        Those first of which a bit less moves the latents least.
        """
        symbols = self.symbols()
        excess = 8 * (len(self.coder.encode(symbols, self.step_q)) - self.most_bytes)
        _, more, less = self._bits(symbols)
        offset = self.latents.detach()[0].cpu().numpy() - symbols
        change = np.where(offset > 0, 1, -1)
        saved = -np.where(offset > 0, more, less)
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

    def _bits(self, symbols: Ints) -> tuple[Floats, Floats, Floats]:
        """What symbols cost, and what one more and one less of each adds, its neighbours' too."""
        below, here, above = self.coder.bits_near(symbols, self.step_q)
        others = self.coder.context_slopes(symbols, self.step_q)
        return here, above - here + others, below - here - others

    def errors(self, latents: Tensor) -> Floats:
        """The distortion of what latents [1, 4, h, w] in SD scale are decoded to: [h, w]."""
        return self._errors(latents.to(self.latents) / self.unit)

    def _slopes(self, latents: Tensor) -> tuple[Floats, Tensor]:
        """The distortion of latents in symbols, [h, w], and its gradient [1, 4, h, w]."""
        leaf = latents.detach().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        return self._errors(leaf), leaf.grad

    def _errors(self, latents: Tensor) -> Floats:
        """The distortion of latents in symbols; its gradient is added to theirs if they have one.

        Window by window, so that what each keeps for the gradient is freed.
        """
        found = np.empty(latents.shape[-2:], np.float32)
        for window, aim in zip(self.windows, self.aims, strict=True):
            with torch.set_grad_enabled(latents.requires_grad):
                part = latents[(..., *window.latents)] * self.unit
                rebuilt = self.decoder(part)[(..., *window.inner)].clamp(-1, 1)
                errors = distortion(rebuilt, self.picture[(..., *window.pixels)], self.eye, aim)
            if latents.requires_grad:
                errors.sum().backward()
            found[window.patches] = errors.detach().cpu().numpy()
        return found

    def step(self, progress: float) -> None:
        """Move the latents once; progress is that within the stage, 0 to 1."""
        sharpness = SOFTEST + (HARDEST - SOFTEST) * progress
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
        symbols = self.symbols()
        bits, more, less = self._bits(symbols)
        n_bits = torch.from_numpy(bits).sum().item()
        self.weight *= math.exp(GAIN * (n_bits / (8 * self.most_bytes) - 1))
        rounded = soft_round(self.latents, sharpness)
        self.optimizer.zero_grad(set_to_none=True)
        _, slopes = self._slopes(rounded)
        offset = rounded.detach()[0].cpu().numpy() - symbols
        slope = torch.from_numpy(np.where(offset > 0, more, -less)).to(slopes)
        rounded.backward(slopes + self.weight * slope)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def searched(self, symbols: Ints, rounds: int, tell: Callable[[], None]) -> tuple[Ints, float]:
        """Symbols whose payload fits -> the best that are found near them, and their distortion."""
        errors, slopes = self._seen(symbols)
        best, least = symbols, errors.sum()
        weight = self.weight
        curvature = self._curvature(symbols, slopes)
        doubts = np.zeros((2 * SD1.channels, *errors.shape), np.float32)  # of one more, of one less
        for _ in range(rounds):
            _, more, less = self._bits(symbols)
            bits = np.float32(weight) * np.concatenate([more, less])
            expected: Floats = np.concatenate([slopes, -slopes]) + curvature / np.float32(2) + bits
            tried = _lowest(expected + doubts)
            near = _sum_near(self._errors(self._on_device(_changed(symbols, *tried))) - errors)
            found = near[tried[1:]] + bits[tried]
            doubts[tried] = np.maximum(found - expected[tried], 0)
            symbols = _changed(symbols, *(indices[found < 0] for indices in tried))
            errors, slopes = self._seen(symbols)
            n_bytes = len(self.coder.encode(symbols, self.step_q))
            weight *= math.exp(GAIN * (n_bytes / self.most_bytes - 1))
            if n_bytes <= self.most_bytes and errors.sum() < least:
                best, least = symbols, errors.sum()
            tell()
        return best, least

    def _seen(self, symbols: Ints) -> tuple[Floats, Floats]:
        """The distortion of symbols, [h, w], and its gradient [4, h, w]."""
        errors, slopes = self._slopes(self._on_device(symbols))
        return errors, slopes[0].cpu().numpy()

    def _curvature(self, symbols: Ints, slopes: Floats) -> Floats:
        """By how much the gradient of a channel grows if a symbol does, at the mean: [8, 1, 1]."""
        signs = np.random.default_rng(0).choice(np.array([-HALF, HALF], np.float32), symbols.shape)
        _, moved = self._seen(symbols + signs)
        means = ((moved - slopes) / signs).mean((1, 2), keepdims=True)
        curvature: Floats = np.concatenate([means, means]).clip(0)
        return curvature

    def _on_device(self, symbols: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(symbols)[None].to(self.latents)


def _changed(symbols: Ints, kinds: Index, rows: Index, columns: Index) -> Ints:
    """Symbols [4, h, w] with changes at some places: of a kind 0..3 one more, of 4..7 one less."""
    changed = symbols.copy()
    changed[kinds % SD1.channels, rows, columns] += np.where(kinds < SD1.channels, 1, -1).astype(
        np.int32
    )
    return changed


def _lowest(costs: Floats) -> tuple[Index, Index, Index]:
    """Kind, row and column of the costs [kinds, h, w] below 0 that are the lowest near them."""
    kinds = costs.argmin(0)
    lowest = torch.from_numpy(costs.min(0))
    near = -F.max_pool2d(-lowest[None], 2 * NEAR + 1, 1, NEAR)[0]
    rows, columns = np.nonzero(((lowest == near) & (lowest < 0)).numpy())
    return kinds[rows, columns], rows, columns


def _sum_near(errors: Floats) -> Floats:
    """Sums over what is near each place: [h, w] -> the same."""
    sums = F.avg_pool2d(torch.from_numpy(errors)[None], 2 * NEAR + 1, 1, NEAR, divisor_override=1)
    found: Floats = sums[0].numpy()
    return found


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
                end = min(-(-pixels // SD1.patch), last + MARGIN)
                start, stop = first * SD1.patch, min(last * SD1.patch, pixels)
                inner = slice(start - begin * SD1.patch, stop - begin * SD1.patch)
                spans.append((slice(begin, end), slice(first, last), inner, slice(start, stop)))
            yield Window(*zip(*spans, strict=True))


def _spans(pixels: int, side: int) -> Iterator[tuple[int, int]]:
    length = -(-pixels // SD1.patch)
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
            f"the effort needs about {need / 1e9:.1f} GB of memory with this decoder and "
            f"{free / 1e9:.1f} GB are free",
            hint="use --effort 0 or a smaller decoder",
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

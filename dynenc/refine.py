"""Refinement (`--effort`): latents that decode to a better image in no more bytes.

The encoder's latents are moved by gradient descent through the decoder (Campos et al., "Content
Adaptive Optimization for Neural Image Compression", 2019). Rounding is part of the loop: soft at
the start of a stage and hard at its end (Agustsson and Theis, "Universally Quantized Neural
Compression", 2020). The rate comes from the coder's own tables, including the cost of a latent to
its neighbours through their contexts; its weight is adjusted until the file has the allowed size.

Soft rounding leaves latents halfway between symbols, and rounding them is not optimal. So the
descent is followed by a search that changes single symbols by one (iterated conditional modes,
Besag, "On the Statistical Analysis of Dirty Pictures", 1986). A change affects only its
neighbourhood, so the change that the gradient predicts to be best is tried in all neighbourhoods at
once, and those that help are kept. The result is the best of the candidates that were actually
coded and decoded.

An effort consists of the stages of the effort below it and one longer stage. It is deterministic:
a higher effort never gives a worse image, and on one machine the same image always gives the same
file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc import registry
from dynenc.coding.bit_costs import bit_costs, context_gradient
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import to_symbols
from dynenc.coding.rate_control import OnStep
from dynenc.distortion import Distortion, Window
from dynenc.errors import OutOfMemory
from dynenc.native.kernel import Floats, Index, Symbols
from dynenc.networks.perceptual_network import PerceptualNetwork

if TYPE_CHECKING:
    from dynenc.networks.tiling import TiledDecoder

DESCENT_STEPS = (3, 4, 6, 9, 13, 20, 30, 45, 70)  # steps of descent that each effort adds ...
SEARCH_ROUNDS = (2, 2, 3, 5, 7, 10, 15, 23, 35)  # ... and rounds of search
LEARNING_RATE = 0.3  # symbols; of Adam, at the start of a stage; falls to 0 along a cosine
MEAN_DECAY, SQUARE_DECAY, TINY = 0.9, 0.99, 1e-8  # of Adam
SOFTEST, HARDEST = 1.0, 13.0  # sharpness of the rounding at the start and end of a stage
RATE_WEIGHT = 0.2  # initial distortion per bit at a step of 1 latent unit
GAIN = 3.0  # change of the log of the rate weight per relative excess of the file size
EXCESS = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0)  # multiples of the excess bits to save by rounding
NEAR = 2  # latents to each side that a change affects, within which no other change is tried
PROBE_STEP = 0.5  # symbols by which latents are moved to estimate the curvature
PROBE_SIDE = 16  # latents; side of the window on which memory use is measured
MEMINFO = Path("/proc/meminfo")  # of Linux

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refiner:
    """Refines the latents of a file with an effort of 1 to 9.

    Refined files use the plain lattice of the full coder, because the descent itself chooses the
    rounding.
    """

    perceptual: PerceptualNetwork  # its features measure similarity; see distortion.py
    decoder: TiledDecoder  # its output is compared with the image
    effort: int  # number of DESCENT_STEPS and SEARCH_ROUNDS to run
    on_step: OnStep | None = None  # called after each step and round

    @torch.inference_mode(False)
    @torch.enable_grad()
    def refine(
        self, file: LatFile, latents: Tensor, image: Tensor, max_bytes: float = math.inf
    ) -> LatFile:
        """The file with the best image found, or the same file if none is better.

        Args:
            file: made from the latents.
            latents: [1, C, h, w] float32, from the encoder.
            image: [1, 3, H, W] in [-1, 1], on the decoder's device.
            max_bytes: limit for the refined file; if infinite or below the size of the file, that
                size is the limit.
        Raises: OutOfMemory.
        """
        full = registry.full_coder(file.model).name
        header, coder = file.header, load_coder(full, has_trellis=False)
        max_payload = len(file.payload)
        if math.isfinite(max_bytes):
            max_payload += max(0, int(max_bytes) - len(file.to_bytes()))
        try:
            distortion = Distortion(
                image.clone(), latents, file.step, self.perceptual, self.decoder
            )
            check_memory(self.perceptual, self.decoder, distortion.windows, latents.shape[1])
            start = torch.from_numpy(file.latents)[None].to(image)
            search = _Search(distortion, latents.clone(), header.step_q, coder, max_payload)
            before = float(distortion.of(start).sum())
            symbols, reached = self._best(search, before)
        except (torch.OutOfMemoryError, MemoryError) as exc:
            raise OutOfMemory(
                f"there is not enough memory for effort {self.effort}", hint="use --effort 0"
            ) from exc
        logger.info("effort %d: %.1f %% less distortion", self.effort, 100 * (1 - reached / before))
        if symbols is None:
            return file
        size = header.size
        return LatFile.from_symbols(symbols, coder, size, header.step_q, file.model, file.chunks)

    def _best(self, search: _Search, least: float) -> tuple[Symbols | None, float]:
        """The best symbols of all stages and their distortion; None if not below `least`."""
        best: Symbols | None = None
        total, done = sum(DESCENT_STEPS[: self.effort]) + sum(SEARCH_ROUNDS[: self.effort]), 0

        def advance(steps: int = 1) -> None:
            nonlocal done
            done += steps
            if self.on_step:
                self.on_step(done, total)

        for steps, rounds in zip(DESCENT_STEPS[: self.effort], SEARCH_ROUNDS, strict=False):
            for number in range(steps):
                search.descend(number / steps)
                advance()
            symbols = search.fitting_symbols()
            if symbols is None:
                advance(rounds)
                continue
            symbols, reached = search.improve(symbols, rounds, advance)
            if reached < least:
                best, least = symbols, reached
        return best, least


class _Search:
    """The state of a refinement: latents in units of the step, and the weight of the rate."""

    def __init__(
        self,
        distortion: Distortion,
        latents: Tensor,
        step_q: int,
        coder: EntropyCoder,
        max_bytes: int,
    ) -> None:
        self.distortion, self.step_q, self.coder = distortion, step_q, coder
        self.step = distortion.step
        self.max_bytes = max_bytes
        self.weight = RATE_WEIGHT * self.step**2
        self.latents = (latents.float().nan_to_num(0) / self.step).detach().requires_grad_()
        self.mean, self.square = torch.zeros_like(self.latents), torch.zeros_like(self.latents)
        self.n_steps = 0

    def symbols(self) -> Symbols:
        """The current latents, rounded."""
        latents = (self.latents.detach() * self.step)[0].cpu().numpy()
        return to_symbols(latents, self.step_q, self.coder)

    def n_bytes(self, symbols: Symbols) -> int:
        """Payload size of symbols."""
        return len(self.coder.encode(symbols, self.step_q))

    def fitting_symbols(self) -> Symbols | None:
        """The latents, some rounded to the cheaper side so that the payload fits; None if not.

        These are the ones that move the latents least per bit saved.
        """
        symbols = self.symbols()
        excess = 8 * (self.n_bytes(symbols) - self.max_bytes)
        _, more, less = self._bits(symbols)
        offset = self.latents.detach()[0].cpu().numpy() - symbols
        change = np.where(offset > 0, 1, -1)
        saved = -np.where(offset > 0, more, less)
        price = np.where(saved > 0, (1 - 2 * np.abs(offset)) / np.maximum(saved, 1e-6), np.inf)
        order = np.argsort(price, axis=None, kind="stable")[: int((saved > 0).sum())]
        total = np.cumsum(saved.ravel()[order])
        for share in EXCESS:
            chosen = order[: prefix_reaching(total, share * excess)]
            fitting = symbols.copy()
            fitting.ravel()[chosen] += change.ravel()[chosen]
            if self.n_bytes(fitting) <= self.max_bytes:
                return fitting
        return None

    def descend(self, progress: float) -> None:
        """Move the latents by one step of Adam; `progress` within the stage is 0 to 1."""
        sharpness = SOFTEST + (HARDEST - SOFTEST) * progress
        symbols = self.symbols()
        bits, more, less = self._bits(symbols)
        n_bits = torch.from_numpy(bits).sum().item()
        self.weight *= math.exp(GAIN * (n_bits / (8 * self.max_bytes) - 1))
        rounded = soft_round(self.latents, sharpness)
        self.latents.grad = None
        _, gradient = self._with_gradient(rounded)
        offset = rounded.detach()[0].cpu().numpy() - symbols
        rate_gradient = torch.from_numpy(np.where(offset > 0, more, -less)).to(gradient)
        # of a number, as `backward` of a tensor imports sympy, which changes the warning filters
        (rounded * (gradient + self.weight * rate_gradient)).sum().backward()
        self._move(LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress)))

    @torch.no_grad()
    def _move(self, rate: float) -> None:
        """One step of Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015).

        `torch.optim` would import torch's compiler, which changes the host's environment.
        """
        gradient = self.latents.grad
        assert gradient is not None
        self.n_steps += 1
        self.mean.lerp_(gradient, 1 - MEAN_DECAY)
        self.square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
        spread = self.square.sqrt() / (1 - SQUARE_DECAY**self.n_steps) ** 0.5 + TINY
        step = rate / (1 - MEAN_DECAY**self.n_steps)
        self.latents.addcdiv_(self.mean, spread, value=-step)

    def improve(
        self, symbols: Symbols, rounds: int, advance: Callable[[], None]
    ) -> tuple[Symbols, float]:
        """Search near symbols whose payload fits; return the best found and their distortion."""
        errors, gradient = self._at_symbols(symbols)
        best, least = symbols, float(errors.sum())
        weight = self.weight
        curvature = self._curvature(symbols, gradient)
        # how much worse than predicted a rejected change was: [kinds, h, w]
        penalties = np.zeros((2 * len(symbols), *errors.shape), np.float32)
        for _ in range(rounds):
            _, more, less = self._bits(symbols)
            bits = np.float32(weight) * np.concatenate([more, less])
            by_change = np.concatenate([gradient, -gradient])
            predicted: Floats = by_change + curvature / np.float32(2) + bits
            tried = _local_minima(predicted + penalties)
            after = self._errors(_changed(symbols, *tried))
            actual = _sum_near(after - errors)[tried[1:]] + bits[tried]
            penalties[tried] = np.maximum(actual - predicted[tried], 0)
            symbols = _changed(symbols, *(indices[actual < 0] for indices in tried))
            errors, gradient = self._at_symbols(symbols)
            n_bytes = self.n_bytes(symbols)
            weight *= math.exp(GAIN * (n_bytes / self.max_bytes - 1))
            if n_bytes <= self.max_bytes and float(errors.sum()) < least:
                best, least = symbols, float(errors.sum())
            advance()
        return best, least

    def _bits(self, symbols: Symbols) -> tuple[Floats, Floats, Floats]:
        """Bits of symbols, and the change for each plus or minus one, including neighbours."""
        below, here, above = bit_costs(self.coder, symbols, self.step_q)
        others = context_gradient(self.coder, symbols, self.step_q)
        return here, above - here + others, below - here - others

    def _errors(self, symbols: npt.NDArray[Any]) -> Floats:
        """The distortion of symbols: [h, w]."""
        return self.distortion.of(self._on_device(symbols) * self.step)

    def _at_symbols(self, symbols: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """The distortion of symbols, [h, w], and its gradient [C, h, w]."""
        errors, gradient = self._with_gradient(self._on_device(symbols))
        return errors, gradient[0].cpu().numpy()

    def _with_gradient(self, latents: Tensor) -> tuple[Floats, Tensor]:
        """The distortion of latents in units of the step, [h, w], and its gradient [1, C, h, w]."""
        errors, gradient = self.distortion.with_gradient(latents * self.step)
        return errors, gradient * self.step

    def _curvature(self, symbols: Symbols, gradient: Floats) -> Floats:
        """Mean second derivative of the distortion by the symbols of a channel: [2C, 1, 1]."""
        choices = np.array([-PROBE_STEP, PROBE_STEP], np.float32)
        moves = np.random.default_rng(0).choice(choices, symbols.shape)
        _, moved = self._at_symbols(symbols + moves)
        means = ((moved - gradient) / moves).mean((1, 2), keepdims=True)
        curvature: Floats = np.concatenate([means, means]).clip(0)
        return curvature

    def _on_device(self, symbols: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(symbols)[None].to(self.latents)


def _changed(symbols: Symbols, kinds: Index, rows: Index, columns: Index) -> Symbols:
    """Symbols [C, h, w] with changes: the first C kinds add one to a channel, others take one."""
    channels = len(symbols)
    changed = symbols.astype(np.int32)
    signs = np.where(kinds < channels, 1, -1).astype(np.int32)
    changed[kinds % channels, rows, columns] += signs
    return changed


def _local_minima(costs: Floats) -> tuple[Index, Index, Index]:
    """Kind, row and column of the negative costs [kinds, h, w] that are lowest nearby."""
    kinds = costs.argmin(0)
    lowest = torch.from_numpy(costs.min(0))
    near = -F.max_pool2d(-lowest[None], 2 * NEAR + 1, 1, NEAR)[0]
    rows, columns = np.nonzero(((lowest == near) & (lowest < 0)).numpy())
    return kinds[rows, columns], rows, columns


def _sum_near(errors: Floats) -> Floats:
    """Sums over the neighbourhood of each position: [h, w] -> [h, w]."""
    sums = F.avg_pool2d(torch.from_numpy(errors)[None], 2 * NEAR + 1, 1, NEAR, divisor_override=1)
    found: Floats = sums[0].numpy()
    return found


def prefix_reaching(total: Floats, wanted: float) -> int:
    """How many savings, given by their cumulative sums, reach what is wanted; all if none do."""
    return min(int(np.searchsorted(total, wanted)) + 1, len(total)) if wanted > 0 else 0


def soft_round(values: Tensor, sharpness: float) -> Tensor:
    """Soft rounding: close to the identity at low sharpness, close to rounding at high."""
    middle = values.detach().floor() + 0.5
    return middle + torch.tanh(sharpness * (values - middle)) / (2 * math.tanh(sharpness / 2))


def check_memory(
    perceptual: PerceptualNetwork, decoder: TiledDecoder, windows: list[Window], channels: int
) -> None:
    """Raise OutOfMemory if the targets and the largest window's gradient need more than is free.

    This is extrapolated from a small window, and what autograd keeps for it.

    Args:
        channels: of the latents.
    """
    device = next(decoder.parameters()).device
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    shape = (1, channels, PROBE_SIDE, PROBE_SIDE)
    probe = torch.zeros(shape, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoded = decoder(probe)
        features = perceptual(decoded)
    parameters = *perceptual.parameters(), *decoder.parameters()
    own = {parameter.data_ptr() for parameter in parameters}
    bytes_each = sum(n for place, n in kept.items() if place not in own) / PROBE_SIDE**2
    largest = max(_area(one.latents) for one in windows)
    target_bytes = sum(tensor.nbytes for tensor in (decoded, *features)) / PROBE_SIDE**2
    targets = target_bytes * sum(_area(one.patches) for one in windows)
    need, free = 1.5 * bytes_each * largest + targets, free_memory(device)
    if need > free:
        raise OutOfMemory(
            f"the effort needs about {need / 1e9:.1f} GB of memory with this decoder and "
            f"{free / 1e9:.1f} GB are free",
            hint="use --effort 0 or a smaller decoder",
        )


def _area(sides: tuple[slice, slice]) -> int:
    return math.prod(side.stop - side.start for side in sides)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be allocated; infinite if the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
    return math.inf

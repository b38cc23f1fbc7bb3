"""Rate control: the target for a file, and the quantiser step that meets it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from dynenc.arguments import checked_number
from dynenc.errors import TargetMissed, UsageError

START_STEP_Q = 307
FINEST_STEP_Q, COARSEST_STEP_Q = 16, 65_535  # finer steps cost bits and change no pixel
TOLERANCE = 0.005  # of the target: the search ends when it is this close
MISS = 0.03  # of the target: a larger deviation is reported
LAYER_MISS = 0.08  # the same where a layer is all of the image: its quality has coarser steps
UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DEFAULT_QUALITY = 50.0
OnStep = Callable[[int, int], None]  # steps of an effort that are done, and of all
IMPORT_QUALITY = 80.0  # of imported latents and of caches, which people keep for training


@dataclass(frozen=True, slots=True)
class Goal:
    """The target for a file: a quality, a size or a PSNR."""

    kind: Literal["quality", "bpp", "bytes", "dB"] = "quality"
    value: float = DEFAULT_QUALITY
    strict: bool = False  # a missed target is an error

    def is_missed(self, reached: float, miss: float = MISS) -> bool:
        """Whether a target was missed; for `miss` see `note`."""
        short = self.kind == "dB" and reached < self.value
        is_far = abs(reached - self.value) > miss * self.value
        return self.kind != "quality" and (short or is_far)

    def note(self, reached: float, miss: float = MISS) -> str:
        """A message for the user if the target was missed, else ""; raises TargetMissed.

        Args:
            miss: share of the target by which it may be missed.
        """
        if not self.is_missed(reached, miss):
            return ""
        message = f"target {self.value:.5g} {self.kind} not reached, closest is {reached:.5g}"
        if self.strict:
            raise TargetMissed(message, hint="leave out --strict to write that file")
        return message


def goal(
    quality: float | None = None,
    *,
    target_bpp: float | None = None,
    target_size: int | str | None = None,
    target_psnr: float | None = None,
    strict: bool = False,
) -> Goal:
    """The goal of the one argument that is given; quality 50 if none is.

    Args:
        quality: 0..100; see `quantize.quality_to_step`.
        target_bpp: bits per pixel, of the whole file.
        target_size: bytes of the whole file, or a text such as "5KB"; see `parse_size`.
        target_psnr: dB, of the decoded image.
        strict: raise TargetMissed if the target is missed by more than MISS.
    Raises: UsageError if several are given, quality is not within 0..100, a target is not
        positive and finite, or strict comes without a target.
    """
    goals = [
        Goal("quality", checked_number("quality", quality)) if quality is not None else None,
        Goal("bpp", checked_number("target_bpp", target_bpp)) if target_bpp is not None else None,
        Goal("bytes", parse_size(target_size)) if target_size is not None else None,
        Goal("dB", checked_number("target_psnr", target_psnr)) if target_psnr is not None else None,
    ]
    given = [one for one in goals if one is not None]
    if len(given) > 1:
        raise UsageError(
            "quality and the targets of bpp, size and PSNR cannot be combined",
            hint="give one of --quality, --target-bpp, --target-size and --target-psnr",
        )
    chosen = given[0] if given else Goal()
    if chosen.kind == "quality" and not 0 <= chosen.value <= 100:
        raise UsageError(f"quality {chosen.value:g} is not within 0..100")
    if chosen.kind != "quality" and not 0 < chosen.value < math.inf:
        raise UsageError(
            f"target {chosen.value:g} {chosen.kind} is not a positive and finite number"
        )
    if strict and chosen.kind == "quality":
        raise UsageError(
            "strict has no effect without a target",
            hint="add --target-size, --target-bpp or --target-psnr, or leave out --strict",
        )
    return replace(chosen, strict=strict)


def parse_size(text: int | str) -> int:
    """Bytes of "5000", "5KB" (5,000), "5KiB" (5,120) or "1.5 MB"; raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) *([KMG]?I?B|)", str(text).strip(), re.I)
    is_huge = match is not None and not math.isfinite(float(match[1]) * UNITS["GIB"])
    if match is None or match[2].upper() not in UNITS or is_huge:
        raise UsageError(
            f"{text!r} is not a size: write bytes, or a number with KB, KiB, MB or MiB"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


class Found(NamedTuple):
    """A quantiser step and its measure."""

    step_q: int
    reached: float


def search(measure: Callable[[int], float], target: float, *, at_most: bool) -> Found:
    """The quantiser step whose measure is nearest to a target, on the allowed side of it.

    Args:
        measure: a non-increasing function of step_q, of FINEST_STEP_Q..COARSEST_STEP_Q: size in
            bytes or bpp, or PSNR in dB.
        target: in the unit of `measure`.
        at_most: whether the measure may not exceed the target; else it may not fall below it.
    Returns: if no step is on the allowed side, the nearest.
    """
    tried: dict[int, float] = {}
    low = high = 0  # bracket: coarsest step above the target, finest step below; 0: unknown
    step = START_STEP_Q
    while step not in tried:
        tried[step] = reached = measure(step)
        gap = target - reached if at_most else reached - target
        if 0 <= gap <= TOLERANCE * target:
            return Found(step, reached)
        if reached > target:
            low = step
        else:
            high = step
        step = round(math.sqrt(low * high)) if low and high else 2 * low or high // 2
        step = min(max(step, FINEST_STEP_Q), COARSEST_STEP_Q)
    allowed = [s for s in tried if (tried[s] <= target if at_most else tried[s] >= target)]
    step = min(allowed or tried, key=lambda s: (abs(tried[s] - target), s if at_most else -s))
    return Found(step, tried[step])

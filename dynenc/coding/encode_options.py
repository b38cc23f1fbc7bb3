"""How an image becomes a .lat file: the options of encoding, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dynenc.arguments import checked_integer
from dynenc.coding import rate_control
from dynenc.coding.rate_control import Goal
from dynenc.errors import UsageError

DetailMode = Literal["auto", "on", "off"]  # how text and graphics are kept: imaging.detail_plan
DETAIL_MODES: tuple[DetailMode, ...] = get_args(DetailMode)
MAX_EFFORT = 9  # see refine.py


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How an image becomes a .lat file."""

    goal: Goal = field(default_factory=Goal)
    effort: int = 0  # 0..MAX_EFFORT
    detail: DetailMode = "auto"
    keep_metadata: bool = False  # see imaging.metadata

    @property
    def needs_decoder(self) -> bool:
        """Whether encoding decodes: to refine the latents, or to measure the PSNR."""
        return self.effort > 0 or self.goal.kind == "dB"

    @classmethod
    def from_arguments(
        cls,
        *,
        quality: float | None = None,
        target_bpp: float | None = None,
        target_size: int | str | None = None,
        target_psnr: float | None = None,
        strict: bool = False,
        effort: int = 0,
        detail: DetailMode = "auto",
        keep_metadata: bool = False,
    ) -> EncodeOptions:
        """Check the arguments of `Codec.encode`, which documents them. Raises: UsageError."""
        if not isinstance(detail, str) or detail not in DETAIL_MODES:
            raise UsageError(f"unknown detail {detail!r}: choose one of {', '.join(DETAIL_MODES)}")
        return cls(
            goal=rate_control.goal(
                quality,
                target_bpp=target_bpp,
                target_size=target_size,
                target_psnr=target_psnr,
                strict=strict,
            ),
            effort=checked_integer("effort", effort, 0, MAX_EFFORT),
            detail=detail,
            keep_metadata=keep_metadata,
        )

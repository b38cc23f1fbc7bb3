"""Check whether an existing .lat file is what a run would write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from dynenc.coding import bitstream, entropy, rate_control
from dynenc.coding.bitstream import Header
from dynenc.coding.encode_latents import was_encoded_at
from dynenc.coding.encode_options import DetailMode
from dynenc.coding.lat_file import LatFile
from dynenc.coding.rate_control import Goal
from dynenc.imaging import detail
from dynenc.io import storage
from dynenc.io.storage import Readable


@dataclass(frozen=True, slots=True)
class ExistingLat:
    """An existing .lat file; no more of it is read than needed."""

    header: Header
    n_bytes: int
    parse: Callable[[], LatFile]  # reads the rest

    @classmethod
    def open(cls, file: Readable, n_bytes: int, *, whole: bool) -> ExistingLat:
        """Read the header, and with `whole` check the rest. Raises: BitstreamError."""

        def read_rest() -> bytes:
            return storage.read_at_most(file, bitstream.MAX_FILE_BYTES, "the output")

        if whole:
            start = read_rest()
            header = bitstream.read(start, sys.maxsize).header
        else:
            start = file.read(bitstream.FIXED_BYTES)
            header = bitstream.read_header(start)

        @cache
        def parse() -> LatFile:
            blob = start if whole else start + read_rest()
            return LatFile.parse(blob, max_pixels=sys.maxsize)

        return cls(header, n_bytes, parse)

    def meets(self, goal: Goal) -> bool:
        """Whether it meets the goal, as far as can be told: PSNR would need decoding."""
        header, n_bytes = self.header, self.n_bytes
        if goal.kind == "quality" and header.step_q == rate_control.COARSEST_STEP_Q:
            return detail.file_quality(self.parse()) == round(goal.value)
        if goal.kind == "quality":
            return was_encoded_at(header, goal.value, self.parse)
        if goal.kind == "dB":
            return False
        bpp = bitstream.bpp(n_bytes, *header.size)
        reached = bpp if goal.kind == "bpp" else n_bytes
        miss = rate_control.LAYER_MISS if self._is_all_layer else rate_control.MISS
        if not goal.is_missed(reached, miss):
            return True
        return not goal.strict and self._is_nearest(goal, reached)

    @property
    def _is_all_layer(self) -> bool:
        return self.header.step_q == rate_control.COARSEST_STEP_Q and detail.is_whole(self.parse())

    def _is_nearest(self, goal: Goal, reached: float) -> bool:
        """Whether no other step comes nearer to a target of size, which none may exceed."""
        if reached < goal.value:
            is_close = goal.value - reached < entropy.WORD * reached / self.n_bytes
            if self._is_all_layer:
                return is_close or detail.file_quality(self.parse()) == 100
            return is_close or self.header.step_q == rate_control.FINEST_STEP_Q
        file = self.parse()
        return not file.symbols.any() and not detail.has_layer(file)

    def may_have(self, mode: DetailMode) -> bool:
        """Whether the detail mode could have written it: "off" writes no detail layer."""
        has_chunks = bool(self.header.flags & bitstream.HAS_CHUNKS)
        return mode != "off" or not (has_chunks and detail.has_layer(self.parse()))

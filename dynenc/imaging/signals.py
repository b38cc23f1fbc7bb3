"""Colours described by numbers instead of an ICC profile: CICP, gAMA and cHRM.

The numbers become an ICC profile of three curves and a matrix, which LittleCMS applies.
Sources: ITU-T H.273 (code points), PNG third edition, ITU-R BT.2100 (PQ, HLG), BT.2408 (white of
203 cd/m2), ICC.1:2001 (version 2 profiles).
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dynenc.imaging.notes import note

Doubles = npt.NDArray[np.float64]
Chromaticities = tuple[float, ...]  # x and y of white, red, green, blue

D65 = (0.3127, 0.3290)
SRGB = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
UNSPECIFIED = 2
WHITE = 203.0  # cd/m2, of HDR
N_POINTS = 4096  # of a curve
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
D50 = np.array([0.9642, 1.0, 0.8249])


def _srgb(v: Doubles) -> Doubles:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _pq(v: Doubles) -> Doubles:
    power = v ** (32 / 2523)
    light = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
    return 10_000 / WHITE * light ** (8192 / 1305)


def _hlg(v: Doubles) -> Doubles:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12)
    return 1000 / WHITE * scene**1.2


def _power(exponent: float) -> Callable[[Doubles], Doubles]:
    return lambda v: v**exponent


# BT.709 and related curves are treated as sRGB, as in viewers
TRANSFERS: dict[int, Callable[[Doubles], Doubles]] = dict.fromkeys((1, 2, 6, 13, 14, 15), _srgb)
TRANSFERS |= {4: _power(2.2), 5: _power(2.8), 8: _power(1.0), 16: _pq, 18: _hlg}
HDR = {16: "PQ", 18: "HLG"}


def of_cicp(primaries: int, transfer: int) -> bytes:
    """The profile for code points of ITU-T H.273, b"" for sRGB; notes unknown ones."""
    if primaries == UNSPECIFIED:
        primaries = 1
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        note(f"colours of CICP {primaries}/{transfer} are unknown, and taken as sRGB")
        return b""
    if transfer in HDR:
        note(f"HDR ({HDR[transfer]}) is reduced to standard range, and highlights are clipped")
    if primaries == 1 and TRANSFERS[transfer] is _srgb:
        return b""
    return _profile(PRIMARIES[primaries], TRANSFERS[transfer])


def of_png(gamma: Any, chromaticity: Any) -> bytes:
    """The profile for gAMA and cHRM of a PNG file, as returned by Pillow; b"" for sRGB."""
    points = chromaticity if isinstance(chromaticity, tuple) else SRGB
    is_srgb = max(abs(a - b) for a, b in zip(points, SRGB, strict=True)) < 0.002
    transfer: Callable[[Doubles], Doubles] = _srgb
    if not isinstance(gamma, float):
        pass
    elif not 0.05 <= gamma <= 5:
        note(f"a gamma of {gamma:g} is invalid, and ignored")
        return b""
    elif abs(gamma - 1 / 2.2) >= 0.01:
        transfer = _power(1 / gamma)
    if is_srgb and transfer is _srgb:
        return b""
    try:
        return _profile(points, transfer)
    except (ValueError, np.linalg.LinAlgError, ZeroDivisionError, FloatingPointError):
        note("the chromaticities are invalid, and ignored")
        return b""


def _xyz(x: float, y: float) -> Doubles:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _profile(points: Chromaticities, transfer: Callable[[Doubles], Doubles]) -> bytes:
    """An ICC profile, version 2, of curves and a matrix; raises ValueError."""
    white = _xyz(*points[:2])
    columns = np.stack([_xyz(*points[i : i + 2]) for i in (2, 4, 6)], 1)
    to_xyz = columns * np.linalg.solve(columns, white)
    scale = (BRADFORD @ D50) / (BRADFORD @ white)
    to_d50 = np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ to_xyz
    if not np.isfinite(to_d50).all() or abs(to_d50).max() > 4:
        raise ValueError("no such colours")
    light = transfer(np.linspace(0, 1, N_POINTS)).clip(0, 1)
    curve = b"curv\0\0\0\0" + struct.pack(">I", N_POINTS)
    curve += (light * 65_535).round().astype(">u2").tobytes()

    def xyz(values: Doubles) -> bytes:
        return b"XYZ \0\0\0\0" + (values * 65_536).round().astype(">i4").tobytes()

    text = b"text\0\0\0\0none\0\0\0\0"
    named = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"CICP\0" + bytes(79)
    tags = {b"desc": named, b"cprt": text, b"wtpt": xyz(D50)}
    tags |= {b"rXYZ": xyz(to_d50[:, 0]), b"gXYZ": xyz(to_d50[:, 1]), b"bXYZ": xyz(to_d50[:, 2])}
    start = 128 + 4 + 12 * (len(tags) + 3)
    table, data = b"", b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value
    for tag in (b"rTRC", b"gTRC", b"bTRC"):  # one curve for all
        table += tag + struct.pack(">II", start + len(data), len(curve))
    body = struct.pack(">I", len(tags) + 3) + table + data + curve
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + xyz(D50)[8:]
    return head.ljust(128, b"\0") + body

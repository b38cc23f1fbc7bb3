"""The size and depth that a JPEG XL file declares (ISO/IEC 18181-1, SizeHeader, ImageMetadata).

The Pillow plugin decodes all pixels when it opens a file, so the size is read here first.
"""

CODESTREAM = b"\xff\x0a"
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, from 1
LONG_SIDES = (9, 13, 18, 30)  # bits of a side, by selector


class _Bits:
    """Bits of a byte string, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "little")

    def take(self, n_bits: int) -> int:
        taken = self.value & ((1 << n_bits) - 1)
        self.value >>= n_bits
        return taken


def declared_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in px of a JPEG XL file that starts with `head`; None if unknown."""
    bits = _header(head)
    return _size(bits) if bits else None


def depth(head: bytes) -> int:
    """Bits per sample of a JPEG XL file that starts with `head`; 8 if unknown."""
    bits = _header(head)
    if bits is None:
        return 8
    _size(bits)
    if bits.take(1):  # all values are the defaults
        return 8
    if bits.take(1):  # extra fields
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # for display
        if bits.take(1):
            return 8  # a preview, whose header is too long to be worth reading
        if bits.take(1):  # an animation: ticks a second, their divisor, loops, time codes
            for lengths in ((0, 0, 10, 30), (0, 0, 8, 10), (0, 3, 16, 32)):
                bits.take(lengths[bits.take(2)])
            bits.take(1)
    is_float = bits.take(1)
    fixed = (32, 16, 24) if is_float else (8, 10, 12)
    selector = bits.take(2)
    return fixed[selector] if selector < 3 else 1 + bits.take(6)


def _header(head: bytes) -> _Bits | None:
    """The header of the codestream; None if it is too short for a size."""
    if not head.startswith(CODESTREAM):
        head = _codestream(head)
    if not head.startswith(CODESTREAM) or len(head) < 12:
        return None
    return _Bits(head[2:64])


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bool(bits.take(1))
    height = _side(bits, is_small)
    ratio = bits.take(3)
    if ratio == 0:
        return _side(bits, is_small), height
    across, down = RATIOS[ratio - 1]
    return height * across // down, height


def _side(bits: _Bits, is_small: bool) -> int:
    if is_small:
        return 8 * (1 + bits.take(5))
    return 1 + bits.take(LONG_SIDES[bits.take(2)])


def _codestream(head: bytes) -> bytes:
    """The codestream in a file of boxes, as far as it is in `head`; b"" if it starts later."""
    position = 0
    while position + 16 <= len(head):
        length, kind = (
            int.from_bytes(head[position : position + 4], "big"),
            head[position + 4 :][:4],
        )
        start = position + 8
        if length == 1:
            length = int.from_bytes(head[start : start + 8], "big")
            start += 8
        if kind == b"jxlc":
            return head[start:]
        if kind == b"jxlp":
            return head[start + 4 :]
        if length < 8:
            return b""
        position += length
    return b""

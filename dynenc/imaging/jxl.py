"""The size that a JPEG XL file declares (ISO/IEC 18181-1, SizeHeader).

The plugin for Pillow decodes all pixels when it opens a file, so the size is read here before.
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
    """Width and height in px of a JPEG XL file that begins like this; None if it does not tell."""
    if not head.startswith(CODESTREAM):
        head = _codestream(head)
    if not head.startswith(CODESTREAM) or len(head) < 12:
        return None
    bits = _Bits(head[2:12])
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
    """What a file in boxes holds of its codestream, b"" if that begins later."""
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

"""EXIF: read, cleaned and written without interpretation, so that its bytes are preserved.

A block of EXIF is edited in place, so that kept values keep their offsets. Thus text in any
encoding, private tags, and maker notes, which contain offsets, survive.
"""

import struct
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dynenc.imaging import ifd
from dynenc.imaging.ifd import Entry, Node, Structure

PREFIX = b"Exif\0\0"
ORIENTATION, SOFTWARE = 0x0112, 0x0131
SIDEWAYS = range(5, 9)  # orientations that exchange width and height
X_RESOLUTION, Y_RESOLUTION = 0x011A, 0x011B
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003  # of the EXIF directory
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
XMP, IPTC, ICC_PROFILE = 0x02BC, 0x83BB, 0x8773  # in TIFF files
# Tags of the first directory that describe the storage of the pixels in the original file and their
# conversion to colours. All other tags are kept.
DROPPED_TAGS = {
    *(0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0107, 0x0108, 0x0109, 0x010A),
    *(0x0111, 0x0115, 0x0116, 0x0117, 0x0118, 0x0119, 0x011C, 0x0120, 0x0121, 0x0122, 0x0123),
    *(0x0124, 0x0125, 0x012D, 0x013D, 0x013E, 0x013F, 0x0140, 0x0141, 0x0142, 0x0143, 0x0144),
    *(0x0145, 0x0146, 0x0147, 0x0148, 0x014A, 0x014C, 0x014D, 0x014E, 0x0150, 0x0152, 0x0153),
    *(0x0154, 0x0155, 0x0156, 0x015B, 0x0200, 0x0201, 0x0202, 0x0203, 0x0205, 0x0206, 0x0207),
    *(0x0208, 0x0209, 0x0211, 0x0212, 0x0213, 0x0214),
    *(XMP, ICC_PROFILE),
}


def orientation(block: bytes) -> int | None:
    """The EXIF orientation, 1 to 8; None if there is none or it cannot be read."""
    block = block.removeprefix(PREFIX)
    try:
        structure = Structure.of(block[:16])
        entries = structure.directory(_reader(block), structure.first)[0]
    except ValueError:
        return None
    found = [structure.integers(_reader(block), e, 1) for e in entries if e.tag == ORIENTATION]
    value = found[0][0] if found and found[0] else 0
    return value if 1 <= value <= 8 else None


def cleaned(block: bytes, width: int, height: int, *, is_upright: bool) -> tuple[bytes, list[int]]:
    """EXIF for width x height pixels, independent of their original file.

    The thumbnail, the `DROPPED_TAGS` and, if the pixels are upright, the orientation are removed
    and their values zeroed; width and height are set to those of the pixels, and if these have been
    turned sideways, the resolutions are exchanged. Everything else keeps its bytes and offsets.

    Returns: the block without its prefix, b"" if nothing is left, and the damaged tags that were
        dropped.
    Raises: ValueError if it is not EXIF.
    """
    data = bytearray(block.removeprefix(PREFIX))
    dropped_tags = DROPPED_TAGS | {ORIENTATION} if is_upright else DROPPED_TAGS
    return _Cleaner(data, dropped_tags).run(width, height)


class _Cleaner:
    """Cleans one block of EXIF in place."""

    def __init__(self, data: bytearray, unwanted: set[int]) -> None:
        self.data = data
        self.unwanted = unwanted
        self.is_sideways = ORIENTATION in unwanted and orientation(bytes(data)) in SIDEWAYS
        self.structure = Structure.of(bytes(data[:16]))
        if self.structure.is_big:
            raise ValueError("it is damaged")
        self.kept: list[tuple[int, int]] = [(0, 8)]  # spans: start and stop
        self.erased: list[tuple[int, int]] = []
        self.damaged: list[int] = []
        self.tables: list[tuple[int, int]] = []  # spans of directories, and of the header
        self.unreadable: set[int] = set()  # positions of entries that do not point to a directory
        self.n_kept = 0

    def run(self, width: int, height: int) -> tuple[bytes, list[int]]:
        self.tables.append((0, 8))
        self._survey(self.structure.first, 0)
        self._thumbnail()
        self._directory(self.structure.first, {"width": width, "height": height}, 0)
        if not self.n_kept:
            return b"", self.damaged
        data = np.frombuffer(self.data, np.uint8)
        kept = _marked(self.kept, len(data))
        data[_marked(self.erased, len(data)) & ~kept] = 0
        end = int(np.flatnonzero(kept | (data != 0))[-1]) + 1
        return data[:end].tobytes(), self.damaged

    def _thumbnail(self) -> None:
        """Mark the directory of the thumbnail and its data as erased."""
        read_at = _reader(self.data)
        following = self.structure.directory(read_at, self.structure.first)[2]
        try:
            entries = self.structure.directory(read_at, following)[0] if following else []
        except ValueError:
            return
        numbers = {e.tag: self.structure.integers(read_at, e, 1) for e in entries}
        self.erased += [(e.position, e.position + 12) for e in entries]
        self.erased += [e.span for e in entries]
        start, length = (numbers.get(t) for t in (THUMBNAIL_OFFSET, THUMBNAIL_LENGTH))
        if start and length:
            self.erased.append((start[0], start[0] + length[0]))

    def _survey(self, start: int, depth: int) -> None:
        """Find this directory and those below it; raises ValueError if they overlap."""
        entries, damaged, _ = self.structure.directory(_reader(self.data), start)
        span = start, start + 2 + 12 * (len(entries) + len(damaged)) + 4
        if self._overlaps_a_table(span):
            raise ValueError("directories overlap")
        self.tables.append(span)
        followed = set()
        for entry in entries:
            if entry.tag in followed:
                self.unreadable.add(entry.position)
            elif entry.tag in ifd.POINTERS[depth]:
                followed.add(entry.tag)
                try:
                    [below] = self.structure.integers(_reader(self.data), entry, 1)
                    self._survey(below, depth + 1)
                except ValueError:
                    self.unreadable.add(entry.position)

    def _overlaps_a_table(self, span: tuple[int, int]) -> bool:
        return any(span[0] < stop and start < span[1] for start, stop in self.tables)

    def _is_damaged(self, entry: Entry) -> bool:
        """Whether it does not point to a directory, or its values overlap one."""
        if entry.position in self.unreadable:
            return True
        return not entry.is_inline and self._overlaps_a_table(entry.span)

    def _directory(self, start: int, size: dict[str, int], depth: int) -> None:
        """Clean a directory and those below it."""
        read_at = _reader(self.data)
        entries, damaged, _ = self.structure.directory(read_at, start)
        n_before = len(entries) + len(damaged)
        self.damaged += [tag for tag in damaged if depth or tag not in self.unwanted]
        kept: list[Entry] = []
        for entry in entries:
            if depth == 0 and entry.tag in self.unwanted:
                self.erased.append(entry.span)
                continue
            if self._is_damaged(entry):
                self.damaged.append(entry.tag)
                continue
            if entry.tag in ifd.POINTERS[depth]:
                [below] = self.structure.integers(read_at, entry, 1)
                self._directory(below, size, depth + 1)
            else:
                self.n_kept += 1
            kept.append(entry)
            if not entry.is_inline:
                self.kept.append(entry.span)
        for entry in kept:
            if depth and entry.tag in (PIXEL_WIDTH, PIXEL_HEIGHT):
                self._set(entry, size["width" if entry.tag == PIXEL_WIDTH else "height"])
        if depth == 0 and self.is_sideways:
            self._exchange_resolutions(kept)
        raw = b"".join(bytes(self.data[e.position : e.position + 12]) for e in kept)
        end = start + 2 + 12 * n_before + 4
        table = struct.pack(self.structure.order + "H", len(kept)) + raw
        self.data[start:end] = table.ljust(end - start, b"\0")
        self.kept.append((start, start + len(table) + 4))

    def _exchange_resolutions(self, entries: list[Entry]) -> None:
        places = {entry.tag: entry.position for entry in entries}
        if X_RESOLUTION in places and Y_RESOLUTION in places:
            across, down = (
                slice(places[tag] + 2, places[tag] + 12) for tag in (X_RESOLUTION, Y_RESOLUTION)
            )
            self.data[across], self.data[down] = self.data[down], self.data[across]

    def _set(self, entry: Entry, value: int) -> None:
        letter = {ifd.SHORT: "H", ifd.LONG: "I"}.get(entry.kind)
        if letter and entry.count == 1 and value < 1 << 8 * entry.n_bytes:
            struct.pack_into(self.structure.order + letter, self.data, entry.start, value)


def with_software(block: bytes, software: str) -> bytes:
    """A block from `cleaned`, or b"", with the name of the software that wrote the file.

    All directories except the first keep their offsets.
    """
    text = software.encode() + b"\0"
    node = Node(SOFTWARE, ifd.ASCII, len(text), text)
    if not block:
        return b"II*\0\x08\0\0\0" + ifd.written([node], 8, "<")
    structure = Structure.of(block[:16])
    order = structure.order
    start = len(block) + len(block) % 2
    entries = structure.directory(_reader(block), structure.first)[0]
    raw = {entry.tag: entry.raw for entry in entries}
    n_entries = len(raw.keys() | {SOFTWARE})
    where = start + 2 + 12 * n_entries + 4
    raw[SOFTWARE] = struct.pack(f"{order}HHII", SOFTWARE, ifd.ASCII, len(text), where)
    table = struct.pack(f"{order}H", n_entries) + b"".join(raw[tag] for tag in sorted(raw))
    head = block[:4] + struct.pack(f"{order}I", start)
    return (head + block[8:]).ljust(start, b"\0") + table + bytes(4) + text


def of_tiff(
    structure: Structure, read_at: ifd.ReadAt, start: int, most_bytes: int
) -> tuple[bytes, list[int]]:
    """The EXIF of a directory of a TIFF file as a block, and the tags that were dropped."""
    reader = ifd.Reader(structure, read_at, most_bytes)
    nodes = reader.tree(start, DROPPED_TAGS)
    order = structure.order
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + ifd.written(nodes, 8, order), reader.dropped


def into_tiff(file: bytes, block: bytes, more: list[Node]) -> bytes:
    """Add the entries of a block of EXIF, and more, to the directory of a TIFF file of one image.

    If both have a tag, that of the file is kept.
    """
    structure = Structure.of(file[:16])
    nodes = more
    if block:
        source = Structure.of(block[:16])
        found = ifd.Reader(source, _reader(block), len(block)).tree(source.first)
        nodes = [*(found if source.order == structure.order else map(ifd.swapped, found)), *more]
    own = structure.directory(_reader(file), structure.first)[0]
    added = {node.tag: node for node in nodes} | {
        entry.tag: Node(
            entry.tag, entry.kind, entry.count, _reader(file)(entry.start, entry.n_bytes)
        )
        for entry in own
    }
    start = len(file) + len(file) % 2
    head = file[:4] + struct.pack(f"{structure.order}I", start)
    return (head + file[8:]).ljust(start, b"\0") + ifd.written(
        added.values(), start, structure.order
    )


def _reader(data: bytes | bytearray) -> ifd.ReadAt:
    return lambda start, n_bytes: bytes(data[start : start + n_bytes])


def _marked(spans: Iterable[tuple[int, int]], size: int) -> npt.NDArray[np.bool_]:
    """Which of the first bytes are within spans (start, stop)."""
    edges = np.zeros(size + 1, np.int32)
    for start, stop in spans:
        edges[min(start, size)] += 1
        edges[min(stop, size)] -= 1
    return np.cumsum(edges[:-1]) > 0

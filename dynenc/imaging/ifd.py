"""Reading and writing directories of the TIFF structure (TIFF 6.0, section 2), also used by EXIF.

Values are never interpreted: their bytes are passed on unchanged.
"""

import struct
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

ReadAt = Callable[[int, int], bytes]  # offset, number of bytes -> bytes; fewer at the end

# bytes of one value of each type; 13 is a pointer to a directory, 16 to 18 are BigTIFF's
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
MAX_KIND = 13  # of what is not BigTIFF
RATIONALS = (5, 10)  # types of two integers of 4 bytes
BYTE, ASCII, SHORT, LONG = 1, 2, 3, 4  # types
EXIF, GPS, INTEROPERABILITY, SUB_IFDS = 0x8769, 0x8825, 0xA005, 0x014A
POINTERS = ({EXIF, GPS}, {INTEROPERABILITY}, set[int]())  # tags that point to directories, by depth
MAX_ENTRIES = 4096  # of a directory; written ones hold fewer than 100


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory."""

    tag: int
    kind: int  # type of the values
    count: int  # number of values
    position: int  # of the entry in the file
    start: int  # of the values in the file
    n_bytes: int  # of the values
    raw: bytes  # the entry itself, 12 bytes (BigTIFF: 20)

    @property
    def is_inline(self) -> bool:
        """Whether its values are in the entry itself."""
        return self.n_bytes <= (8 if len(self.raw) == 20 else 4)

    @property
    def span(self) -> tuple[int, int]:
        """Start and stop of its values."""
        return self.start, self.start + self.n_bytes


@dataclass(frozen=True, slots=True)
class Structure:
    """Byte order and variant of a TIFF structure, and the packing of its numbers."""

    order: str  # "<" or ">", as `struct` has it
    is_big: bool  # BigTIFF: offsets of 8 bytes
    first: int  # offset of the first directory

    def __post_init__(self) -> None:
        if self.first < 8:
            raise ValueError("it is damaged")

    @classmethod
    def of(cls, head: bytes) -> "Structure":
        """The structure declared by the first 16 bytes; raises ValueError if they are invalid."""
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise ValueError("it is damaged")
        version, first = struct.unpack_from(f"{order}HI", head, 2)
        if version == 42:
            return cls(order, False, first)
        if version == 43 and len(head) >= 16:
            return cls(order, True, struct.unpack_from(f"{order}Q", head, 8)[0])
        raise ValueError("it is damaged")

    def directory(self, read_at: ReadAt, start: int) -> tuple[list[Entry], list[int], int]:
        """A directory: its entries, the tags of damaged ones, and the offset of the next (or 0).

        Raises: ValueError if it is missing.
        """
        count_format, entry_format, offset_format = (
            ("Q", "HHQ8s", "Q") if self.is_big else ("H", "HHI4s", "I")
        )
        count_size = struct.calcsize(f"{self.order}{count_format}")
        try:
            (count,) = struct.unpack(self.order + count_format, read_at(start, count_size))
        except struct.error:
            raise ValueError("a directory is missing") from None
        entry = struct.Struct(self.order + entry_format)
        if count > MAX_ENTRIES:
            raise ValueError("a directory is damaged")
        position = start + count_size
        entries, damaged = [], []
        for _ in range(count):
            raw = read_at(position, entry.size)
            if len(raw) < entry.size:
                raise ValueError("a directory is cut short")
            tag, kind, n_values, value = entry.unpack(raw)
            n_bytes = SIZES.get(kind, 0) * n_values
            where = position + entry.size - len(value)
            if n_bytes > len(value):
                (where,) = struct.unpack(self.order + offset_format, value)
            is_there = n_bytes == 0 or len(read_at(where + n_bytes - 1, 1)) == 1
            if kind in SIZES and is_there:
                entries.append(Entry(tag, kind, n_values, position, where, n_bytes, raw))
            else:
                damaged.append(tag)
            position += entry.size
        offset = struct.Struct(self.order + offset_format)
        end = read_at(position, offset.size)
        return entries, damaged, offset.unpack(end)[0] if len(end) == offset.size else 0

    def integers(self, read_at: ReadAt, entry: Entry, most: int = 64) -> list[int]:
        """The values of an entry of integers, at most `most`; none if it has other values."""
        letters = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
        if entry.kind not in letters:
            return []
        size = SIZES[entry.kind]
        data = read_at(entry.start, size * min(entry.count, most))
        return list(struct.unpack(f"{self.order}{len(data) // size}{letters[entry.kind]}", data))


@dataclass(frozen=True, slots=True)
class Node:
    """An entry detached from its file: its values, or the directory it points to."""

    tag: int
    kind: int
    count: int
    data: bytes
    directory: tuple["Node", ...] | None = None


@dataclass(slots=True)
class Reader:
    """Reads directories with their values from a file, up to a number of bytes."""

    structure: Structure
    read_at: ReadAt
    most_bytes: int
    dropped: list[int] = field(default_factory=list)  # tags that are damaged or too large

    def tree(self, start: int, unwanted: Container[int] = (), depth: int = 0) -> tuple[Node, ...]:
        """A directory and those it points to; raises ValueError if it is missing."""
        nodes = []
        followed = set()  # a second pointer to the same kind of directory is damage
        entries, damaged, _ = self.structure.directory(self.read_at, start)
        self.dropped += [tag for tag in damaged if tag not in unwanted]
        for entry in entries:
            if entry.tag in unwanted:
                continue
            if entry.tag in followed:
                self.dropped.append(entry.tag)
            elif entry.tag in POINTERS[depth]:
                followed.add(entry.tag)
                try:
                    [below] = self.structure.integers(self.read_at, entry, 1)
                    directory = self.tree(below, (), depth + 1)
                except ValueError:
                    self.dropped.append(entry.tag)
                else:
                    nodes.append(Node(entry.tag, LONG, 1, b"", directory))
            elif entry.n_bytes > self.most_bytes or entry.kind > MAX_KIND:
                self.dropped.append(entry.tag)
            else:
                self.most_bytes -= entry.n_bytes
                data = self.read_at(entry.start, entry.n_bytes)
                nodes.append(Node(entry.tag, entry.kind, entry.count, data))
        return tuple(nodes)


def swapped(node: Node) -> Node:
    """An entry with its values in the other byte order."""
    if node.directory is not None:
        return replace(node, directory=tuple(map(swapped, node.directory)))
    unit = 4 if node.kind in RATIONALS else SIZES[node.kind]
    data = np.frombuffer(node.data, f"u{unit}").byteswap().tobytes() if unit > 1 else node.data
    return replace(node, data=data)


def written(nodes: Iterable[Node], base: int, order: str) -> bytes:
    """A directory, its values and those it points to, for the offset `base` of a file."""
    nodes = sorted(nodes, key=lambda node: node.tag)
    start = base + 2 + 12 * len(nodes) + 4
    table, values = struct.pack(f"{order}H", len(nodes)), b""
    for node in nodes:
        data = node.data
        where = start + len(values)
        if node.directory is not None:
            data = struct.pack(f"{order}I", where)
            values += written(node.directory, where, order)
        elif len(data) > 4:
            values += data + bytes(len(data) % 2)
            data = struct.pack(f"{order}I", where)
        table += struct.pack(f"{order}HHI", node.tag, node.kind, node.count) + data.ljust(4, b"\0")
    return table + bytes(4) + values

"""Properties of TIFF files that Pillow's TIFF plugin ignores."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from dynenc.errors import ImageError
from dynenc.imaging import exif, samples
from dynenc.imaging.ifd import Entry, Structure
from dynenc.imaging.notes import note

SUBFILE_TYPE, OLD_SUBFILE_TYPE, WIDTH, HEIGHT, BITS = 254, 255, 256, 257, 258
PHOTOMETRIC, PLANAR, SUB_IFDS, SAMPLE_FORMAT, SUBSAMPLING = 262, 284, 330, 339, 530
WHITE_IS_ZERO, YCBCR, SEPARATE_PLANES = 0, 6, 2  # values
UNSIGNED, SIGNED = 1, 2  # sample formats
REDUCED, MASK = 1, 4  # bits of the subfile type
MAX_PAGES = 1000  # that are examined


@dataclass(frozen=True, slots=True)
class Page:
    """A directory of a TIFF file, which describes one image."""

    offset: int
    kind: int  # subfile type
    width: int  # px
    height: int  # px
    below: tuple[int, ...] = ()  # offsets of the directories it points to

    @property
    def n_pixels(self) -> int:
        """Its size."""
        return self.width * self.height

    @property
    def is_whole(self) -> bool:
        """Whether it is neither a reduced copy nor a mask of another page."""
        return not self.kind & (REDUCED | MASK)


class Tiff:
    """The directories of a TIFF file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.structure = Structure.of(self._read_at(0, 16))

    def _read_at(self, offset: int, n_bytes: int) -> bytes:
        self.file.seek(min(offset, 2**62))
        return self.file.read(n_bytes)

    def pages(self) -> Iterator[Page]:
        """The pages in order, up to the first one that cannot be read."""
        offset, seen = self.structure.first, set[int]()
        while offset and offset not in seen and len(seen) < MAX_PAGES:
            seen.add(offset)
            try:
                page, offset = self._page(offset)
            except ValueError:
                return
            yield page

    def larger_below(self, page: Page) -> Page | None:
        """The largest image that a page points to, if it is larger than the page."""
        found = [page]
        for offset in page.below:
            try:
                found.append(self._page(offset)[0])
            except ValueError:
                continue
        largest = max((each for each in found if not each.kind & MASK), key=lambda p: p.n_pixels)
        return largest if largest.n_pixels > page.n_pixels else None

    def exif(self, offset: int, most_bytes: int) -> tuple[bytes, list[int]]:
        """The EXIF of a page as a separate block, and the tags that are dropped."""
        return exif.of_tiff(self.structure, self._read_at, offset, most_bytes)

    def _page(self, offset: int) -> tuple[Page, int]:
        """A page and the offset of the next, or 0; raises ValueError."""
        entries, _, following = self.structure.directory(self._read_at, offset)
        tags = {entry.tag: entry for entry in entries}

        def numbers(tag: int) -> list[int]:
            entry: Entry | None = tags.get(tag)
            return self.structure.integers(self._read_at, entry) if entry else []

        kind = (numbers(SUBFILE_TYPE) or [0])[0]
        if (numbers(OLD_SUBFILE_TYPE) or [0])[0] == 2:
            kind |= REDUCED
        width, height = ((numbers(tag) or [0])[0] for tag in (WIDTH, HEIGHT))
        return Page(offset, kind, width, height, tuple(numbers(SUB_IFDS))), following


def choose_page(image: TiffImageFile, tiff: Tiff) -> None:
    """Select the page with the image, not a reduced copy. Notes other pages, which are dropped.

    Raises: ImageError if Pillow cannot select that page.
    """
    pages = list(tiff.pages())
    if not pages:
        return
    number = next((i for i, page in enumerate(pages) if page.is_whole), 0)
    if larger := tiff.larger_below(pages[0]):
        raise ImageError(
            f"it has a larger image of {larger.width}x{larger.height} px that cannot be read, "
            f"besides this one of {pages[0].width}x{pages[0].height}: develop it or export it "
            "as PNG first"
        )
    if number:
        image.seek(number)
    n_others = sum(page.is_whole for page in pages) - 1
    if n_others > 0:
        note(f"pages after the first are dropped: {n_others}")


def refuse_unreadable(image: TiffImageFile) -> None:
    """Raise ImageError if Pillow would misread the samples of a page."""
    tags = image.tag_v2
    bits, is_raw = max(_all(tags.get(BITS, 1))), image.info.get("compression") == "raw"
    photometric = tags.get(PHOTOMETRIC)
    if tags.get(PLANAR) == SEPARATE_PLANES and bits > 8 and is_raw:
        raise ImageError("separate planes of more than 8 bits cannot be read: convert it to PNG")
    if SIGNED in _all(tags.get(SAMPLE_FORMAT, UNSIGNED)) and bits <= 8:
        raise ImageError("signed samples of 8 bits cannot be read: convert it to PNG")
    if photometric == YCBCR and is_raw and tuple(tags.get(SUBSAMPLING, (2, 2))) != (1, 1):
        raise ImageError("uncompressed subsampled YCbCr cannot be read: convert it to PNG")


def to_grey(image: TiffImageFile) -> Image.Image:
    """A loaded page of more than 8 bits per sample as L, following its tags; others unchanged."""
    if image.mode not in samples.MODES:
        return image
    tags = image.tag_v2
    bits, form = max(_all(tags.get(BITS, 1))), _all(tags.get(SAMPLE_FORMAT, UNSIGNED))[0]
    data = samples.values(image)
    if tags.prefix == b"MM" and image.info.get("compression") != "raw":
        if image.mode == "I" and bits == 16:  # libtiff has already swapped them
            data = data.astype(np.int16).byteswap()
        elif image.mode in ("I", "F"):
            data = data.byteswap()
    if form == UNSIGNED and bits == 32:
        data = data.view(np.uint32)
    top: float | tuple[float, ...] = ()
    if form == UNSIGNED and bits < 32:
        top = 2**bits - 1
    elif form == SIGNED and bits == 16:
        top = (255, 32_767)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        top = samples.white_level(data, top) if isinstance(top, tuple) else top
        data = top - data.astype(np.float64)
    grey = samples.reduced(data, top)
    grey.info = dict(image.info)
    return grey


def _all(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(value),)  # type: ignore[call-overload]

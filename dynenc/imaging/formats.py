"""The image file formats that are opened: an explicit list, independent of suffixes.

No file can start a program. Pillow plugins that do so (EPS runs Ghostscript), that open embedded
files with any plugin (IPTC), or that pass files to handlers of the host program (BUFR, GRIB, HDF5,
WMF) are not on the list. Formats of plugin packages are opened if the package is installed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image, ImageFile

from dynenc.errors import ImageError

FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "TGA", "QOI"),
    *("BLP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT"),
    *("MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PSD", "SGI", "SPIDER", "SUN", "XBM", "XPM"),
    "XVTHUMB",
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package that makes Pillow read and write one more format."""

    form: str  # Pillow's name of the format
    title: str
    package: str  # as pip knows it
    module: str
    suffixes: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether the package is installed; it is not imported."""
        return find_spec(self.module) is not None

    def load(self) -> bool:
        """Register the format with Pillow; False if the package is missing."""
        if self.form not in Image.OPEN:
            if not self.is_installed:
                return False
            module = import_module(self.module)
            if self.form == "HEIF":
                module.register_heif_opener()
        return True


HEIF = Plugin(
    "HEIF", "HEIC/HEIF", "pillow-heif", "pillow_heif", (".heic", ".heif", ".hif", ".heics")
)
JXL = Plugin("JXL", "JPEG XL", "pillow-jxl-plugin", "pillow_jxl", (".jxl",))
PLUGINS = (HEIF, JXL)
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

PROGRAM = "a program that is not run: convert it to PNG first"
SIGNATURES = {  # of files that are not opened: what they are, and why not
    b"%!PS": f"is PostScript, {PROGRAM}",
    b"\xc5\xd0\xd3\xc6": f"is EPS, {PROGRAM}",
    b"%PDF": "is a PDF document: convert its pages to PNG first",
    b"\x76\x2f\x31\x01": "is OpenEXR, which cannot be read: convert it to TIFF first",
    b"#?RADIANCE": "is Radiance HDR, which cannot be read: convert it to TIFF first",
    b"gimp xcf": "is a GIMP project, which cannot be read: export it as PNG first",
    b"<svg": "is SVG, which is not made of pixels: convert it to PNG first",
    b"<?xml": "is XML (SVG?), which is not made of pixels: convert it to PNG first",
    b"FUJIFILMCCD-RAW": "holds raw sensor data: develop it first",
    b"IIRO": "holds raw sensor data: develop it first",
    b"II\x1a\0\0\0HEAPCCDR": "holds raw sensor data: develop it first",
    b"II\xbc\x01": "is JPEG XR, which cannot be read: convert it to PNG first",
    b"\x89LAT": "is already a .lat file: decode it",
}
RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
OTHERS = (".eps", ".ps", ".pdf", ".svg", ".ai", ".exr", ".hdr", ".xcf", ".kra", ".psb", ".jxr")


class UnknownFormat(ImageError):
    """The file is in none of the supported formats."""


def open_file(file: BinaryIO, name: str = "the input") -> ImageFile.ImageFile:
    """Open an image file, without decoding pixels.

    Unlike `Image.open`, it only opens the formats listed here, and ignores Pillow's size limit: the
    caller checks the size.

    Args:
        file: seekable; it must stay open until the pixels are loaded.
        name: of the file, for messages.
    Raises: ImageError if the format is not supported; Pillow's exceptions if the file is damaged.
    """
    file.seek(0)
    head = file.read(64)
    for form in _candidates(head, name):
        factory, accepts = Image.OPEN[form]
        try:
            accepted = accepts is None or accepts(head[:16])
            if accepted and not isinstance(accepted, str):  # a str says what Pillow is missing
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as `Image.open` does: another format may fit
    raise UnknownFormat(f"{name} {_reason(head)}")


def open_as(form: str, file: BinaryIO) -> ImageFile.ImageFile:
    """Like `open_file`, for a file of one format of Pillow; raises Pillow's exceptions."""
    if form not in Image.OPEN:
        Image.init()
    opened: ImageFile.ImageFile = Image.OPEN[form][0](file, "")
    return opened


def _candidates(head: bytes, name: str) -> Iterator[str]:
    """The formats to try for a file that starts with `head`; plugins by its signature."""
    plugin = _plugin_for(head)
    if plugin is not None:
        if not plugin.load():
            raise ImageError(
                f"{name} is {plugin.title}, which needs a package: pip install {plugin.package}"
            )
        yield plugin.form
    Image.preinit()  # the most frequent; all of them take longer
    for form in FORMATS:
        if form not in Image.OPEN:
            Image.init()
        if form in Image.OPEN:
            yield form


def is_jxl(head: bytes) -> bool:
    """Whether a file that starts with `head` is JPEG XL."""
    return head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))


def _plugin_for(head: bytes) -> Plugin | None:
    if is_jxl(head):
        return JXL
    brands = head[8 : max(12, min(len(head), int.from_bytes(head[:4], "big")))]
    is_heif = head[4:8] == b"ftyp" and brands[:4] in HEIF_BRANDS
    return HEIF if is_heif and b"avi" not in brands else None


def _reason(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, reason in SIGNATURES.items():
        if start.startswith(signature):
            return reason
    return "is empty" if not head else "cannot be read as an image: no known format"


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of all files that can be opened, in lower case, with the dot."""
    Image.init()
    known = {s for s, form in Image.registered_extensions().items() if form in FORMATS}
    return frozenset(known.union(*(each.suffixes for each in PLUGINS if each.is_installed)))


def why_ignored(suffix: str) -> str | None:
    """Why image-like files with this suffix are not opened; None for all other suffixes."""
    suffix = suffix.lower()
    if suffix in suffixes():
        return None
    for plugin in PLUGINS:
        if suffix in plugin.suffixes:
            return f"pip install {plugin.package}"
    if suffix in RAW:
        return "raw sensor data: develop it first"
    return "convert it to PNG first" if suffix in OTHERS else None


def can_write(form: str) -> bool:
    """Whether Pillow, with the plugins that are installed, can write a format of that name."""
    for plugin in PLUGINS:
        if plugin.form == form:
            plugin.load()
    Image.init()
    return form in Image.SAVE


def writer_of(suffix: str) -> str | None:
    """Pillow's name of the format that files of a suffix are written in; None if there is none."""
    for plugin in PLUGINS:
        if suffix in plugin.suffixes:
            return plugin.form if plugin.load() else None
    form = Image.registered_extensions().get(suffix, "")
    return form if form in Image.SAVE and form != "ICNS" else None  # which has sizes of its own

"""A single HTML file that works offline and shows images beside their coded versions."""

import base64
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from dynenc.batch.plan import input_suffixes
from dynenc.codec import Codec
from dynenc.coding import bitstream, lat_file
from dynenc.coding.encode_options import DetailMode
from dynenc.coding.lat_file import LatFile
from dynenc.errors import BitstreamError, DynencError, ImageError, UsageError, with_name
from dynenc.evaluation import reference_codecs
from dynenc.evaluation.measure import Measure
from dynenc.imaging import detail, notes, pixels
from dynenc.imaging.sources import open_rgb

logger = logging.getLogger(__name__)

PLACEHOLDER = "<!--IMAGES-->"  # replaced in the template
MAX_PSNR = 99.99  # dB, for identical images: JSON has no infinity


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an image; compare.html reads the fields by these names."""

    name: str
    data: str  # URI of a PNG
    n_bytes: int | None = None  # of the coded file; None for the original
    bpp: float | None = None
    psnr_db: float | None = None
    ms_ssim: float | None = None  # None below 161 px
    lpips: float | None = None  # like the next two, None below 32 px or without weights
    lpips_vgg: float | None = None
    dists: float | None = None


@dataclass(frozen=True, slots=True)
class PageOptions:
    """The versions to make of each original, besides the given files.

    Args:
        qualities: for dynenc.
        codecs: other codecs with a quality, such as "jpeg:75".
        measure: has the perceptual distances to show.
        detail: for dynenc.
    """

    qualities: Sequence[float] = ()
    codecs: Sequence[str] = ()
    measure: Measure = field(default_factory=lambda: Measure({}))
    detail: DetailMode = "auto"


class CodedImage(NamedTuple):
    """A coded image."""

    name: str
    blob: bytes
    image: Image.Image
    layer: Image.Image | None = None  # the same, darkened outside the detail layer


class Comparison(NamedTuple):
    """An image, and the files that are compared with it."""

    original: Path
    versions: list[Path]


def match_versions(original: str, others: Sequence[str]) -> list[Comparison]:
    """Each original with its versions: the given files, or in folders the files of equal stem.

    Raises: UsageError if a folder is compared with a file or if two folders share no stem,
        ImageError if a folder has no image.
    """
    if not Path(original).is_dir():
        if folders := [name for name in others if Path(name).is_dir()]:
            raise UsageError(f"cannot compare the file {original} with the folder {folders[0]}")
        return [Comparison(Path(original), [Path(name) for name in others])]
    if single := [name for name in others if not Path(name).is_dir()]:
        raise UsageError(f"cannot compare the folder {original} with the file {single[0]}")
    suffixes = input_suffixes("encode")
    originals = sorted(p for p in Path(original).iterdir() if p.suffix.lower() in suffixes)
    if not originals:
        raise ImageError(f"{original} has no image")
    stems = {path.stem for path in originals}
    versions: dict[str, list[Path]] = {stem: [] for stem in stems}
    for folder in others:
        found = [p for p in sorted(Path(folder).iterdir()) if p.stem in stems]
        found = [p for p in found if p.suffix.lower() in suffixes | {bitstream.SUFFIX}]
        if not found:
            raise UsageError(f"no file in {folder} has the name of an image in {original}")
        for path in found:
            versions[path.stem].append(path)
    return [Comparison(path, versions[path.stem]) for path in originals]


def write(
    file: BinaryIO, comparisons: Sequence[Comparison], codec: Codec, options: PageOptions
) -> list[DynencError]:
    """Write the page image by image; return the errors of those that were skipped.

    Raises: UsageError, and the first error if no image is left.
    """
    codecs = [reference_codecs.parse(text) for text in options.codecs]
    page = resources("dynenc.evaluation").joinpath("compare.html").read_text("utf-8")
    head, tail = page.split(PLACEHOLDER)
    file.write(head.encode())
    errors: list[DynencError] = []
    for path, files in comparisons:
        try:
            with notes.logged(logger, path):
                original = open_rgb(path)
                coded = [
                    *_read(files, codec),
                    *_encode(original, codec, options),
                    *_encode_with_references(original, codecs),
                ]
                versions = _versions(original, coded, options)
        except (ImageError, BitstreamError) as exc:
            errors.append(exc)
            continue
        file.write(_script(path.name, original, versions))
    if len(errors) == len(comparisons):
        raise errors[0]
    file.write(tail.encode())
    return errors


def _versions(
    original: Image.Image, all_coded: Sequence[CodedImage], options: PageOptions
) -> list[Version]:
    versions = [Version("original", _uri(original))]
    figures_of = options.measure.against(original)
    for coded in all_coded:
        if coded.image.size != original.size:
            sizes = (f"{p.width}x{p.height}" for p in (coded.image, original))
            raise ImageError(
                f"{coded.name} and its original are {' and '.join(sizes)} px: "
                "they cannot be compared"
            )
        versions.append(_version(coded, figures_of(coded.image)))
        if coded.layer:
            versions.append(Version(f"{coded.name}: detail layer", _uri(coded.layer)))
    return versions


def _read(files: Sequence[Path], codec: Codec) -> Iterator[CodedImage]:
    for path in files:
        if path.suffix.lower() == bitstream.SUFFIX:
            try:
                yield _decoded(path.name, lat_file.read_bytes(str(path)), codec)
            except BitstreamError as exc:
                raise with_name(exc, str(path)) from exc
        else:
            image = open_rgb(path)
            yield CodedImage(path.name, path.read_bytes(), image)


def _encode(image: Image.Image, codec: Codec, options: PageOptions) -> Iterator[CodedImage]:
    for quality in options.qualities:
        blob = codec.encode(image, quality=quality, detail=options.detail)
        yield _decoded(f"{codec.model.name}, quality {quality:g}", blob, codec)


def _decoded(name: str, blob: bytes, codec: Codec) -> CodedImage:
    """A decoded .lat file, with its detail layer highlighted."""
    file = LatFile.parse(blob)
    image = pixels.to_rgb(codec.decode(file))
    layer = detail.from_chunks(file.chunks, image.size)
    return CodedImage(name, blob, image, layer.highlighted(image) if layer else None)


def _encode_with_references(
    image: Image.Image, codecs: Sequence[tuple[reference_codecs.ReferenceCodec, int]]
) -> Iterator[CodedImage]:
    for reference, quality in codecs:
        blob = reference.encode(image, quality)
        yield CodedImage(f"{reference.name}, quality {quality}", blob, reference.decode(blob))


def _version(coded: CodedImage, figures: dict[str, float]) -> Version:
    return Version(
        coded.name,
        _uri(coded.image),
        len(coded.blob),
        bitstream.bpp(len(coded.blob), *coded.image.size),
        psnr_db=min(figures["psnr-rgb"], MAX_PSNR),
        ms_ssim=figures.get("ms-ssim-rgb"),
        lpips=figures.get("lpips"),
        lpips_vgg=figures.get("lpips-vgg"),
        dists=figures.get("dists"),
    )


def _script(name: str, original: Image.Image, versions: Sequence[Version]) -> bytes:
    """One image as JSON in a script element, escaped so that no name can end the element."""
    entry = {"name": name, "width": original.width, "height": original.height}
    text = json.dumps(entry | {"versions": [asdict(version) for version in versions]})
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" class="image">{text}</script>\n'.encode()


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=None)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

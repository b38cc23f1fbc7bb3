"""A page to look at pictures and what codecs make of them: one HTML file that needs no network."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

from dynenc import metrics
from dynenc.batch import converter
from dynenc.batch.plan import input_suffixes
from dynenc.codec import Codec
from dynenc.errors import DynencError, ImageError, UsageError
from dynenc.evaluation.lpips import LPIPS
from dynenc.imaging import image

PICTURES = "<!--PICTURES-->"  # where the page holds them
PEERS: dict[
    str, tuple[str, dict[str, object]]
] = {  # codecs to compare with: Pillow's format, and its settings beside the quality
    "jpeg": ("JPEG", {"optimize": True}),
    "webp": ("WEBP", {"method": 6}),
    "avif": ("AVIF", {}),
}
LEAST_SIDE = 32  # px; LPIPS has no value below


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a picture; the fields are those that the page reads."""

    name: str
    data: str  # URI of a PNG
    n_bytes: int | None = None  # of the coded file; None: the original itself
    bpp: float | None = None
    psnr_db: float | None = None
    ms_ssim: float | None = None  # None below 161 px
    lpips: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to set beside each original."""

    qualities: Sequence[float] = ()  # of dynenc
    peers: Sequence[str] = ()  # such as "jpeg:75"
    lpips: Path | None = None  # weights of the metric


def pair(original: str, others: Sequence[str]) -> list[tuple[Path, list[Path]]]:
    """The originals and their versions: two files, or those of one stem in folders.

    Raises: UsageError if a folder is to be compared with a file, ImageError if it holds no picture.
    """
    if not Path(original).is_dir():
        if folders := [name for name in others if Path(name).is_dir()]:
            raise UsageError(f"{folders[0]} is a folder and {original} is not: name two of a kind")
        return [(Path(original), [Path(name) for name in others])]
    if single := [name for name in others if not Path(name).is_dir()]:
        raise UsageError(f"{single[0]} is no folder and {original} is: name two of a kind")
    suffixes = input_suffixes("encode")
    found = sorted(p for p in Path(original).iterdir() if p.suffix.lower() in suffixes)
    if not found:
        raise ImageError(f"{original} holds no picture")
    known = suffixes | {".lat"}
    pairs = []
    for path in found:
        named = [sorted(Path(folder).glob(f"{path.stem}.*")) for folder in others]
        pairs.append((path, [p for each in named for p in each if p.suffix.lower() in known]))
    return pairs


def write(
    file: BinaryIO, pairs: Sequence[tuple[Path, list[Path]]], codec: Codec, request: Request
) -> list[DynencError]:
    """Write the page, a picture at a time; return the errors of those that are left out.

    Raises: WeightsError, UsageError, and the error of the only picture.
    """
    peers = [_peer(name) for name in request.peers]
    perceptual = LPIPS(request.lpips) if request.lpips else None
    page = resources("dynenc.evaluation").joinpath("compare.html").read_text("utf-8")
    head, tail = page.split(PICTURES)
    file.write(head.encode())
    errors: list[DynencError] = []
    for original, others in pairs:
        try:
            picture = image.to_rgb(image.open_image(original))
            versions = [Version("original", _uri(picture))]
            for name, blob, decoded in _versions(picture, others, codec, request.qualities, peers):
                versions.append(_measured(name, blob, decoded, picture, perceptual))
        except ImageError as exc:
            if len(pairs) == 1:
                raise
            errors.append(exc)
            continue
        entry = {"name": original.name, "width": picture.width, "height": picture.height}
        entry_json = json.dumps(entry | {"versions": [asdict(v) for v in versions]})
        safe = entry_json.replace("<", "\\u003c")  # a name must not end the script
        file.write(f'<script type="application/json" class="picture">{safe}</script>\n'.encode())
    if len(errors) == len(pairs):
        raise errors[0]
    file.write(tail.encode())
    return errors


def _versions(
    picture: Image.Image,
    others: Sequence[Path],
    codec: Codec,
    qualities: Sequence[float],
    peers: Sequence[tuple[str, str, dict[str, object]]],
) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Name, file and pixels of each version."""
    for path in others:
        if path.suffix.lower() == ".lat":
            blob = converter.read_bytes(str(path))
            yield path.name, blob, codec.decode(blob)
        else:
            decoded = image.open_image(path)
            yield path.name, path.read_bytes(), decoded
    for quality in qualities:
        blob = codec.encode(picture, quality=quality)
        yield f"{codec.model.name}, quality {quality:g}", blob, codec.decode(blob)
    for name, form, options in peers:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        yield name, buffer.getvalue(), Image.open(buffer)


def _measured(
    name: str, blob: bytes, decoded: Image.Image, original: Image.Image, perceptual: LPIPS | None
) -> Version:
    decoded = image.to_rgb(decoded)
    if decoded.size != original.size:
        sizes = " and ".join(f"{one.width}x{one.height}" for one in (decoded, original))
        raise ImageError(f"{name} and its original are {sizes} px: they cannot be compared")
    one, two = image.to_tensor(decoded), image.to_tensor(original)
    psnr_db = metrics.psnr_db(one, two)
    return Version(
        name,
        _uri(decoded),
        len(blob),
        metrics.bpp(len(blob), *original.size),
        min(psnr_db, 99.99),  # JSON has no infinity
        metrics.ms_ssim(one, two),
        perceptual(one, two).item() if perceptual and min(original.size) >= LEAST_SIDE else None,
    )


def _peer(name: str) -> tuple[str, str, dict[str, object]]:
    """A codec's name for people, Pillow's format, and its settings."""
    kind, _, quality = name.partition(":")
    if kind not in PEERS or not quality.isdecimal() or int(quality) > 100:
        raise UsageError(f"{name} is no codec: choose {', '.join(PEERS)} and a quality, as jpeg:75")
    if kind != "jpeg" and not features.check(kind):
        raise UsageError(f"Pillow is here without {kind}: install one that has it")
    form, options = PEERS[kind]
    return f"{kind}, quality {quality}", form, {"quality": int(quality), **options}


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", icc_profile=None)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

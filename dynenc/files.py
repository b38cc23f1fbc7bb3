"""Paths: one picture to one .lat file and back, never half-written, never overwritten unasked."""

import contextlib
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dynenc import bitstream, image, metrics
from dynenc.codec import Codec, read_latents
from dynenc.errors import BitstreamError, OutputError, OutputExists, TooLarge

STREAM = Path("-")  # stdin or stdout
SUFFIX = ".lat"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `encode_file` wrote."""

    path: Path
    n_bytes: int
    width: int
    height: int

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return metrics.bpp(self.n_bytes, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Roundtrip:
    """The figures of one picture encoded and decoded; the fields of `roundtrip --json`."""

    image: str
    width: int  # px
    height: int  # px
    encoder: str
    decoder: str
    quality: float
    n_bytes: int  # of the whole .lat file
    bpp: float
    ratio_raw: float  # bytes of the RGB pixels / n_bytes
    ratio_file: float  # bytes of the input file / n_bytes
    psnr_db: float
    ms_ssim: float | None  # None below 161 px
    encode_s: float  # pixels -> .lat bytes, networks loaded and warm
    decode_s: float  # .lat bytes -> pixels


def encode_file(
    source: Path, target: Path | None, codec: Codec, *, quality: float, overwrite: bool = False
) -> Encoded:
    """Compress a picture file; '-' is stdin or stdout, no target is beside the source.

    Raises: ImageError, OutputExists, OutputError.
    """
    target = target or beside(source, SUFFIX)
    refuse_existing(target, overwrite)
    picture = image.open_image(sys.stdin.buffer if source == STREAM else source)
    blob = codec.encode(picture, quality=quality)
    write_atomically(target, blob, overwrite)
    return Encoded(target, len(blob), *picture.size)


def decode_file(
    source: Path, target: Path | None, codec: Codec, *, max_pixels: int, overwrite: bool = False
) -> Path:
    """Rebuild a picture file, PNG unless the target's suffix says otherwise; return its path.

    Raises: BitstreamError, WeightsError, OutputExists, OutputError.
    """
    target = target or beside(source, ".png")
    form = picture_format(target)
    refuse_existing(target, overwrite)
    picture = codec.decode(read_bytes(source), max_pixels=max_pixels)
    write_picture(target, picture, form, overwrite)
    return target


def roundtrip_file(
    source: Path, target: Path | None, codec: Codec, *, quality: float, overwrite: bool = False
) -> Roundtrip:
    """Encode and decode a picture in memory and measure; keep the picture if there is a target.

    The networks run once before the clock starts, so that loading is not counted.
    Raises: ImageError, WeightsError, OutputExists, OutputError.
    """
    form = picture_format(target) if target else ""
    if target:
        refuse_existing(target, overwrite)
    picture = image.open_image(source)
    codec.decode(codec.encode(picture.crop((0, 0, 64, 64)), quality=quality))
    start = time.perf_counter()
    blob = codec.encode(picture, quality=quality)
    encoded = time.perf_counter()
    decoded = codec.decode(blob, max_pixels=sys.maxsize)
    done = time.perf_counter()
    if target:
        write_picture(target, decoded, form, overwrite)
    one, two = image.to_tensor(decoded), image.to_tensor(picture)
    width, height = picture.size
    return Roundtrip(
        image=str(source),
        width=width,
        height=height,
        encoder=codec.model.name,
        decoder=codec.decoder.name,
        quality=quality,
        n_bytes=len(blob),
        bpp=metrics.bpp(len(blob), width, height),
        ratio_raw=width * height * 3 / len(blob),
        ratio_file=source.stat().st_size / len(blob),
        psnr_db=metrics.psnr_db(one, two),
        ms_ssim=metrics.ms_ssim(one, two),
        encode_s=encoded - start,
        decode_s=done - encoded,
    )


def info_file(source: Path, *, max_pixels: int) -> tuple[bitstream.Header, int]:
    """The header of a .lat file and the file's size in bytes; the payload is read and checked."""
    blob = read_bytes(source)
    header, _ = read_latents(blob, max_pixels=max_pixels)
    return header, len(blob)


def verify(paths: list[Path], *, max_pixels: int) -> Iterator[tuple[Path, str]]:
    """Check .lat files, and all those in folders, whole but without decoding pixels.

    Yields: each file and what is wrong with it, empty if nothing is. A folder that cannot be read
        or holds no .lat file is wrong, too: what was not checked must not pass for good.
    """
    for path in paths:
        if not path.is_dir():
            yield path, _fault(path, max_pixels)
            continue
        unread: list[OSError] = []
        walk = list(os.walk(path, onerror=unread.append))
        yield from ((Path(e.filename), f"cannot be read: {e.strerror}") for e in unread)
        names = (Path(folder, name) for folder, _, files in walk for name in files)
        found = sorted(name for name in names if name.suffix.lower() == SUFFIX)
        for file in found:
            yield file, _fault(file, max_pixels) if file.is_file() else "is not a file"
        if not found and not unread:
            yield path, f"holds no {SUFFIX} file"


def _fault(source: Path, max_pixels: int) -> str:
    try:
        info_file(source, max_pixels=max_pixels)
    except BitstreamError as exc:
        return str(exc).removeprefix(f"{source} ")
    return ""


def beside(source: Path, suffix: str) -> Path:
    """Where the output goes when none is named: beside the input, or stdout for stdin."""
    return STREAM if source == STREAM else source.with_suffix(suffix)


def read_bytes(source: Path) -> bytes:
    """The bytes of a .lat file, or of stdin for '-'; raises BitstreamError.

    Of a file that does not begin like one, however long, only the beginning.
    """
    if source == STREAM:
        return sys.stdin.buffer.read()
    try:
        with source.open("rb") as file:
            start = file.read(len(bitstream.MAGIC))
            if start != bitstream.MAGIC:
                return start
            if os.fstat(file.fileno()).st_size > bitstream.MAX_BYTES:
                raise TooLarge(f"{source} is larger than any .lat file: it is not read")
            return start + file.read()
    except OSError as exc:
        raise BitstreamError(f"{source} cannot be read: {exc.strerror}") from exc


def picture_format(target: Path) -> str:
    """Pillow's name of the format that a suffix stands for; PNG for stdout."""
    if target == STREAM:
        return "PNG"
    form = Image.registered_extensions().get(target.suffix.lower(), "")
    if form not in Image.SAVE:
        raise OutputError(f"{target} has no suffix of a picture format that can be written")
    return form


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise OutputExists if the target exists and may not be overwritten."""
    if target != STREAM and not overwrite and os.path.lexists(target):
        raise OutputExists(f"{target} exists: name another with -o, or overwrite it with --force")


def write_picture(target: Path, picture: Image.Image, form: str, overwrite: bool) -> None:
    """Write a picture whole or not at all."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, form)
    except (OSError, ValueError) as exc:
        raise OutputError(f"{target} cannot be written as {form}: {exc}") from exc
    write_atomically(target, buffer.getvalue(), overwrite)


def write_atomically(target: Path, data: bytes, overwrite: bool) -> None:
    """Write a file beside its final name and rename it; '-' is stdout.

    Raises: OutputError if it cannot be written, OutputExists if it appeared meanwhile and may not
    be overwritten. In both cases nothing is left behind.
    """
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    partial = target.with_name(f".dynenc-{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, target, overwrite)
    except FileExistsError as exc:
        raise OutputExists(f"{target} appeared while it was being made: it is kept") from exc
    except OSError as exc:
        raise OutputError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        with contextlib.suppress(OSError):  # gone with its folder, or never there
            partial.unlink()


def publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file its name; raises FileExistsError rather than overwrite unasked."""
    if not overwrite:
        try:
            os.link(partial, target)  # unlike a rename, fails if the target exists
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError(target) from None
        else:
            return
    partial.replace(target)

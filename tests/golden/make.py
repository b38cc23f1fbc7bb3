"""Add golden files to this folder, or to the one named: `python tests/golden/make.py [FOLDER]`.

Files are added and never rewritten: what is there already stays as it is, whatever this dynenc
would make of it now. Run it after adding a case below, and commit what it wrote.
"""

import hashlib
import platform
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import dynenc
from dynenc import codec, registry
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.bitstream import HAS_CHUNKS, Header
from dynenc.coding.entropy import EntropyModel

HERE = Path(__file__).parent
PHOTO = HERE.parent / "images" / "chelsea.png"
Case = tuple[str, Callable[[], bytes]]  # how a file is made, in words and by code


def encoded(picture: Image.Image, encoder: str, quality: float) -> bytes:
    """The file of a picture."""
    return Codec(encoder, device="cpu").encode(picture, quality=quality)


def crop(width: int, height: int) -> Image.Image:
    """A piece of the photograph, from (100, 60) on."""
    return Image.open(PHOTO).convert("RGB").crop((100, 60, 100 + width, 60 + height))


def noise(width: int, height: int) -> Image.Image:
    """Every pixel by chance, the same each time."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def of_symbols(symbols: np.ndarray, step_q: int, coder: str = "context") -> bytes:
    """The file of latents that no encoder made."""
    payload = codec.entropy_model(coder).encode(symbols, step_q)
    height, width = (8 * side for side in symbols.shape[1:])
    number = registry.named(coder, "coder").number
    return bitstream.write(Header(width, height, step_q, model_id=2, coder_id=number), payload)


def coder_of(blob: bytes) -> EntropyModel:
    """The entropy coder of a file."""
    header, _ = bitstream.read(blob)
    return codec.entropy_model(registry.numbered(header.coder_id, "coder").name)


def symbols_of(blob: bytes) -> np.ndarray:
    """The symbols [4, h, w] of a file."""
    header, payload = bitstream.read(blob)
    height, width = (-(-side // 8) for side in (header.height, header.width))
    return coder_of(blob).decode(payload, height, width, header.step_q)


def ramp(most: int) -> np.ndarray:
    """Symbols [4, 5, 6] from -most to most in leaps."""
    return np.linspace(-most, most, 120).round().astype(np.int32).reshape(5, 6, 4).T.swapaxes(1, 2)


def with_chunks(blob: bytes) -> bytes:
    """The same file with two chunks that no version defines and every reader skips."""
    header, payload = bitstream.read(blob)
    chunks = b"xone" + struct.pack("<I", 3) + b"abc" + b"xtwo" + struct.pack("<I", 0)
    body = struct.pack("<I", len(payload)) + payload + chunks
    plain = bitstream.write(replace(header, flags=HAS_CHUNKS), body)[:-4]
    return plain + struct.pack("<I", zlib.crc32(plain))


def with_alpha(picture: Image.Image) -> Image.Image:
    """The picture, transparent towards its border."""
    picture.putalpha(Image.radial_gradient("L").point(lambda v: 255 - v).resize(picture.size))
    return picture


def with_metadata() -> bytes:
    """A file with EXIF, and with the XMP and the colour profile of the photograph."""
    picture, photo = crop(33, 40), Image.open(PHOTO)
    exif = Image.Exif()
    exif[0x013B] = "the artist"
    info = {"exif": exif.tobytes(), "xmp": photo.info["xmp"]}
    picture.info = info | {"icc_profile": photo.info["icc_profile"]}
    return Codec("light", device="cpu").encode(picture, keep_metadata=True)


def cases() -> dict[str, Case]:
    """Every golden file of format version 1, by name."""
    found: dict[str, Case] = {}
    for encoder in ("nano", "light", "base"):
        for quality in (0, 50, 100):
            found[f"v1_{encoder}_q{quality}"] = (
                f"crop of the photograph, 64x48, `{encoder}`, quality {quality}",
                lambda e=encoder, q=quality: encoded(crop(64, 48), e, q),
            )
    for width, height in ((1, 1), (1, 9), (9, 1), (7, 13), (8, 8), (15, 17), (33, 40), (200, 3)):
        found[f"v1_light_{width}x{height}"] = (
            f"crop of the photograph, {width}x{height}, `light`, quality 50",
            lambda w=width, h=height: encoded(crop(w, h), "light", 50),
        )
    for encoder in ("light", "nano", "base"):
        found[f"v1_{encoder}_photo"] = (
            f"the photograph whole, 451x300, `{encoder}`, quality 50",
            lambda e=encoder: encoded(Image.open(PHOTO), e, 50),
        )
    for encoder, quality in (
        ("base", 20),
        ("light", 80),
        ("light", 30),
        ("nano", 70),
        ("base", 60),
        ("light", 40),
        ("base", 40),
        ("light", 65),
        ("base", 55),
        ("light", 45),
        ("base", 65),
        ("light", 55),
        ("nano", 60),
        ("light", 35),
    ):
        found[f"v1_{encoder}_photo_q{quality}"] = (
            f"the photograph whole, 451x300, `{encoder}`, quality {quality}",
            lambda e=encoder, q=quality: encoded(Image.open(PHOTO), e, q),
        )
    for quality in (0, 50, 100):
        found[f"v1_autoencoder_q{quality}"] = (
            f"crop of the photograph, 64x48, `autoencoder`, quality {quality}",
            lambda q=quality: encoded(crop(64, 48), "autoencoder", q),
        )
    found["v1_autoencoder_photo"] = (
        "the photograph whole, 451x300, `autoencoder`, quality 50",
        lambda: encoded(Image.open(PHOTO), "autoencoder", 50),
    )
    found["v1_light_noise"] = (
        "noise, 40x40, `light`, quality 100",
        lambda: encoded(noise(40, 40), "light", 100),
    )
    found["v1_light_flat"] = (
        "one colour, 256x256, `light`, quality 50",
        lambda: encoded(Image.new("RGB", (256, 256), (90, 120, 40)), "light", 50),
    )
    for most, step_q in ((90, 1), (255, 307), (32_767, 77), (32_767, 65_535), (3, 1229)):
        found[f"v1_symbols_{most}_step_{step_q}"] = (
            f"symbols -{most} to {most} in leaps, step {step_q}/1024, no encoder",
            lambda m=most, s=step_q: of_symbols(ramp(m), s),
        )
    for width, height in ((1, 1), (9, 1), (7, 13), (33, 40), (200, 3)):
        found[f"v1_trellis_{width}x{height}"] = (
            f"crop of the photograph, {width}x{height}, `base`, quality 50",
            lambda w=width, h=height: encoded(crop(w, h), "base", 50),
        )
    for quality in (0, 45, 50, 60, 100):
        found[f"v1_trellis_photo_q{quality}"] = (
            f"the photograph whole, 451x300, `base`, quality {quality}",
            lambda q=quality: encoded(Image.open(PHOTO), "base", q),
        )
    found["v1_trellis_autoencoder"] = (
        "crop of the photograph, 64x48, `autoencoder`, quality 50",
        lambda: encoded(crop(64, 48), "autoencoder", 50),
    )
    for width, height in ((1, 1), (7, 13), (33, 40)):
        found[f"v1_wide_{width}x{height}"] = (
            f"crop of the photograph, {width}x{height}, `light`, quality 50",
            lambda w=width, h=height: encoded(crop(w, h), "light", 50),
        )
    for encoder, quality in (("light", 50), ("base", 0), ("base", 100)):
        found[f"v1_wide_photo_{encoder}_q{quality}"] = (
            f"the photograph whole, 451x300, `{encoder}`, quality {quality}",
            lambda e=encoder, q=quality: encoded(Image.open(PHOTO), e, q),
        )
    for coder, (most, step_q) in product(
        ("trellis", "wide", "plain"),
        ((90, 1), (255, 307), (32_767, 77), (32_767, 65_535), (3, 1229)),
    ):
        number = registry.MODELS[coder].number
        found[f"v1_{coder}_symbols_{most}_step_{step_q}"] = (
            f"symbols -{most} to {most} in leaps, step {step_q}/1024, entropy coder {number}, "
            "no encoder",
            lambda c=coder, m=most, s=step_q: of_symbols(ramp(m), s, c),
        )
    found["v1_plain_flat"] = (
        "one colour, 64x48, `light`, quality 25",
        lambda: encoded(Image.new("RGB", (64, 48), (79, 222, 108)), "light", 25),
    )
    found["v1_plain_effort"] = (
        "crop of the photograph, 64x48, `base`, quality 50, effort 1",
        lambda: Codec("base", "embedded", "cpu").encode(crop(64, 48), quality=50, effort=1),
    )
    found["v1_chunks"] = (
        "crop of the photograph, 33x40, `light`, quality 50, with two chunks to be skipped",
        lambda: with_chunks(encoded(crop(33, 40), "light", 50)),
    )
    for name, mode in (("grey", "L"), ("alpha", "RGBA"), ("grey_alpha", "LA")):
        found[f"v1_light_{name}"] = (
            f"crop of the photograph, 33x40, {mode}, `light`, quality 50",
            lambda m=mode: encoded(with_alpha(crop(33, 40)).convert(m), "light", 50),
        )
    found["v1_light_metadata"] = (
        "crop of the photograph, 33x40, `light`, quality 50, with EXIF, XMP and ICC profile",
        with_metadata,
    )
    return found


def painter(decoder: Codec, blob: bytes) -> str:
    """The sha256 of the weights that paint the pixels of a file."""
    maker = codec.maker(bitstream.read(blob)[0])
    return registry.MODELS[decoder.decoder_of(maker).name].sha256


def add(folder: Path, wanted: dict[str, Case]) -> list[str]:
    """Make the cases that the folder does not hold yet; return their names."""
    decoder = Codec(decoder="embedded", device="cpu")
    added = []
    for name, (how, make) in wanted.items():
        lat = folder / f"{name}.lat"
        if lat.exists():
            continue
        blob = make()
        symbols = symbols_of(blob).astype(np.int16)
        with lat.open("xb") as file:
            file.write(blob)
        with lat.with_suffix(".npy").open("xb") as file:
            np.save(file, symbols, allow_pickle=False)
        with lat.with_suffix(".png").open("xb") as file:
            info = PngInfo()
            info.add_text("decoder", painter(decoder, blob))
            picture = decoder.decode(blob)
            if "xmp" in picture.info:
                info.add_itxt("XML:com.adobe.xmp", picture.info["xmp"].decode())
            exif = picture.info.get("exif")
            picture.save(file, "PNG", optimize=True, pnginfo=info, exif=exif)
        with (folder / "README.md").open("a", encoding="utf-8") as file:
            digest = hashlib.sha256(blob).hexdigest()
            by = f"dynenc {dynenc.__version__}, torch {torch.__version__}, {platform.machine()}"
            file.write(f"| `{name}` | {how} | {by} | `{digest}` |\n")
        added.append(name)
    return added


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*add(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE, cases()), sep="\n")

"""Add golden files to this folder, or to the one named: `python tests/golden/make.py [FOLDER]`.

Files are added and never rewritten: what exists stays as it is, whatever this dynenc would write.
To add one, add a case below, run this, and commit the new files. Those of other latent spaces are
in the folder `spaces`, without images.
"""

import hashlib
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dynenc import registry
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.bitstream import DETAIL, HAS_CHUNKS, Chunk
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import to_symbols
from dynenc.imaging import detail, extras
from dynenc.imaging.extras import Extras
from dynenc.imaging.metadata import Metadata
from dynenc.imaging.packing import unpack
from dynenc.interop import cache_chunk
from dynenc.interop.cache_chunk import CacheContents, CacheTensor
from dynenc.interop.scaling import RAW
from dynenc.latent_space import FLUX1, PATCH, SD1, SD3, SDXL
from dynenc.networks import integer_decoder
from dynenc.networks.compat import CPU_DTYPE
from dynenc.view import View

HERE = Path(__file__).parent
PHOTO = HERE.parent / "images" / "chelsea.png"
SUMS: dict[registry.Kind, str] = {  # written anew each time, as the decoders' weights may change
    "decoder": "pixels.sha256",
    "thumbnail": "thumbnails.sha256",
}
LATTICES = {("fast", "plain"): False, ("full", "plain"): False, ("full", "trellis"): True}
TILES = np.array(  # of a detail layer, whose bounding box is cut off by the image's edges
    [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1]], np.bool_
)
METADATA = Metadata(
    iptc=b"\x1c\x02\x78\0\5a cat",
    comment=b"caf\xe9",  # in Latin-1
    text={"Title": "\u010cel\u010di", "Comment": "", "a key": "line\nline"},
    resolution=(11_811, 2835),
)
Case = tuple[str, Callable[[], bytes]]  # how a file is made, in words and by code


def encoded(image: Image.Image, encoder: str, quality: float) -> bytes:
    """The file of an image."""
    return Codec(encoder, device="cpu").encode(image, quality=quality)


def photo() -> Image.Image:
    """The whole photograph."""
    return Image.open(PHOTO).convert("RGB")


def crop(width: int, height: int) -> Image.Image:
    """A part of the photograph, from (100, 60) on."""
    return photo().crop((100, 60, 100 + width, 60 + height))


def noise(width: int, height: int) -> Image.Image:
    """Uniform noise, the same each time."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def of_ramp(most: int, step_q: int, coder: str, *, has_trellis: bool) -> bytes:
    """The file of symbols [4, 5, 6] from -most to most in large leaps."""
    ramp = np.linspace(-most, most, 120).round().astype(np.int32).reshape(5, 6, 4)
    symbols = np.ascontiguousarray(ramp.T.swapaxes(1, 2))
    chosen = load_coder(coder, has_trellis=has_trellis)
    return LatFile.from_symbols(
        symbols, chosen, (48, 40), step_q, registry.MODELS["light"]
    ).to_bytes()


def with_chunks(blob: bytes) -> bytes:
    """The same file with two chunks that no version defines and every reader skips."""
    header, payload, _ = bitstream.read(blob)
    chunks = b"xone" + struct.pack("<I", 3) + b"abc" + b"xtwo" + struct.pack("<I", 0)
    body = struct.pack("<I", len(payload)) + payload + chunks
    flags = header.flags | HAS_CHUNKS
    unsealed = bitstream.write(replace(header, flags=flags), body)[:-4]
    return unsealed + struct.pack("<I", zlib.crc32(unsealed))


def with_alpha(image: Image.Image) -> Image.Image:
    """The image, transparent towards its border."""
    image.putalpha(Image.radial_gradient("L").point(lambda v: 255 - v).resize(image.size))
    return image


def page() -> Image.Image:
    """A page of text; in the middle stands a part of the photograph."""
    image = Image.new("RGB", (200, 160), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for top in range(4, 160, 16):
        draw.text((6, top), "The five boxing wizards jump quickly.", "navy", font)
    image.paste(crop(96, 80), (48, 40))
    return image


def with_metadata() -> bytes:
    """A file with EXIF, and with the XMP and the colour profile of the photograph."""
    image, info = crop(33, 40), Image.open(PHOTO).info
    exif = Image.Exif()
    exif[0x013B] = "the artist"
    image.info = {"exif": exif.tobytes()} | {key: info[key] for key in ("xmp", "icc_profile")}
    return Codec("light", device="cpu").encode(image, keep_metadata=True)


def of_mixture(step_q: int) -> bytes:
    """The file of symbols [4, 5, 6] of which 2 in 5 are any and the others -1, 0 or 1."""
    random = np.random.default_rng(3)
    shape = 4, 5, 6
    is_any = random.random(shape) < 0.4
    symbols = np.where(
        is_any, random.integers(-32_767, 32_768, shape), random.integers(-1, 2, shape)
    )
    chosen = load_coder("full", has_trellis=True)
    model = registry.MODELS["light"]
    return LatFile.from_symbols(
        symbols.astype(np.int32), chosen, (48, 40), step_q, model
    ).to_bytes()


def with_layer(form: str) -> bytes:
    """The file of a part of the page with a detail layer of some tiles, in that format."""
    image = page().crop((0, 0, 75, 70))
    with mock.patch.object(detail, "layer_format", return_value=form):
        chunk = detail.to_chunk(image, TILES, 50)
    [latents] = Codec("light", device="cpu").latents([detail.base_image(image, TILES)])
    coder = load_coder("full", has_trellis=True)
    symbols = to_symbols(latents, 307, coder)
    return LatFile.from_symbols(
        symbols, coder, image.size, 307, registry.MODELS["light"], [chunk]
    ).to_bytes()


def cache() -> CacheContents:
    """What a trainer's cache file held: the latents of another image, a tensor and a text."""
    tensors = (
        CacheTensor("latents_5x5", "F16", (4, 5, 5), "payload"),
        CacheTensor("latents_1x1", "F32", (4, 1, 1), "lat", encoded(crop(8, 8), "light", 50)),
        CacheTensor("crop_ltrb", "I64", (2, 2), "data", struct.pack("<4q", 0, -1, 33, 40)),
    )
    return CacheContents("safetensors", RAW, {"caption": "\u010cel\u010di"}, tensors)


def with_more_metadata() -> bytes:
    """A file with the other kinds of metadata, a trainer's cache, and an unknown tag twice."""
    file = LatFile.parse(encoded(crop(33, 40), "light", 50))
    known = [*extras.to_chunks(Extras(metadata=METADATA)), cache_chunk.to_chunk(cache())]
    unknown = [("xone", b"abc"), ("xone", b"")]
    return replace(file, chunks=[unknown[0], *known, unknown[1]]).to_bytes()


def cases() -> dict[str, Case]:
    """Every golden file of format version 1, by name."""
    found: dict[str, Case] = {}
    for encoder, quality in (
        ("nano", 50),
        ("light", 50),
        ("base", 0),
        ("base", 100),
        ("autoencoder", 50),
    ):
        found[f"v1_{encoder}_photo_q{quality}"] = (
            f"photograph, 451x300, `{encoder}`, quality {quality}",
            lambda e=encoder, q=quality: encoded(photo(), e, q),
        )
    for encoder, quality in product(("nano", "light"), (0, 100)):
        found[f"v1_{encoder}_q{quality}"] = (
            f"crop, 64x48, `{encoder}`, quality {quality}",
            lambda e=encoder, q=quality: encoded(crop(64, 48), e, q),
        )
    for encoder, (width, height) in (
        *product(("light",), ((1, 1), (1, 9), (9, 1), (7, 13), (33, 40), (200, 3))),
        *product(("nano",), ((1, 1), (7, 13))),
    ):
        found[f"v1_{encoder}_{width}x{height}"] = (
            f"crop, {width}x{height}, `{encoder}`, quality 50",
            lambda e=encoder, w=width, h=height: encoded(crop(w, h), e, 50),
        )
    found["v1_light_noise"] = (
        "noise, 40x40, `light`, quality 100",
        lambda: encoded(noise(40, 40), "light", 100),
    )
    found["v1_light_flat"] = (
        "one colour, 256x256, `light`, quality 50: plain lattice",
        lambda: encoded(Image.new("RGB", (256, 256), (90, 120, 40)), "light", 50),
    )
    found["v1_base_effort"] = (
        "crop, 64x48, `base`, quality 50, effort 1: plain lattice",
        lambda: Codec("base", "embedded", "cpu").encode(crop(64, 48), quality=50, effort=1),
    )
    for ((coder, lattice), has_trellis), (most, step_q) in product(
        LATTICES.items(), ((90, 1), (255, 307), (32_767, 77), (32_767, 65_535), (3, 1229))
    ):
        found[f"v1_{coder}_{lattice}_{most}_step_{step_q}"] = (
            f"symbols -{most} to {most}, step {step_q}/1024, `{coder}`, {lattice} lattice",
            lambda *args, t=has_trellis, a=(most, step_q, coder): of_ramp(*a, has_trellis=t),
        )
    found["v1_chunks"] = (
        "crop, 33x40, `light`, quality 50, with two chunks to be skipped",
        lambda: with_chunks(encoded(crop(33, 40), "light", 50)),
    )
    for name, mode in (("grey", "L"), ("alpha", "RGBA"), ("grey_alpha", "LA")):
        found[f"v1_light_{name}"] = (
            f"crop, 33x40, {mode}, `light`, quality 50",
            lambda m=mode: encoded(with_alpha(crop(33, 40)).convert(m), "light", 50),
        )
    found["v1_light_metadata"] = (
        "crop, 33x40, `light`, quality 50, with EXIF, XMP and ICC profile",
        with_metadata,
    )
    found["v1_light_detail"] = (
        "page with a crop, 200x160, `light`, quality 50: detail layer",
        lambda: encoded(page(), "light", 50),
    )
    found["v1_light_detail_whole"] = (
        "upper part of the page, 200x40, `light`, quality 50: all of it is the detail layer",
        lambda: encoded(page().crop((0, 0, 200, 40)), "light", 50),
    )
    found["v1_full_trellis_mixed_step_65535"] = (
        "symbols -1 to 1 and, 2 in 5, -32767 to 32767, step 65535/1024, `full`, trellis lattice",
        lambda: of_mixture(65_535),
    )
    for form in ("AVIF", "WEBP"):
        found[f"v1_light_detail_part_{form.lower()}"] = (
            f"part of the page, 75x70, step 307/1024: detail layer of some tiles, {form}",
            lambda f=form: with_layer(f),
        )
    found["v1_light_more_metadata"] = (
        "crop, 33x40, `light`, quality 50, with texts, comment, IPTC, resolution and a cache, and "
        "with two chunks of one unknown tag",
        with_more_metadata,
    )
    return found


def of_crops(model: registry.Model, *, has_trellis: bool) -> bytes:
    """The file of latents [C, 16, 12] that `light` makes of as many crops as the channels need."""
    count = model.space.channels // 4
    images = [photo().crop((64 * i, 60, 64 * i + 96, 188)) for i in range(count)]
    latents = np.concatenate(Codec("light", device="cpu").latents(images))
    coder = load_coder(model.coder, has_trellis=has_trellis)
    symbols = to_symbols(latents, 307, coder)
    return LatFile.from_symbols(symbols, coder, (96, 128), 307, model).to_bytes()


def of_leaps(model: registry.Model, most: int, step_q: int, *, has_trellis: bool) -> bytes:
    """The file of symbols [C, 5, 6] from -most to most in large leaps."""
    channels = model.space.channels
    ramp = np.linspace(-most, most, 30 * channels).round().astype(np.int32)
    symbols = np.ascontiguousarray(ramp.reshape(30, channels).T.reshape(-1, 5, 6))
    coder = load_coder(model.coder, has_trellis=has_trellis)
    return LatFile.from_symbols(symbols, coder, (48, 40), step_q, model).to_bytes()


def space_cases() -> dict[str, Case]:
    """Every golden file of the latent spaces besides that of SD 1.x, by name."""
    found: dict[str, Case] = {}
    lattices = (("plain", False), ("trellis", True))
    models = {space.name: registry.IMPORTED_MODELS[space.name] for space in (SDXL, FLUX1, SD3)}
    models["light-flux1"] = registry.MODELS["light-flux1"]  # its coder is another
    for (name, model), (lattice, trellis) in product(models.items(), lattices):
        found[f"v1_{name}_{lattice}_crops"] = (
            f"latents of crops, 96x128, step 307/1024, {name}, {lattice} lattice",
            lambda m=model, t=trellis: of_crops(m, has_trellis=t),
        )
        for most, step_q in ((255, 307), (32_767, 65_535)):
            found[f"v1_{name}_{lattice}_{most}_step_{step_q}"] = (
                f"symbols -{most} to {most}, step {step_q}/1024, {name}, {lattice} lattice",
                lambda *args, a=(model, most, step_q), t=trellis: of_leaps(*a, has_trellis=t),
            )
    for encoder in (name for space in (SDXL, FLUX1, SD3) for name in registry.encoders(space)):
        found[f"v1_{encoder}_q50"] = (
            f"crop, 64x48, `{encoder}`, quality 50",
            lambda e=encoder: encoded(crop(64, 48), e, 50),
        )
    return found


def decoder_sha256(decoder: Codec, file: LatFile) -> str:
    """The sha256 of the weights that decode a file to pixels."""
    return registry.MODELS[decoder.name_of_decoder(file.model)].sha256


def write_pixels(path: Path, decoder: Codec, file: LatFile) -> None:
    """Write the decoded image of a file."""
    with path.open("xb") as output:
        info = PngInfo()
        info.add_text("decoder", decoder_sha256(decoder, file))
        image = decoder.decode(file)
        if "xmp" in image.info:
            info.add_itxt("XML:com.adobe.xmp", image.info["xmp"].decode())
        exif = image.info.get("exif")
        image.save(output, "PNG", optimize=True, pnginfo=info, exif=exif)


def pixels_sha256(file: LatFile, threads: int = 1, kind: registry.Kind = "decoder") -> str:
    """The sha256 of the colours of a file's latents: RGB, row by row, before alpha and layers."""
    space = file.model.space
    name = registry.counterpart("embedded", space).name
    decoder = integer_decoder.load("thumbnail" if kind == "thumbnail" else name)
    view = View(divisor=PATCH // decoder.side)
    region = view.scaled(file.size)
    latents, step_q = file.fixed_point_latents(), file.header.step_q
    pixels = decoder.decode(latents, region, threads, step_q)
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def contents(chunks: Sequence[Chunk]) -> list[list[str]]:
    """The tags of chunks, and their data in hexadecimal, unpacked; without the detail layer."""
    packed = extras.KNOWN - {extras.GREY, extras.RESOLUTION}
    return [
        [tag, (unpack(tag, data, 2**20) if tag in packed else data).hex()]
        for tag, data in chunks
        if tag != DETAIL
    ]


def has_integers(file: LatFile, kind: registry.Kind) -> bool:
    """Whether a decoder of that kind decodes the latents of a file in integers."""
    space = file.model.space
    return (
        space is SD1 if kind == "thumbnail" else registry.counterpart("embedded", space) is not None
    )


def sums(folder: Path, kind: registry.Kind, threads: int = 1) -> str:
    """What the pixels of the folder's files are on every machine, a line a file: sha256, name."""
    files = ((lat.stem, LatFile.parse(lat.read_bytes())) for lat in sorted(folder.glob("*.lat")))
    return "".join(
        f"{pixels_sha256(file, threads, kind)}  {name}\n"
        for name, file in files
        if has_integers(file, kind)
    )


def write_sums(folder: Path) -> None:
    """Write what the pixels of the folder's files are, on every machine."""
    for kind, name in SUMS.items():
        if lines := sums(folder, kind):
            (folder / name).write_text(lines, encoding="utf-8")


def add(folder: Path, wanted: dict[str, Case], *, pixels: bool = True) -> list[str]:
    """Make the cases that the folder does not hold yet; return their names.

    Args:
        pixels: store the decoded images as well.
    """
    decoder = Codec(decoder="embedded", device="cpu")
    added = []
    for name, (how, make) in wanted.items():
        lat = folder / f"{name}.lat"
        if not lat.exists():
            blob = make()
            with lat.open("xb") as output:
                output.write(blob)
            with lat.with_suffix(".npy").open("xb") as output:
                symbols = LatFile.parse(blob).symbols
                np.save(output, symbols.astype(np.int16), allow_pickle=False)
            with (folder / "README.md").open("a", encoding="utf-8") as output:
                output.write(f"| `{name}` | {how} | `{hashlib.sha256(blob).hexdigest()}` |\n")
            added.append(name)
        file = LatFile.parse(lat.read_bytes())
        if pixels and not lat.with_suffix(".png").exists():  # or to be made by another decoder
            write_pixels(lat.with_suffix(".png"), decoder, file)
        if (found := contents(file.chunks)) and not (listed := lat.with_suffix(".json")).exists():
            listed.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_sums(folder)
    return added


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ[CPU_DTYPE] = "float32"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    print(*add(target, cases()), sep="\n")
    (target / "spaces").mkdir(exist_ok=True)
    print(*add(target / "spaces", space_cases(), pixels=False), sep="\n")

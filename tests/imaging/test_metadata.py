"""Alpha, grey, metadata and colour profiles on their way through a .lat file."""

import io
import lzma
import struct
import warnings
import zlib

import numpy as np
import pytest
from helpers import hostile
from helpers.lat_files import read_latents
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

import dynenc.pillow  # noqa: F401  # Pillow opens .lat files
from dynenc.codec import Codec
from dynenc.coding import bitstream
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, ImageWarning, UnknownModel
from dynenc.imaging import colour, extras, pixels, save
from dynenc.imaging.extras import Extras
from dynenc.imaging.metadata import MAX_METADATA, Metadata
from dynenc.imaging.read import open_image

XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>a cat</x:xmpmeta>"
CAMERA, SHUTTER, LATITUDE = "a camera", 0x829A, 2


@pytest.fixture(scope="module")
def nano():
    return Codec("nano", decoder="embedded", device="cpu")


@pytest.fixture
def photo(photo_path):
    photo = Image.open(photo_path).convert("RGB").crop((100, 60, 175, 110))
    photo.info.clear()
    return photo


def of_gamma(gamma: float, space: bytes = b"RGB ", light: float = 1) -> bytes:
    """An ICC profile (version 2.1) with the primaries of sRGB, so light."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    text = b"text\0\0\0\0none\0\0\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": described, b"cprt": text, b"wtpt": xyz(0.9642, 1, 0.8249)}
    tags[b"rXYZ"] = xyz(0.4360 * light, 0.2225 * light, 0.0139 * light)
    tags[b"gXYZ"] = xyz(0.3851 * light, 0.7169 * light, 0.0971 * light)
    tags[b"bXYZ"] = xyz(0.1431 * light, 0.0606 * light, 0.7141 * light)
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve, b"kTRC": curve}
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR = of_gamma(1.0)


def exif() -> Image.Exif:
    """EXIF with a thumbnail's tags and those of a file that it no longer is in."""
    entries = Image.Exif()
    entries[0x010F] = CAMERA
    entries[0x0100], entries[0x0111] = 70_000, 8  # width, offset of the pixels
    entries.get_ifd(ExifTags.IFD.Exif)[SHUTTER] = 0.25
    entries.get_ifd(ExifTags.IFD.GPSInfo)[LATITUDE] = (48.0, 8.0, 0.0)
    return entries


def with_metadata(image: Image.Image, form: str, **more) -> io.BytesIO:
    """A file with EXIF and XMP."""
    options = {"exif": exif(), "xmp": XMP}
    if form == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    if form == "TIFF":
        options["exif"] = Image.Exif()
        options["exif"][0x010F] = CAMERA
        options["exif"][0x02BC] = options.pop("xmp")
    buffer = io.BytesIO()
    image.save(buffer, form, **options | more)
    buffer.seek(0)
    return buffer


def test_a_plain_image_has_no_chunks(nano, photo):
    blob = nano.encode(photo, keep_metadata=True)
    header, _, chunks = bitstream.read(blob)
    assert (header.flags, chunks) == (0, [])
    buffer = with_metadata(photo.convert("RGBA"), "PNG", icc_profile=SRGB)
    assert nano.encode(open_image(buffer)) == blob


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_come_back(nano, photo, mode):
    if mode.endswith("A"):
        photo.putalpha(Image.radial_gradient("L").resize(photo.size))
    image = photo.convert(mode)
    decoded = nano.decode(nano.encode(image))
    assert decoded.mode == mode
    assert decoded.size == image.size
    if mode.endswith("A"):
        assert decoded.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_a_mask_costs_little(photo):
    mask = Image.new("L", (1000, 800))
    mask.paste(255, (100, 100, 500, 700))
    [(tag, data)] = extras.to_chunks(Extras(alpha=mask))
    assert tag == "alph"
    assert len(data) < 250
    noise = Image.effect_noise((300, 200), 90)
    [(_, data)] = extras.to_chunks(Extras(alpha=noise))
    assert len(data) < 1.01 * 300 * 200
    assert extras.from_chunks([(tag, data)], (300, 200)).alpha.tobytes() == noise.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_metadata_travels(nano, photo, form):
    opened = open_image(with_metadata(photo, form), keep_metadata=True)
    decoded = nano.decode(nano.encode(opened, keep_metadata=True))
    assert decoded.info["xmp"] == XMP
    with Image.open(io.BytesIO(save.save(decoded, form, "a test"))) as saved:
        saved.load()
        assert saved.info["xmp"] == XMP
        entries = saved.getexif()
        assert entries[0x010F] == CAMERA
        assert entries[0x0131] == "a test"
        assert saved.size == photo.size
        if form != "TIFF":
            assert not {0x0100, 0x0111} & set(entries)
            assert entries.get_ifd(ExifTags.IFD.Exif)[SHUTTER] == 0.25
            assert entries.get_ifd(ExifTags.IFD.GPSInfo)[LATITUDE] == (48.0, 8.0, 0.0)


def kept(nano, data: bytes, form: str) -> Image.Image:
    """What is left of an image file on its way through a .lat file to a file of a format."""
    opened = open_image(data, keep_metadata=True)
    decoded = nano.decode(nano.encode(opened, keep_metadata=True))
    read = Image.open(io.BytesIO(save.save(decoded, form, "a test")))
    read.load()
    return read


PARAMETERS = "a cat, ü and 猫\nSteps: 20, Sampler: Euler"
IPTC = b"\x1c\x02\x78\x00\x05M\xfcnch"


def test_texts_and_resolution_of_png(nano, photo):
    texts = PngInfo()
    texts.add_text("parameters", PARAMETERS)
    texts.add_text("Title", "a cat", zip=True)
    texts.add_text("icc_profile", "a text that only looks like something else")
    photo.save(file := io.BytesIO(), "PNG", pnginfo=texts, dpi=(300, 150))
    read = kept(nano, file.getvalue(), "PNG")
    assert read.text["parameters"] == PARAMETERS
    assert read.text["Title"] == "a cat"
    assert "icc_profile" in read.text
    assert read.info["dpi"] == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("form", ["TIFF", "HEIF", "GIF"])
def test_what_pillow_says_of_a_format_is_no_metadata(nano, photo, form):
    """A resolution of 1 dpi, for example, of TIFF files without one."""
    file = io.BytesIO()
    if form == "HEIF":
        photo.info["icc_profile"] = SRGB
        pytest.importorskip("pillow_heif").from_pillow(photo).save(file)
    else:
        photo.save(file, form)
    assert open_image(file.getvalue(), keep_metadata=True).info == {}
    if form == "TIFF":
        assert not nano.decode(nano.encode(Image.open(file), keep_metadata=True)).info


def test_comment_iptc_and_resolution_of_jpeg(nano, photo):
    comment = "Grüße".encode("latin-1")
    photo.save(file := io.BytesIO(), "JPEG", comment=comment, dpi=(72, 72), extra=save._app13(IPTC))
    read = kept(nano, file.getvalue(), "JPEG")
    assert read.info["comment"] == comment
    assert read.info["dpi"] == (72, 72)
    assert read.info["photoshop"][0x0404] == IPTC
    assert kept(nano, file.getvalue(), "TIFF").tag_v2[0x83BB] == IPTC


def test_what_a_format_has_no_place_for_is_named(nano, photo):
    texts = PngInfo()
    texts.add_text("parameters", PARAMETERS)
    photo.save(file := io.BytesIO(), "PNG", pnginfo=texts, dpi=(300, 300))
    opened = open_image(file.getvalue(), keep_metadata=True)
    found = extras.from_image(opened, keep_metadata=True)
    with pytest.warns(ImageWarning, match="WEBP cannot store .*: text, resolution"):
        save.image_bytes(photo, found, "a.webp", "a test")


def test_what_cannot_be_kept_is_named(photo):
    texts = PngInfo()
    texts.add(b"caBX", b"a manifest")
    photo.save(file := io.BytesIO(), "PNG", pnginfo=texts)
    with pytest.warns(ImageWarning, match="cannot be kept: chunk caBX"):
        open_image(file.getvalue(), keep_metadata=True)
    segment = b"\xff\xeb" + struct.pack(">H", 2 + 12) + b"JP\0manifest!"
    photo.save(file := io.BytesIO(), "JPEG", extra=segment)
    with pytest.warns(ImageWarning, match="cannot be kept: segment APP11 JP"):
        open_image(file.getvalue(), keep_metadata=True)
    open_image(file.getvalue())  # nobody asked


def test_a_profile_of_srgb_costs_nothing(nano, photo):
    photo.save(file := io.BytesIO(), "PNG", icc_profile=SRGB)
    opened = open_image(file.getvalue(), keep_metadata=True)
    assert nano.encode(opened, keep_metadata=True) == nano.encode(photo)


def test_metadata_only_when_asked_for(nano, photo):
    opened = open_image(with_metadata(photo, "JPEG", icc_profile=LINEAR))
    assert nano.decode(nano.encode(opened)).info == {}


def test_orientation_is_applied_once(nano, photo):
    entries = exif()
    entries[0x0112] = 6
    opened = open_image(with_metadata(photo, "JPEG", exif=entries), keep_metadata=True)
    decoded = nano.decode(nano.encode(opened, keep_metadata=True))
    assert decoded.size == photo.size[::-1]
    assert 0x0112 not in decoded.getexif()
    assert decoded.getexif()[0x010F] == CAMERA


def xmp_turn(turn):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{turn}"/>'.encode()


def test_orientation_in_xmp_counts_without_one_in_exif(nano, photo):
    for tagged, size in ((None, photo.size[::-1]), (1, photo.size), (6, photo.size[::-1])):
        entries = exif()
        if tagged:
            entries[0x0112] = tagged
        data = with_metadata(photo, "JPEG", exif=entries, xmp=xmp_turn(6), dpi=(300, 150))
        opened = open_image(data, keep_metadata=True)
        assert opened.size == size
        dpi = tuple(map(round, opened.info["dpi"]))
        assert dpi == ((300, 150) if size == photo.size else (150, 300))
        decoded = nano.decode(nano.encode(opened, keep_metadata=True))
        assert decoded.info["xmp"] == xmp_turn(1)  # so no program turns it again


@pytest.mark.parametrize("form", ["LAT", "PNG"])
def test_pixels_need_not_be_read_before_encoding(nano, photo, form):
    """Pillow has the metadata of .lat files, and of PNG files behind the pixels, from then on."""
    photo.info["icc_profile"] = of_gamma(1.8)
    data = nano.encode(photo, keep_metadata=True)
    if form == "PNG":
        photo.save(file := io.BytesIO(), "PNG")
        body = b"tEXtTitle\0a cat"
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = file.getvalue()[:-12] + chunk + file.getvalue()[-12:]
    (read := Image.open(io.BytesIO(data))).load()
    expected = nano.encode(read, keep_metadata=True)
    assert nano.encode(Image.open(io.BytesIO(data)), keep_metadata=True) == expected
    assert bool(nano.decode(expected).info.get("Title")) == (form == "PNG")


@pytest.mark.parametrize("keyword", ["transparency", "source_icc_profile", "icc_profile_type"])
def test_texts_with_the_names_of_other_things_are_no_such_things(nano, photo, keyword):
    texts = PngInfo()
    texts.add_text(keyword, "72")
    texts.add_text("Title", "a cat")
    photo.save(file := io.BytesIO(), "PNG", pnginfo=texts)
    opened = open_image(file.getvalue(), keep_metadata=True)
    for image in (opened, Image.open(file)):
        decoded = nano.decode(nano.encode(image, keep_metadata=True))
        assert decoded.info.get("Title") == "a cat"
        assert keyword not in decoded.info
    chunks = extras.to_chunks(Extras(metadata=Metadata(text={keyword: "72"})))
    restored = extras.restore(photo.copy(), extras.from_chunks(chunks, photo.size))
    assert keyword not in restored.info


def test_profiles_become_srgb(photo):
    opened = open_image(with_metadata(photo, "PNG", icc_profile=LINEAR))
    linear = np.asarray(photo) / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert abs(np.asarray(opened) - 255 * srgb).max() <= 2
    same = open_image(with_metadata(photo, "PNG", icc_profile=SRGB))
    assert same.tobytes() == photo.tobytes()


def test_profiles_of_grey_and_cmyk(photo):
    grey = of_gamma(1.0, space=b"GRAY")
    for profile in (grey, LINEAR):
        opened = open_image(with_metadata(photo.convert("L"), "PNG", icc_profile=profile))
        assert opened.mode == "L"
        assert np.asarray(opened).mean() > np.asarray(photo).mean() + 20


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_kept_profiles_are_those_of_the_pixels(mode, photo):
    """What was sRGB in the file is in the space of the profile again, and says so."""
    image = photo.convert(mode)
    profile = of_gamma(1.8) if mode == "RGB" else of_gamma(1.8, space=b"GRAY")
    srgb = open_image(with_metadata(image, "PNG", icc_profile=profile), keep_metadata=True)
    kept_extras = extras.from_image(srgb, keep_metadata=True)
    assert kept_extras.metadata.profile == profile
    back = extras.restore(srgb.convert("RGB"), kept_extras)
    assert back.info["icc_profile"] == profile
    assert abs(np.asarray(back, int) - np.asarray(image)).mean() < 1.5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_pixels_with_an_rgb_profile_come_back_as_rgb(nano, photo, mode, form):
    """LittleCMS and libpng refuse such a profile for grey pixels."""
    profile = of_gamma(1.8)
    grey = photo.convert("L").convert(mode)
    if mode == "RGBA":
        grey.putpixel((0, 0), (0, 0, 0, 0))
    grey.info["icc_profile"] = profile
    blob = nano.encode(grey, keep_metadata=True, quality=95)
    (opened := Image.open(io.BytesIO(blob))).load()
    found = [nano.decode(blob), opened]
    if mode == "RGB":
        [plain] = nano.decode_latents([LatFile.parse(blob)])
        kept_extras = extras.from_chunks(LatFile.parse(blob).chunks, grey.size)
        file = save.image_bytes(plain, kept_extras, f"x.{form.lower()}", "embedded")
        found.append(Image.open(io.BytesIO(file)))
    for image in found:
        assert (image.mode, image.info["icc_profile"]) == (mode, profile)
        assert abs(np.asarray(image, int) - np.asarray(grey)).mean() < 12
        if form != "JPEG":
            assert extras.from_image(pixels.to_plain(image), keep_metadata=False).is_grey


LIES = {
    "no profile": b"not a profile",
    "cut": LINEAR[:200],
    "for grey": of_gamma(1.0, space=b"GRAY"),
    "for CMYK": of_gamma(1.0, space=b"CMYK"),
    "of a space unheard of": of_gamma(1.0, space=b"2CLR"),
    "tags past the end": LINEAR[:172] + b"\xff" * 8 + LINEAR[180:],
    "white is black": of_gamma(1.0, light=0),
}


@pytest.mark.parametrize("name", LIES)
def test_profiles_that_lie_are_told_and_not_used(photo, name):
    with pytest.warns(ImageWarning, match="taken as sRGB"):
        opened = open_image(with_metadata(photo, "WEBP", lossless=True, icc_profile=LIES[name]))
    assert opened.tobytes() == photo.tobytes()
    with pytest.warns(ImageWarning, match="stay in sRGB"):
        back = extras.restore(photo, Extras(metadata=Metadata(profile=LIES[name])))
    assert back.tobytes() == photo.tobytes()
    assert "icc_profile" not in back.info


def test_every_damage_to_a_profile_is_survived(photo):
    random = np.random.default_rng(0)
    image = photo.crop((0, 0, 8, 8))
    for _ in range(100):
        damaged = bytearray(LINEAR)
        for place in random.integers(0, len(LINEAR), 4):
            damaged[place] = random.integers(256)
        for convert in (colour.to_srgb, colour.from_srgb):
            try:
                assert convert(image, bytes(damaged)).size == image.size
            except ValueError as exc:
                assert str(exc)  # noqa: PT017


@pytest.mark.parametrize("kind", ["exif", "xmp", "icc_profile"])
def test_metadata_bombs_are_left_out(nano, photo, kind):
    photo.info[kind] = bytes(200_000_000)
    with pytest.warns(ImageWarning):
        blob = nano.encode(photo, keep_metadata=True)
    assert bitstream.read(blob)[2] == []


@pytest.mark.parametrize("data", [b"II*\0", b"no exif", b"MM\0*" + b"\xff" * 50])
def test_damaged_exif_is_left_out(nano, photo, data):
    photo.info["exif"] = b"Exif\0\0" + data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        decoded = nano.decode(nano.encode(photo, keep_metadata=True))
    assert CAMERA not in dict(decoded.getexif()).values()


def test_formats_that_hold_less(photo):
    photo.info |= {"exif": exif().tobytes(), "xmp": bytes(70_000), "icc_profile": SRGB}
    with pytest.warns(ImageWarning, match="XMP is dropped: JPEG cannot store 70000 bytes"):
        saved = save.save(photo, "JPEG", "a test")
    with Image.open(io.BytesIO(saved)) as read:
        assert (read.getexif()[0x0131], read.getexif()[0x010F]) == ("a test", CAMERA)
        assert read.info["icc_profile"] == SRGB  # it is what the pixels mean


def test_metadata_that_cannot_be_written_is_named(photo):
    photo.info |= {"exif": b"Exif\0\0no exif", "icc_profile": SRGB}
    with pytest.warns(ImageWarning, match="does not accept is dropped.*EXIF"):
        saved = save.save(photo, "JPEG", "a test")
    with Image.open(io.BytesIO(saved)) as read:
        assert dict(read.getexif()) == {0x0131: "a test"}
        assert read.info["icc_profile"] == SRGB


@pytest.mark.parametrize("name", hostile.BAD_CHUNKS)
def test_bad_chunks_are_refused(name):
    payload = load_coder("fast", has_trellis=False).encode(np.zeros((4, 1, 1), np.int32), 307)
    blob = hostile.with_chunks(payload, *hostile.BAD_CHUNKS[name])
    assert read_latents(blob)[0].width == 8  # the latents can be saved
    with pytest.raises((Corrupt, UnknownModel), match=r"chunk|detail layer"):
        extras.from_chunks(bitstream.read(blob).chunks, (8, 8))


def test_chunks_may_fill_their_limit():
    most = extras.to_chunks(Extras(metadata=Metadata(xmp=bytes(MAX_METADATA))))
    assert extras.from_chunks(most, (1, 1)).metadata.xmp == bytes(MAX_METADATA)
    with pytest.raises(Corrupt, match="more than"):
        extras.from_chunks(
            extras.to_chunks(Extras(metadata=Metadata(xmp=bytes(MAX_METADATA + 1)))), (1, 1)
        )


def test_the_chunks_are_those_of_the_specification():
    """Unpacked as the format is described, with nothing of dynenc."""
    given = Extras(is_grey=True, alpha=Image.new("L", (3, 2), 9), metadata=Metadata(xmp=XMP))
    settings = {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
    raw = [
        (tag, lzma.decompress(data, lzma.FORMAT_RAW, filters=[settings]) if data else b"")
        for tag, data in extras.to_chunks(given)
    ]
    assert raw == [("grey", b""), ("alph", b"\x09" * 6), ("xmpp", XMP)]

"""Pillow opens and saves .lat files, without importing torch before pixels are needed."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat, UnidentifiedImageError

import dynenc.pillow
from dynenc import Codec
from dynenc.batch import plan
from dynenc.coding import bitstream
from dynenc.errors import TargetMissed, WeightsError

GOLDEN = Path(__file__).parent / "golden" / "v1_light_33x40.lat"


@pytest.fixture
def image(photo_path):
    return Image.open(photo_path).convert("RGB").crop((100, 60, 171, 109))


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "LAT", **options)
    return file.getvalue()


def test_open_gives_what_the_codec_decodes():
    with Image.open(GOLDEN) as image:
        assert (image.format, image.mode, image.size) == ("LAT", "RGB", (33, 40))
        assert image.get_format_mimetype() == "image/x-lat"
        expected = Codec(decoder="embedded").decode(GOLDEN.read_bytes())
        assert ImageChops.difference(image, expected).getbbox() is None
        assert image.resize((8, 8)).size == (8, 8)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_images_can_be_copied_and_pickled(is_loaded):
    expected = Image.open(GOLDEN)
    for again in (copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))):
        image = Image.open(GOLDEN)
        if is_loaded:
            image.load()
        copied = again(image)
        assert copied.size == (33, 40)
        assert ImageChops.difference(copied, expected).getbbox() is None


@pytest.mark.parametrize(
    ("size", "divisor"), [((40, 30), 8), ((90, 30), 4), ((225, 150), 2), ((226, 1), 1)]
)
def test_draft_decodes_a_smaller_image(photo_path, size, divisor):
    blob = saved(Image.open(photo_path).convert("RGB"))
    opened = Image.open(io.BytesIO(blob))
    found = opened.draft("L", size)
    if divisor == 1:
        assert found is None
    else:
        assert found == ("RGB", (0, 0, 451 / divisor, 300 / divisor))
    assert opened.size == (-(-451 // divisor), -(-300 // divisor))
    assert opened.draft(None, (1, 1)) is None or divisor == 1
    expected = Codec(decoder="embedded").decode(blob, scale=1 / divisor)
    if divisor > 1:
        assert opened.tobytes() == expected.tobytes()
        assert opened.draft(None, (1, 1)) is None


def test_thumbnails_are_decoded_at_a_smaller_size(photo_path, monkeypatch):
    opened = Image.open(io.BytesIO(saved(Image.open(photo_path).convert("RGB"))))
    scales = []
    decode = Codec.decode
    monkeypatch.setattr(
        Codec, "decode", lambda *a, **k: scales.append(k["scale"]) or decode(*a, **k)
    )
    whole = Image.open(photo_path).convert("RGB")
    for image in (opened, whole):
        image.thumbnail((75, 50))
    assert scales == [1 / 2]  # Pillow asks for twice the size
    assert opened.size == whole.size == (75, 50)
    assert ImageStat.Stat(ImageChops.difference(opened, whole)).mean < [12] * 3


def test_save_by_suffix(image, tmp_path):
    image.save(tmp_path / "a.lat", quality=80)
    blob = (tmp_path / "a.lat").read_bytes()
    assert blob == Codec().encode(image, quality=80)
    assert bitstream.read(blob)[0].step_q == 150
    with Image.open(tmp_path / "a.lat") as again:
        assert again.size == image.size
        again.convert("L").save(tmp_path / "b.png")


@pytest.mark.filterwarnings("ignore::dynenc.errors.ImageWarning")  # of 16 bits
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_save_of_any_mode(image, mode):
    blob = saved(image.convert("L").convert(mode))
    opened = Image.open(io.BytesIO(blob))
    expected = Codec(decoder="embedded").decode(blob)
    assert (opened.mode, opened.size) == (expected.mode, expected.size)
    assert opened.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_known_at_once_and_comes_back(image, mode):
    alpha = Image.linear_gradient("L").resize(image.size)
    transparent = image.convert(mode)
    transparent.putalpha(alpha)
    opened = Image.open(io.BytesIO(saved(transparent)))
    assert opened.mode == mode
    assert opened.getchannel("A").tobytes() == alpha.tobytes()


def test_metadata_is_kept_if_asked_for(image):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    image.info["exif"] = exif.tobytes()
    opened = Image.open(io.BytesIO(saved(image, keep_metadata=True)))
    assert opened.getexif()[0x010E] == "a cat"


def test_options_of_save(image):
    assert saved(image) == Codec().encode(image)
    assert bitstream.read(saved(image, encoder="nano"))[0].model_id == 1
    tuned = saved(image, quality=50, effort=1)
    assert tuned == Codec().encode(image, quality=50, effort=1) != saved(image)
    with pytest.raises(TargetMissed):
        saved(image, target_size=20, strict=True)
    with pytest.raises(WeightsError, match="unknown encoder 'none'"):
        saved(image, encoder="none")
    with pytest.raises(ValueError, match="quality 101"):
        saved(image, quality=101)


def test_failed_save_leaves_no_file(image, tmp_path):
    with pytest.raises(ValueError, match="quality -1"):
        image.save(tmp_path / "a.lat", quality=-1)
    assert list(tmp_path.iterdir()) == []


def test_decoder_is_a_choice(monkeypatch):
    monkeypatch.setattr(dynenc.pillow, "decoder", "no/such folder")
    with Image.open(GOLDEN) as opened, pytest.raises(WeightsError):
        opened.load()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:4], lambda b: b[:30] + b[31:]])
def test_damaged_files_are_refused(damage, tmp_path):
    with pytest.raises(UnidentifiedImageError, match="file is"):
        Image.open(io.BytesIO(damage(GOLDEN.read_bytes())))
    (tmp_path / "a.lat").write_bytes(damage(GOLDEN.read_bytes()))
    with pytest.raises(UnidentifiedImageError, match=r"a\.lat: .*file is"):
        Image.open(tmp_path / "a.lat")


def test_damaged_payload_is_noticed_at_load():
    header, payload, _ = bitstream.read(GOLDEN.read_bytes())
    opened = Image.open(io.BytesIO(bitstream.write(header, payload + bytes(4))))
    with pytest.raises(OSError, match="payload"):
        opened.load()


def test_bombs_meet_pillows_limit():
    header = bitstream.Header(65_535, 65_535, 307, 2, 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bitstream.write(header, bytes(100))))


def test_no_more_than_the_largest_valid_file_is_read(tmp_path):
    (path := tmp_path / "sparse.lat").write_bytes(GOLDEN.read_bytes())
    os.truncate(path, 20 * 2**30)
    with pytest.raises(UnidentifiedImageError, match="longer than"):
        Image.open(path)
    with open("/dev/zero", "rb") as endless, pytest.raises(UnidentifiedImageError):  # noqa: PTH123
        Image.open(endless)


def test_lat_files_in_a_folder_are_no_images_to_encode():
    assert ".lat" not in plan.input_suffixes("encode")


def test_files_open_and_load_without_torch():
    code = (
        "import sys, dynenc.pillow; from PIL import Image;"
        f"p = Image.open({str(GOLDEN)!r}); assert p.size == (33, 40);"
        "assert 'torch' not in sys.modules; p.load(); from dynenc import runtime;"
        "assert runtime.has_gpu() or 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)

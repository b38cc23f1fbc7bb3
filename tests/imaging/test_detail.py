"""The detail layer: its chunk, what it covers, how it is laid over an image, what is refused."""

import io

import numpy as np
import pytest
from imaging.test_graphics import page, photo, screen
from PIL import Image, features

from dynenc import Codec, runtime
from dynenc.batch.verify import verify
from dynenc.coding.bitstream import DETAIL, MAX_PIXELS
from dynenc.coding.encode_options import EncodeOptions
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, ImageWarning, MissingFormat, UnknownModel, UsageError
from dynenc.imaging import detail, detail_plan
from dynenc.imaging.detail import CHUNK_HEAD, FEATHER
from dynenc.imaging.detail_plan import plan_detail
from dynenc.imaging.packing import pack
from dynenc.interop import whole_latents
from dynenc.networks import integer_decoder
from dynenc.view import WHOLE, Region, View

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
MASK = np.zeros((7, 9), bool)
MASK[1:4, 2:7] = True
MASK[5, 0] = True
SIZE = 140, 100


def coded(quality=50, mask=MASK, size=SIZE):
    image = screen((160, 112)).crop((0, 0, *size))
    return image, detail.to_chunk(image, mask, quality)


@pytest.fixture(scope="module")
def codec():
    return Codec("nano", decoder="embedded", device="cpu")


def test_mask_and_image_come_back():
    image, chunk = coded()
    layer = detail.from_chunks([("skip", b""), chunk], SIZE)
    assert np.array_equal(layer.mask, MASK)
    assert (layer.form, layer.quality, layer.n_bytes) == ("AVIF", 50, len(chunk[1]))
    assert detail.box_of(MASK, SIZE) == (0, 16, 112, 96)
    assert layer.image.size == (112, 80)
    inside = image.crop((36, 20, 108, 60))
    difference = np.asarray(layer.image.crop((36, 4, 108, 44)), int) - np.asarray(inside)
    assert abs(difference).mean() < 8


def test_pixels_outside_the_mask_stay_and_those_far_inside_are_the_layers():
    _, chunk = coded()
    layer, below = detail.from_chunks([chunk], SIZE), Image.new("RGB", SIZE, (90, 10, 200))
    above = Image.new("RGB", SIZE)
    above.paste(layer.image, (0, 16))
    result = np.asarray(layer.composite_over(below.copy()))
    weight = detail.weights(MASK, SIZE)
    assert np.array_equal(result[weight == 0], np.asarray(below)[weight == 0])
    whole = weight == FEATHER + 1
    assert np.array_equal(result[whole], np.asarray(above)[whole])
    by_layer = weight[..., None] / 5
    exact = by_layer * np.asarray(above) + (1 - by_layer) * np.asarray(below)
    assert abs(result - exact).max() <= 0.5 + 1e-9


def test_weights_are_distances_to_the_nearest_pixel_outside():
    weight = detail.weights(MASK, SIZE)
    assert weight[16:64, 31:38].tolist() == [
        [0, *(min(x, y, 5) for x in range(1, 7))] for y in (*range(1, 25), *range(24, 0, -1))
    ]
    assert weight[80:96, 0].tolist() == [1, 2, 3, 4, *[5] * 8, 4, 3, 2, 1]
    assert (detail.weights(np.ones((7, 9), bool), SIZE) == 5).all()


def test_a_page_comes_back_sharp_and_its_photograph_from_the_latents(codec):
    image = page()
    blob = codec.encode(image, quality=50)
    with pytest.warns(ImageWarning, match="legible"):
        without = codec.encode(image, detail="off")
    decoded, plain = codec.decode(blob), codec.decode(without)
    file = LatFile.parse(blob)
    assert detail.has_layer(file)
    text = np.s_[190:, :]
    errors = [
        abs(np.asarray(each, int)[text] - np.asarray(image)[text]) for each in (decoded, plain)
    ]
    assert errors[0].mean() < errors[1].mean() / 2
    pixels = codec.decode_tensor(blob).add(1).mul(127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(decoded))


def test_of_a_screen_the_layer_is_all_and_no_network_decodes(codec, monkeypatch):
    image = screen((320, 208))
    blob = codec.encode(image, quality=60)
    file = LatFile.parse(blob)
    assert detail.is_whole(file)
    assert detail.file_quality(file) == 60
    assert not file.symbols.any()
    monkeypatch.setattr(codec.backend, "images", None)
    decoded = np.asarray(codec.decode(blob), int)
    white = (np.asarray(image) == 255).all(-1)
    assert abs(decoded[white].mean(0) - 255).max() <= 2


def test_photographs_have_no_layer_and_keep_their_bytes(codec):
    blob = codec.encode(photo())
    assert blob == codec.encode(photo(), detail="off")
    assert LatFile.parse(blob).chunks == []


def test_arrays_and_tensors_have_the_same_layer(codec):
    torch = pytest.importorskip("torch")
    pixels = np.array(screen((160, 112), "navy"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    blobs = {codec.encode(each) for each in (Image.fromarray(pixels), pixels, tensor)}
    blobs.add(codec.encode(tensor / 127.5 - 1))
    assert len(blobs) == 1


def test_the_number_of_threads_does_not_change_the_layer(codec):
    images = [screen((200, 200)), screen((320, 208), "navy"), page()]
    blobs = []
    for threads in (None, 1, 2, 3):
        with runtime.tuned_process(threads):
            blobs.append([codec.encode(image) for image in images])
    assert all(each == blobs[0] for each in blobs)


def test_a_layer_that_is_off_is_missed(codec):
    with pytest.warns(ImageWarning, match=r"100 % of it is text or graphics, .* use --detail auto"):
        blob = codec.encode(screen(ink="navy"), detail="off")
    assert LatFile.parse(blob).chunks == []
    with pytest.raises(UsageError, match="unknown detail 'yes'"):
        codec.encode(screen(), detail="yes")


@pytest.mark.parametrize("n_bytes", [2500, 4000, 6000])
def test_targets_count_the_layer(codec, n_bytes):
    image = page()
    blob = codec.encode(image, target_size=n_bytes)
    assert 0.97 * n_bytes < len(blob) <= n_bytes
    assert detail.has_layer(LatFile.parse(blob))


def test_a_target_too_small_for_the_layer_goes_without(codec):
    image = page()
    with pytest.warns(ImageWarning, match="use a larger target"):
        blob = codec.encode(image, target_size=700)
    assert len(blob) <= 700
    assert not detail.has_layer(LatFile.parse(blob))


def test_a_target_psnr_is_that_of_the_whole_image(codec):
    image = page()
    blob = codec.encode(image, target_psnr=25)
    errors = np.asarray(codec.decode(blob), float) - np.asarray(image)
    assert 10 * np.log10(255**2 / (errors**2).mean()) >= 25


def test_the_smaller_of_a_part_and_the_whole_as_layer_is_written(codec, monkeypatch):
    image = page()
    [chosen] = codec.encode_batch([image], EncodeOptions())
    monkeypatch.setattr(detail_plan, "WHOLE_LAYER_SHARE", 2)
    [part] = codec.encode_batch([image], EncodeOptions())
    assert not detail.is_whole(part.file)
    assert len(chosen.blob) <= len(part.blob)
    assert detail.is_whole(chosen.file) == ("covers the whole image" in chosen.note)


def test_of_a_photograph_a_layer_has_the_quality_that_it_needs_and_type_no_more():
    image = page()
    found = plan_detail(image, "auto")
    paper = plan_detail(screen((320, 256)), "auto")
    assert found.has_photograph
    assert not paper.has_photograph
    less = detail.to_chunk(image, found.mask, 50 - detail_plan.PHOTO_QUALITY_CUT)
    assert found.chunk(50) == detail.with_quality(less, 50)
    whole = found.whole()
    better = detail.to_chunk(image, whole.mask, 50 + detail_plan.WHOLE_QUALITY_GAIN)
    assert whole.chunk(50) == detail.with_quality(better, 50)


def test_hidden_latents_are_zeros_and_do_not_reach_visible_pixels(codec):
    image = page()
    file = codec.encode_batch([image], EncodeOptions())[0].file
    layer = detail.from_chunks(file.chunks, image.size)
    covered = layer.mask.repeat(2, 0).repeat(2, 1)
    hidden = detail.hidden_latents(layer.mask, image.size)
    assert (hidden <= covered).all()
    assert hidden.sum() > covered.sum() / 2
    plain = plan_detail(image, "auto").zero_covered_latents(np.ones((4, 32, 40), np.float32))
    assert np.array_equal(plain[0] == 0, hidden)


@pytest.mark.parametrize("view", [WHOLE, View(Region(70, 50, 100, 90)), View(None, 4)])
def test_what_is_hidden_is_not_decoded_and_no_pixel_changes(codec, view):
    file = codec.encode_batch([page()], EncodeOptions())[0].file
    size = file.size
    layer = detail.from_chunks(file.chunks, size)
    part = detail.visible_region(file)
    assert part.width * part.height < size[0] * size[1]
    [decoded] = codec.decode_latents([file], view)
    whole = integer_decoder.decode(file, "embedded", view)
    assert np.array_equal(layer.composite_over(decoded, view), layer.composite_over(whole, view))
    corner = View(Region(0, 0, 8, 8))
    assert not np.any(integer_decoder.decode(file, "embedded", corner, Region(16, 16, 8, 8)))


def test_effort_refines_what_is_beneath(codec):
    image = page().crop((48, 32, 176, 128))
    blob = codec.encode(image, effort=1)
    assert codec.decode(blob).size == image.size


def test_grey_and_transparent_screens_keep_what_they_are(codec):
    grey = screen((160, 112)).convert("L")
    assert codec.decode(codec.encode(grey)).mode == "L"
    seen = screen((160, 112), "navy")
    seen.putalpha(Image.linear_gradient("L").resize(seen.size))
    assert codec.decode(codec.encode(seen)).mode == "RGBA"


def test_without_avif_the_layer_is_webp_and_avif_is_refused_by_name(codec, monkeypatch, tmp_path):
    with_avif = codec.encode(screen())
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    with pytest.raises(MissingFormat, match="are AVIF") as refused:
        codec.decode(with_avif)
    assert "pip install" in refused.value.hint
    (path := tmp_path / "a.lat").write_bytes(with_avif)
    [(_, fault)] = verify([str(path)], max_pixels=MAX_PIXELS)
    assert "pip install" in fault.hint  # not from a backup
    blob = codec.encode(screen())
    assert detail.from_chunks(LatFile.parse(blob).chunks, screen().size).form == "WEBP"
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.warns(ImageWarning, match="install a Pillow that writes AVIF"):
        codec.encode(screen())


def image_bytes(image, form="AVIF", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def changed(chunk, image=None, mask=None, head=None):
    """The chunk with other parts."""
    _, data = chunk
    number, quality, length = CHUNK_HEAD.unpack_from(data)
    bits = data[CHUNK_HEAD.size : CHUNK_HEAD.size + length] if mask is None else mask
    body = data[CHUNK_HEAD.size + length :] if image is None else image
    return DETAIL, CHUNK_HEAD.pack(*(head or (number, quality, len(bits)))) + bits + body


def test_other_images_are_refused():
    image, chunk = coded()
    sound = chunk[1][CHUNK_HEAD.size + CHUNK_HEAD.unpack_from(chunk[1])[2] :]
    part = image.crop(detail.box_of(MASK, SIZE))
    clear = part.copy()
    clear.putalpha(100)
    deep, wrong_size = bytearray(sound), bytearray(sound)
    start = sound.index(b"mdat") + 4
    assert sound[start : start + 3] == b"\x12\x00\x0a"
    wrong_size[sound.index(b"ispe") + 11] ^= 1
    deep[start + 4 + 4] ^= 0xFF
    padded = sound.replace(b"ftyp", b"free", 1)
    frames = {"save_all": True, "append_images": [part.rotate(180)]}
    for other in (
        b"",
        sound[:-9],
        sound[:200],
        bytes(wrong_size),
        bytes(deep),
        padded,
        sound + b"\0\0\0\x08free",
        image_bytes(image),
        image_bytes(clear),
        image_bytes(part, **frames),
        image_bytes(part, "PNG"),
        image_bytes(part, "WEBP"),
    ):
        with pytest.raises(Corrupt, match=DETAIL):
            detail.from_chunks([changed(chunk, other)], SIZE)
    for other in (
        image_bytes(image, "WEBP"),
        image_bytes(clear, "WEBP"),
        image_bytes(part, "WEBP", **frames),
        sound,
    ):
        mask_length = CHUNK_HEAD.unpack_from(chunk[1])[2]
        with pytest.raises(Corrupt, match=DETAIL):
            detail.from_chunks([changed(chunk, other, head=(2, 50, mask_length))], SIZE)


def test_other_masks_forms_and_lengths_are_refused():
    _, chunk = coded()
    length = CHUNK_HEAD.unpack_from(chunk[1])[2]
    empty, full = bytes(8), b"\xff" * 8
    for bad in (
        changed(chunk, mask=pack(empty)),
        changed(chunk, mask=pack(full)),  # a bit more than there are tiles
        changed(chunk, mask=pack(full[:7])),
        changed(chunk, mask=pack(full + b"\0")),
        changed(chunk, mask=pack(bytes(10**8))),
        changed(chunk, mask=full),
        changed(chunk, head=(1, 50, length + 10**6)),
        changed(chunk, head=(1, 101, length)),
        (DETAIL, chunk[1][:5]),
    ):
        with pytest.raises(Corrupt, match=DETAIL):
            detail.from_chunks([bad], SIZE)
    with pytest.raises(Corrupt, match="twice"):
        detail.from_chunks([chunk, chunk], SIZE)
    with pytest.raises(UnknownModel, match="form 3"):
        detail.from_chunks([changed(chunk, head=(3, 50, length))], SIZE)


def test_the_layer_of_other_sizes_of_image_is_refused():
    _, chunk = coded()
    for size in ((SIZE[0], SIZE[1] + 16), (8, 8), (1000, 1000)):
        with pytest.raises(Corrupt, match=DETAIL):
            detail.from_chunks([chunk], size)


def test_layers_too_large_for_the_formats_are_not_made():
    mask = np.ones((1, 40_000 // 16), bool)
    assert detail.layer_format(mask, (40_000, 16)) == ""
    assert detail.layer_format(mask[:, :2000], (40_000, 16)) == "AVIF"


def test_levels_of_quality_rise_with_the_quality():
    levels = [detail.layer_quality(quality) for quality in range(-50, 120)]
    assert levels == sorted(levels)
    assert 0 <= levels[0] < levels[-1] <= 100


def test_exported_latents_are_those_of_the_whole_image(codec):
    image = page()
    file = LatFile.parse(codec.encode(image, quality=80))
    latents = whole_latents.full_image_latents(file)
    [wanted] = codec.latents([image])
    assert abs(latents - wanted).mean() < 0.6 * abs(file.latents - wanted).mean()
    plain = LatFile.parse(codec.encode(photo()))
    assert whole_latents.full_image_latents(plain) is plain.latents


def test_pillows_limit_on_sizes_does_not_apply(codec, monkeypatch):
    image = screen((320, 208))
    blob = codec.encode(image)
    expected = codec.decode(blob)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 320 * 208 // 2 - 1)  # twice that is refused
    assert codec.decode(blob).tobytes() == expected.tobytes()

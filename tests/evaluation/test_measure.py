"""Pairs of images, and the codecs that dynenc is compared with."""

import pytest
from PIL import Image

from dynenc.errors import UsageError
from dynenc.evaluation import measure, reference_codecs
from dynenc.evaluation.measure import Measure, load_distances, means
from dynenc.imaging import formats


@pytest.fixture
def pair(photo_path):
    """A piece of a photograph, and a JPEG of it."""
    original = Image.open(photo_path).convert("RGB").crop((60, 40, 260, 210))
    return reference_codecs.REFERENCE_CODECS["jpeg"].decode(
        reference_codecs.REFERENCE_CODECS["jpeg"].encode(original, 20)
    ), original


def test_features_of_large_originals_are_not_kept(pair, lpips_path, vgg_path, monkeypatch):
    one = Measure(load_distances(lpips_path, vgg_path))
    figures = one(*pair)
    assert list(figures) == ["psnr-rgb", "ms-ssim-rgb", "lpips", "lpips-vgg", "dists"]
    monkeypatch.setattr(measure, "KEPT_PIXELS", 0)
    assert one(*pair) == figures


def test_bfloat16_changes_figures_little(pair, lpips_path, vgg_path):
    distances = load_distances(lpips_path, vgg_path)
    rough, exact = Measure(distances, bfloat16=True)(*pair), Measure(distances)(*pair)
    assert rough == pytest.approx(exact, rel=0.03)
    assert rough != exact


def test_small_images_have_fewer_figures(pair, lpips_path):
    one = Measure(load_distances(lpips_path))
    for side, names in ((160, {"psnr-rgb", "lpips"}), (31, {"psnr-rgb"})):
        assert one(*(image.crop((0, 0, side, side)) for image in pair)).keys() == names


def test_means_are_of_what_all_rows_have():
    assert means([{"a": 1, "b": 2}, {"a": 2}]) == {"a": 1.5}


@pytest.mark.parametrize("codec", reference_codecs.installed(), ids=lambda codec: codec.name)
def test_peers_spend_more_bytes_for_more_quality(pair, codec):
    original = pair[1]
    files = [codec.encode(original, quality) for quality in codec.qualities[::2]]
    assert sorted(files, key=len) == files
    figures = [Measure({})(codec.decode(file), original)["psnr-rgb"] for file in files]
    assert sorted(figures) == figures


def test_a_peer_that_pillow_lacks(monkeypatch):
    monkeypatch.setattr(formats, "can_write", lambda _: False)
    assert reference_codecs.installed() == []
    with pytest.raises(
        UsageError, match="this Pillow cannot write JPEG XL: install pillow-jxl-plugin"
    ):
        reference_codecs.parse("jxl:30")

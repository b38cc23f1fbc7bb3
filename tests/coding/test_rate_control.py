import math

import pytest
from PIL import Image

from dynenc import metrics
from dynenc.codec import Codec
from dynenc.coding import bitstream, rate_control
from dynenc.coding.rate_control import COARSEST_STEP_Q, FINEST_STEP_Q, Goal, parse_size, search
from dynenc.errors import UsageError
from dynenc.imaging.tensors import to_tensor


@pytest.fixture(scope="module")
def nano():
    return Codec.from_pretrained("nano", decoder="embedded", device="cpu")


@pytest.fixture
def photo(photo_path):
    return Image.open(photo_path).convert("RGB")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        (5000, 5000),
        ("5000", 5000),
        ("5KB", 5000),
        ("5kb", 5000),
        (" 5 KiB", 5120),
        ("1.5MB", 1_500_000),
        (".5MiB", 2**19),
        ("7B", 7),
    ],
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "KB", "5 apples", "-5", "5IB", "1e4", "5K", "nan", "5,000"])
def test_texts_that_are_no_size(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


def test_one_goal_at_most():
    assert rate_control.goal() == Goal("quality", 50)
    assert rate_control.goal(target_size="5KB") == Goal("bytes", 5000)
    with pytest.raises(UsageError, match="cannot be combined"):
        rate_control.goal(50, target_bpp=0.1)
    with pytest.raises(UsageError, match="cannot be combined"):
        rate_control.goal(target_psnr=25, target_size=100)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["target_bpp", "target_psnr"])
def test_goals_that_make_no_sense(name, value):
    with pytest.raises(UsageError, match="not a positive"):
        rate_control.goal(**{name: value})


def test_a_missed_goal_is_worth_a_word():
    assert Goal("bpp", 0.1).note(0.098) == ""
    assert Goal("dB", 27).note(27.3) == ""
    assert "target 0.1 bpp not reached, closest is 0.09" in Goal("bpp", 0.1).note(0.09)
    assert "dB" in Goal("dB", 27).note(26.9)
    assert "bytes" in Goal("bytes", 10).note(22)
    assert Goal("quality", 50).note(0) == ""


@pytest.mark.parametrize("target", [3, 10, 77.7, 1000])
@pytest.mark.parametrize("at_most", [True, False])
def test_search_ends_on_the_right_side(target, at_most):
    trials = []

    def measure(step_q):
        trials.append(step_q)
        return 100_000 / step_q

    step_q, reached = search(measure, target, at_most=at_most)
    assert reached == 100_000 / step_q
    assert reached <= target if at_most else reached >= target
    assert reached == pytest.approx(target, rel=0.01)
    assert len(trials) <= 16


def test_search_of_what_cannot_be_reached():
    for at_most in (True, False):
        assert search(lambda step_q: 1 / step_q, 1e9, at_most=at_most)[0] == FINEST_STEP_Q
        assert search(lambda step_q: 1 / step_q, 1e-9, at_most=at_most)[0] == COARSEST_STEP_Q


def test_search_of_a_measure_in_jumps():
    """Of equals, the finest step of a size, the coarsest of a PSNR."""

    def measure(step_q):
        return 100 if step_q < 200 else 60

    assert search(measure, 80, at_most=True) == (200, 60)
    assert search(measure, 80, at_most=False) == (199, 100)


@pytest.mark.parametrize("bpp", [0.05, 0.15, 0.3])
def test_target_bpp(nano, photo, bpp):
    blob = nano.encode(photo, target_bpp=bpp)
    reached = bitstream.bpp(len(blob), *photo.size)
    assert 0.97 * bpp <= reached <= bpp


def test_target_size(nano, photo):
    assert 1940 <= len(nano.encode(photo, target_size="2KB")) <= 2000


def test_target_psnr(nano, photo):
    part = photo.crop((100, 60, 260, 220))
    blob = nano.encode(part, target_psnr=22)
    psnr = metrics.psnr_db(to_tensor(nano.decode(blob)), to_tensor(part))
    assert 22 <= psnr <= 22.3
    coarser = nano.encode(part, target_psnr=20)
    assert len(coarser) < len(blob)


def test_the_encoder_runs_once(photo, monkeypatch):
    nano = Codec("nano", device="cpu")
    calls, encode = [], nano.native_encoder.latents
    monkeypatch.setattr(
        nano.native_encoder, "latents", lambda pixels: calls.append(1) or encode(pixels)
    )
    nano.encode(photo, target_size=2000)
    assert calls == [1]


def test_targets_out_of_reach(nano, photo, caplog):
    caplog.set_level("INFO", "dynenc")
    part = photo.crop((100, 60, 164, 124))
    smallest = nano.encode(part, target_size=1)
    assert len(smallest) == 22
    assert "target 1 bytes not reached, closest is" in caplog.text
    caplog.clear()
    assert len(nano.encode(part, target_bpp=100)) > 10 * len(smallest)
    assert "target 100 bpp" in caplog.text
    caplog.clear()
    nano.encode(part, target_psnr=60)
    assert "target 60 dB" in caplog.text


def test_any_size_of_image(nano):
    for size in ((1, 1), (7, 13), (64, 1)):
        image = Image.effect_noise(size, 40).convert("RGB")
        assert nano.decode(nano.encode(image, target_size=30)).size == size
        assert nano.decode(nano.encode(image, target_psnr=20)).size == size

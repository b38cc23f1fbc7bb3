import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from dynenc import codec, distortion, metrics, refine
from dynenc.codec import Codec
from dynenc.coding import bitstream, quantize
from dynenc.coding.bit_costs import bit_costs, context_gradient
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.distortion import Distortion
from dynenc.errors import OutOfMemory
from dynenc.imaging import tensors
from dynenc.networks.tiling import TiledDecoder

STEP_Q = 307


@pytest.fixture(scope="module")
def nano():
    return Codec.from_pretrained("nano", decoder="embedded", device="cpu")


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    monkeypatch.setattr(refine, "DESCENT_STEPS", (3, 5, 8, 1, 1, 1, 1, 1, 1))
    monkeypatch.setattr(refine, "SEARCH_ROUNDS", (1, 2, 3, 1, 1, 1, 1, 1, 1))


@pytest.fixture
def photo(photo_path):
    return Image.open(photo_path).convert("RGB").crop((100, 60, 171, 117))


def refined(nano, photo, effort, most_bytes=None):
    image = tensors.to_tensor(photo)
    with torch.no_grad():
        latents = nano.encoder(tensors.pad(image))
    coder = load_coder("full", has_trellis=False)
    symbols = quantize.to_symbols(latents[0].numpy(), STEP_Q, coder)
    file = LatFile.from_symbols(symbols, coder, photo.size, STEP_Q, nano.model)
    if effort:
        most = most_bytes + len(file.to_bytes()) - len(file.payload) if most_bytes else math.inf
        refiner = refine.Refiner(nano.backend.perceptual, nano.decoder, effort)
        file = refiner.refine(file, latents, image, most)
    with torch.no_grad():
        measure = Distortion(image, latents, file.step, nano.backend.perceptual, nano.decoder)
        distance = measure.of(torch.from_numpy(file.latents)[None]).sum()
    return file.symbols, distance, len(file.payload)


def test_every_effort_is_better_and_no_larger(nano, photo):
    found = [refined(nano, photo, effort) for effort in range(4)]
    distances = [distance for _, distance, _ in found]
    assert distances == sorted(distances, reverse=True)
    assert distances[3] < 0.9 * distances[0]
    assert max(n_bytes for _, _, n_bytes in found) <= found[0][2]


def test_the_search_finds_better_symbols(nano, photo, monkeypatch):
    found = []
    for rounds in (0, 8):
        monkeypatch.setattr(refine, "SEARCH_ROUNDS", (rounds,) * 9)
        found.append(refined(nano, photo, 2))
    (_, without, most), (_, distance, n_bytes) = found
    assert distance < 0.97 * without
    assert n_bytes <= most + 4


def test_changes_are_tried_apart():
    costs = np.random.default_rng(0).normal(0, 1, (8, 30, 20)).astype(np.float32)
    kinds, rows, columns = refine._local_minima(costs)
    assert len(kinds) > 20
    for kind, row, column in zip(kinds, rows, columns, strict=True):
        top, left = max(0, row - refine.NEAR), max(0, column - refine.NEAR)
        near = costs[:, top : row + refine.NEAR + 1, left : column + refine.NEAR + 1]
        assert costs[kind, row, column] == near.min() < 0
    assert not len(refine._local_minima(np.abs(costs))[0])


def test_changes_are_of_one_symbol_each():
    symbols = np.zeros((4, 3, 2), np.int32)
    changed = refine._changed(symbols, np.array([1, 6]), np.array([0, 2]), np.array([1, 0]))
    assert (changed[1, 0, 1], changed[2, 2, 0]) == (1, -1)
    assert np.abs(changed).sum() == 2
    assert not symbols.any()


def test_there_is_no_chance_in_it(nano, photo):
    one, two = (refined(nano, photo, 2)[0] for _ in range(2))
    assert np.array_equal(one, two)


def test_more_bytes_may_be_used(nano, photo_path, monkeypatch):
    """They help only where the limit binds, which it does in this part of the photo."""
    monkeypatch.undo()
    photo = Image.open(photo_path).convert("RGB").crop((280, 150, 376, 246))
    _, distance, n_bytes = refined(nano, photo, 3)
    _, smaller, more = refined(nano, photo, 3, most_bytes=2 * n_bytes)
    assert smaller < 0.98 * distance
    assert n_bytes < more <= 2 * n_bytes


def test_encode_with_an_effort(nano, photo):
    plain, better = (nano.encode(photo, effort=effort) for effort in (0, 3))
    before, after = (bitstream.read(blob).header for blob in (plain, better))
    assert (before.coder_id, after.coder_id, after.step_q) == (1, 2, before.step_q)
    assert len(better) <= len(plain)
    one, two = (metrics.psnr_db(tensors.to_tensor(nano.decode(blob)), tensors.to_tensor(photo))
                for blob in (plain, better))  # fmt: skip
    assert two > one + 0.5


def test_an_effort_where_there_is_a_trellis(photo):
    """It rounds without one, in no more bytes."""
    base = Codec("base", "embedded", "cpu")
    plain, better = (base.encode(photo, effort=effort) for effort in (0, 3))
    before, after = (bitstream.read(blob).header for blob in (plain, better))
    assert (before.has_trellis, after.has_trellis, after.step_q) == (True, False, before.step_q)
    assert len(better) <= len(plain)
    one, two = (
        metrics.psnr_db(tensors.to_tensor(base.decode(blob)), tensors.to_tensor(photo))
        for blob in (plain, better)
    )
    assert two > one + 0.5


def test_targets_are_met_with_an_effort(nano, photo):
    plain, better = (nano.encode(photo, target_size=150, effort=effort) for effort in (0, 3))
    assert 0.96 * 150 <= len(better) <= 150
    assert better != plain
    plain, better = (nano.encode(photo, target_psnr=21, effort=effort) for effort in (0, 1))
    assert len(better) <= len(plain)
    assert metrics.psnr_db(tensors.to_tensor(nano.decode(better)), tensors.to_tensor(photo)) >= 21


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (9, 64)])
def test_any_size(nano, size):
    image = Image.effect_noise(size, 40).convert("RGB")
    assert nano.decode(nano.encode(image, effort=2)).size == size


@pytest.mark.parametrize("effort", [-1, 10])
def test_effort_out_of_range(nano, photo, effort):
    with pytest.raises(ValueError, match="effort"):
        nano.encode(photo, effort=effort)


def test_savings_reach_what_is_wanted():
    total = np.array([2, 4, 7], np.float32)
    wanted = [-1, 0, 1, 2, 2.5, 4, 4.5, 7, 8]
    assert [refine.prefix_reaching(total, each) for each in wanted] == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_steps_are_told(nano, photo):
    told = []
    options = codec.EncodeOptions(effort=2)
    nano.encode_batch([photo], options, on_step=lambda done, of: told.append((done, of)))
    assert told == [(i, 11) for i in range(1, 12)]


def test_too_little_memory_is_told(nano, photo, monkeypatch):
    monkeypatch.setattr(refine, "free_memory", lambda _: 1e6)
    with pytest.raises(OutOfMemory, match=r"about 0\.\d GB"):
        nano.encode(photo, effort=1)
    assert nano.encode(photo)


def test_what_a_large_image_is_compared_with_counts(nano, monkeypatch):
    perceptual, decoder = nano.backend.perceptual, nano.decoder
    monkeypatch.setattr(refine, "free_memory", lambda _: 2e9)

    def check(side):
        windows = list(distortion.windows(side, side, distortion.window_side(decoder)))
        refine.check_memory(perceptual, decoder, windows, 4)

    check(512)
    with pytest.raises(OutOfMemory, match=r"about [34]\.\d GB"):
        check(4000)


def test_allocations_that_fail_are_told(nano, photo, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(refine._Search, "descend", fail)
    with pytest.raises(OutOfMemory, match="not enough memory"):
        nano.encode(photo, effort=1)


def test_free_memory_is_what_the_system_tells(tmp_path, monkeypatch):
    (path := tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   3 kB\n")
    monkeypatch.setattr(refine, "MEMINFO", path)
    assert refine.free_memory(torch.device("cpu")) == 3072
    monkeypatch.setattr(refine, "MEMINFO", tmp_path / "none")
    assert refine.free_memory(torch.device("cpu")) == float("inf")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (80, 80), (81, 799), (800, 163)])
def test_windows_cover_every_pixel_once(height, width):
    seen = torch.zeros(height, width)
    for window in distortion.windows(height, width, 10):
        seen[window.pixels] += 1
        rows, columns = window.latents
        assert rows.stop - rows.start <= 10 + 2 * distortion.MARGIN
        part = torch.zeros(8 * (rows.stop - rows.start), 8 * (columns.stop - columns.start))
        assert part[window.inner].shape == seen[window.pixels].shape
        assert window.pixels[0].start == 8 * rows.start + window.inner[0].start
    assert (seen == 1).all()


def test_windows_give_the_whole_image_s_gradient(nano, photo, monkeypatch):
    """In windows, the same descent as at once, but for blocks and features at their edges."""
    monkeypatch.setattr(distortion, "STRUCTURE_WEIGHT", 0)
    monkeypatch.setattr(distortion, "FEATURE_WEIGHTS", (0, 0))
    monkeypatch.setattr(refine, "DESCENT_STEPS", (1,))
    monkeypatch.setattr(distortion, "MARGIN", 40)
    whole = refined(nano, photo, 1)[0]
    monkeypatch.setattr(distortion, "window_side", lambda _: 5)
    assert len(list(distortion.windows(57, 71, 5))) == 4
    assert np.array_equal(refined(nano, photo, 1)[0], whole)


def test_soft_rounding():
    values = torch.linspace(-2, 2, 401)
    assert (refine.soft_round(values, 1e-3) - values).abs().max() < 1e-3
    hard = refine.soft_round(values, 1e3)
    away = (values - values.floor() - 0.5).abs() > 0.02
    assert (hard - values.round())[away].abs().max() < 1e-3


def test_perceptual_features_react_to_lost_texture(nano, photo):
    image = tensors.to_tensor(photo.crop((0, 0, 64, 48)))
    blurred = tensors.to_tensor(photo.crop((0, 0, 64, 48)).filter(ImageFilter.GaussianBlur(2)))
    brighter = image + (blurred - image).square().mean().sqrt()  # the same squared error
    seen = nano.backend.perceptual(image)
    assert [one.shape for one in seen] == [(1, 96, 24, 32), (1, 96, 12, 16)]
    for number, one in enumerate(seen):
        far, near = (
            (nano.backend.perceptual(each)[number] - one).square().mean()
            for each in (blurred, brighter)
        )
        assert far > 2 * near


def test_costs_are_those_of_the_coder():
    coder = load_coder("full", has_trellis=False)
    random = np.random.default_rng(0)
    for spread in (1, 40):
        symbols = (random.laplace(0, spread, (4, 24, 20))).astype(np.int32)
        _, here, _ = bit_costs(coder, symbols, STEP_Q)
        n_bytes = len(coder.encode(symbols, STEP_Q))
        assert here.sum() / 8 <= n_bytes <= here.sum() / 8 + 8


def test_slopes_tell_what_a_change_costs(photo_path):
    """A symbol's own bits tell less of what a change of it costs than with its neighbours'."""
    coder = load_coder("full", has_trellis=False)
    with torch.no_grad(), Image.open(photo_path) as photo:
        [latents] = (
            Codec("base", device="cpu").encoder(tensors.pad(tensors.to_tensor(photo))).numpy()
        )
    symbols = quantize.to_symbols(latents, STEP_Q, coder)
    below, _, above = bit_costs(coder, symbols, STEP_Q)
    own, others = (above - below) / 2, context_gradient(coder, symbols, STEP_Q)
    random = np.random.default_rng(0)
    places = [tuple(random.integers(symbols.shape)) for _ in range(200)]
    true = []
    for place in places:
        totals = []
        for change in (-1, 1):
            changed = symbols.copy()
            changed[place] += change
            totals.append(bit_costs(coder, changed, STEP_Q)[1].sum(dtype=np.float64))
        true.append((totals[1] - totals[0]) / 2)
    alone, together = (
        np.corrcoef(true, [slopes[place] for place in places])[0, 1]
        for slopes in (own, own + others)
    )
    assert alone < 0.85 < 0.93 < together


def test_any_decoder_will_do(photo):
    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, latents):
            return nn.functional.interpolate(latents[:, :3], scale_factor=8) * self.gain

    nano = Codec("nano", device="cpu")
    nano.decoder = TiledDecoder("grey", Grey())
    plain, better = (nano.encode(photo, effort=effort) for effort in (0, 3))
    one, two = (
        metrics.psnr_db(tensors.to_tensor(nano.decode(blob)), tensors.to_tensor(photo))
        for blob in (plain, better)
    )
    assert two > one + 3

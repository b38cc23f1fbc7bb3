import math

import pytest
import torch
from PIL import Image

from dynenc import metrics
from dynenc.imaging import tensors


@pytest.fixture
def photo(photo_path):
    return tensors.to_tensor(Image.open(photo_path).convert("RGB"))


def test_psnr_of_a_known_error():
    reference = torch.zeros(1, 3, 4, 4)
    assert metrics.psnr_db(reference + 2 / 255, reference) == pytest.approx(
        20 * math.log10(255), 1e-6
    )


def test_psnr_of_equal_images_is_infinite(photo):
    assert metrics.psnr_db(photo, photo) == math.inf


def test_ms_ssim_of_equal_images_is_one(photo):
    assert metrics.ms_ssim(photo, photo) == pytest.approx(1)


def test_ms_ssim_falls_with_noise(photo):
    torch.manual_seed(0)
    noise = torch.randn_like(photo)
    scores = [metrics.ms_ssim(photo + level * noise, photo) for level in (0.05, 0.2, 0.8)]
    assert 1 > scores[0] > scores[1] > scores[2] > 0


def test_ms_ssim_ignores_a_small_shift_of_brightness(photo):
    assert metrics.ms_ssim(photo + 0.02, photo) > 0.99


def test_ms_ssim_needs_161_px():
    assert metrics.ms_ssim(torch.rand(1, 3, 160, 300), torch.rand(1, 3, 160, 300)) is None
    assert metrics.ms_ssim(torch.rand(1, 3, 161, 161), torch.rand(1, 3, 161, 161)) is not None

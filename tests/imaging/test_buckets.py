import pytest
from PIL import Image

from dynenc.imaging import buckets


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1024, 1024), 512, (512, 512)),
        ((1536, 1024), 512, (640, 384)),
        ((1024, 1536), 512, (384, 640)),
        ((3000, 100), 512, (256, 64)),  # a strip: 4:1 of its middle
        ((300, 300), 512, (256, 256)),  # never enlarged
        ((40, 30), 512, (32, 24)),
        ((9, 9), 512, (8, 8)),
        ((7, 900), 512, (0, 0)),
    ],
)
def test_buckets(size, resolution, expected):
    assert buckets.bucket(*size, resolution) == expected


def test_an_image_covers_its_bucket_and_loses_as_much_on_both_sides():
    image = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    fitted = buckets.fit(image, (128, 128))
    assert fitted.image.size == (128, 128)
    assert (fitted.left, fitted.top) == (32, 0)
    same = buckets.fit(image, (300, 200))
    assert same.image.tobytes() == image.tobytes()

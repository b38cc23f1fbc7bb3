"""Two images side by side, small enough for a terminal."""

from PIL import Image

from dynenc.imaging import pixels

MAX_LINES = 40  # of the terminal


def side_by_side(original: Image.Image, decoded: Image.Image, columns: int) -> Image.Image:
    """Both images in RGB, scaled so that a column is 1 px wide and a line 2 px high."""
    most = max(1, columns // 2 - 1), 2 * MAX_LINES
    scale = min(1, most[0] / original.width, most[1] / original.height)
    width = max(1, round(scale * original.width))
    height = 2 * max(1, round(scale * original.height / 2))
    both = Image.new("RGB", (2 * width + 2, height))
    for number, image in enumerate((original, decoded)):
        small = pixels.to_rgb(image).resize((width, height), Image.Resampling.BOX)
        both.paste(small, (number * (width + 2), 0))
    return both

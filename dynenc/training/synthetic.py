"""Drawn training crops: flats, gradients, text, charts, user interfaces, stripes, bricks, lines.

Photographs have too little of what latents lose first: regular structure, lettering, hard edges on
flat backgrounds. Each kind is drawn with Pillow from a few random numbers; most are then rotated
slightly and lit unevenly, as in a photograph.
"""

import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from dynenc.errors import UsageError

Random = np.random.Generator
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
GLYPHS = string.ascii_lowercase * 4 + string.ascii_uppercase * 2 + string.digits * 2 + ".,:;-()%$&?"
FLAT_SIDE = 16  # px, of images of one colour; larger ones decode the same, as padding replicates
LARGE = 1.5  # side of a drawing before rotation and cropping, in sides of the crop


class Synthetic:
    """Draws crops [n, 3, size, size] uint8.

    Args:
        size: px, side of a crop.
        fonts: folder of TrueType or OpenType fonts; None uses Pillow's built-in font.
    """

    def __init__(self, size: int, fonts: Path | None = None) -> None:
        self.size = size
        if fonts and not fonts.is_dir():
            raise UsageError(f"{fonts} is not a folder of fonts")
        files = fonts.rglob("*") if fonts else ()
        found = (f for f in files if f.suffix.lower() in (".ttf", ".otf"))
        self.fonts = sorted(f for f in found if _has_latin_letters(f))
        self.kinds: Sequence[Callable[[Random, int], Image.Image]] = (
            self.flat,
            self.gradient,
            self.text,
            self.text,
            self.chart,
            self.interface,
            self.stripes,
            self.bricks,
            self.windows,
            self.lines,
            self.product,
        )

    def sample(self, count: int, random: Random) -> Tensor:
        """Draw crops [count, 3, size, size] uint8, each of a random kind."""
        images = [self._one(random) for _ in range(count)]
        arrays = [np.asarray(image, np.uint8) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _one(self, random: Random) -> Image.Image:
        draw = self.kinds[int(random.integers(len(self.kinds)))]
        if draw in (self.flat, self.gradient) or random.random() < 0.4:
            return draw(random, self.size)
        side = round(LARGE * self.size)
        angle = random.normal(0, 4) if random.random() < 0.7 else random.uniform(0, 360)
        turned = draw(random, side).rotate(angle, Image.Resampling.BICUBIC)
        edge = (side - self.size) // 2
        image = turned.crop((edge, edge, edge + self.size, edge + self.size))
        if random.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0)))
        return _lit(image, random) if random.random() < 0.4 else image

    def flat(self, random: Random, side: int) -> Image.Image:
        """One colour, or two with a straight edge between them."""
        image = Image.new("RGB", (side, side), _colour(random))
        if random.random() < 0.4:
            edge = int(random.integers(8, side - 8))
            image.paste(_colour(random), (0, edge, side, side))
        return image

    def gradient(self, random: Random, side: int) -> Image.Image:
        """Linear or radial colour gradients, as in skies and studio backgrounds."""
        y, x = np.mgrid[:side, :side] / side
        angle = random.uniform(0, 2 * np.pi)
        ramp = x * np.cos(angle) + y * np.sin(angle)
        if random.random() < 0.3:
            ramp = np.hypot(x - random.random(), y - random.random())
        ramp = (ramp - ramp.min()) / np.ptp(ramp)
        if random.random() < 0.7:
            first = np.array(_colour(random), np.float64)
            last = np.clip(first + random.normal(0, 40, 3), 0, 255)
        else:
            first, last = (np.array(_colour(random), np.float64) for _ in range(2))
        mixed = first + (last - first) * ramp[..., None]
        return _image(mixed + random.normal(0, random.choice([0, 0.4, 1.5]), mixed.shape))

    def text(self, random: Random, side: int) -> Image.Image:
        """Lines of text in one font, with larger headings, dark on light or light on dark."""
        paper, ink = _pair(random)
        image = Image.new("RGB", (side, side), paper)
        draw = ImageDraw.Draw(image)
        top, left = int(random.integers(-8, 12)), int(random.integers(-12, 16))
        height = int(np.exp(random.uniform(np.log(8), np.log(48))))
        font = self._font(random, height)
        while top < side:
            draw.text((left, top), _words(random, 2 * side // height), ink, font)
            top += round(height * random.uniform(1.15, 1.8))
            if random.random() < 0.1:
                height = int(random.integers(9, 40))
                font, ink = self._font(random, height), _contrasting(random, paper)
        return image

    def chart(self, random: Random, side: int) -> Image.Image:
        """Axes, grid lines, labels, bars or curves."""
        paper, ink = _pair(random)
        image = Image.new("RGB", (side, side), paper)
        draw = ImageDraw.Draw(image)
        font = self._font(random, int(random.integers(8, 15)))
        pitch = int(random.integers(14, 40))
        faint = _mixed(paper, ink, 0.2)
        for place in range(pitch, side, pitch):
            draw.line((24, place, side, place), faint)
            draw.text((2, place - 6), str(int(random.integers(1000))), ink, font)
        draw.line((24, 0, 24, side), ink, int(random.integers(1, 3)))
        width = random.uniform(6, 24)
        places = np.arange(24, side, width)
        for _ in range(int(random.integers(1, 4))):
            colour = _contrasting(random, paper)
            heights = side / 2 + np.cumsum(random.normal(0, side / 16, len(places)))
            if random.random() < 0.4:
                for x, y in zip(places, heights, strict=True):
                    draw.rectangle((x, min(y, side - 1), x + width - 2, side), colour)
            else:
                points = list(zip(places.tolist(), heights.tolist(), strict=True))
                draw.line(points, colour, int(random.integers(1, 4)))
        return image

    def interface(self, random: Random, side: int) -> Image.Image:
        """Panels, buttons and labels on a flat background."""
        paper, ink = _pair(random)
        image = Image.new("RGB", (side, side), paper)
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(3, 12))):
            left, top = random.integers(-20, side - 16, 2).tolist()
            width, height = random.integers([16, 12], [side, side // 3]).tolist()
            fill = _colour(random) if random.random() < 0.4 else _mixed(paper, ink, 0.08)
            outline = _mixed(paper, ink, 0.3) if random.random() < 0.5 else None
            box = (left, top, left + width, top + height)
            draw.rounded_rectangle(box, int(random.integers(0, 10)), fill, outline)
            size = int(random.integers(9, 20))
            label = _words(random, width // size + 1)
            draw.text(
                (left + 6, top + 4), label, _contrasting(random, fill), self._font(random, size)
            )
        return image

    def stripes(self, random: Random, side: int) -> Image.Image:
        """Parallel stripes of constant or slowly changing period, with hard or soft edges."""
        y, x = np.mgrid[:side, :side].astype(np.float64)
        angle = random.choice([0, np.pi / 2, random.uniform(0, np.pi)])
        phase = x * np.cos(angle) + y * np.sin(angle)
        phase += random.choice([0.0, 0.002]) * (x - side / 2) ** 2
        wave = np.sin(2 * np.pi * phase / np.exp(random.uniform(np.log(3), np.log(32))))
        if random.random() < 0.6:
            wave = np.clip(wave * random.uniform(2, 8), -1, 1)
        if random.random() < 0.2:
            wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / 12)
        one, two = (np.array(colour, np.float64) for colour in _pair(random))
        return _image(one + (two - one) * (wave[..., None] + 1) / 2)

    def bricks(self, random: Random, side: int) -> Image.Image:
        """Courses of bricks, shingles or tiles with joints."""
        joint, brick = _pair(random)
        image = Image.new("RGB", (side, side), joint)
        draw = ImageDraw.Draw(image)
        width, height = int(random.integers(10, 48)), int(random.integers(5, 20))
        gap, shift = int(random.integers(1, 4)), random.choice([0.0, 0.5])
        for course, top in enumerate(range(0, side, height + gap)):
            for left in range(-width, side, width + gap):
                begin = left + int(shift * width * (course % 2))
                shade = random.normal(0, 12, 3)
                fill = _clipped(np.array(brick) + shade)
                draw.rectangle((begin, top, begin + width - 1, top + height - 1), fill)
        return image

    def windows(self, random: Random, side: int) -> Image.Image:
        """A facade: a grid of windows with frames, some of them lit."""
        wall, glass = _pair(random)
        image = Image.new("RGB", (side, side), wall)
        draw = ImageDraw.Draw(image)
        width, height = random.integers([5, 6], [30, 40]).tolist()
        pitch_x, pitch_y = width + int(random.integers(3, 16)), height + int(random.integers(3, 16))
        frame, lit = _mixed(wall, glass, -0.5), _clipped(random.normal((250, 215, 150), 25))
        for top in range(0, side, pitch_y):
            for left in range(0, side, pitch_x):
                fill = lit if random.random() < 0.25 else _clipped(glass + random.normal(0, 10, 3))
                box = (left, top, left + width, top + height)
                draw.rectangle(box, fill, frame)
                if width > 12:
                    draw.line((left + width // 2, top, left + width // 2, top + height), frame)
        return image

    def lines(self, random: Random, side: int) -> Image.Image:
        """Thin lines on a smooth background: strings, rails, masts, branches."""
        image = self.gradient(random, side)
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(2, 10))):
            ends = random.uniform(-0.2 * side, 1.2 * side, 4)
            for copy in range(int(random.integers(1, 6))):
                points = (ends + 9 * copy).tolist()
                draw.line(points, _contrasting(random, (128, 128, 128)), int(random.integers(1, 4)))
        return image

    def product(self, random: Random, side: int) -> Image.Image:
        """Softly shaded shapes on a flat, often white background, as in product photos."""
        ground = (255, 255, 255) if random.random() < 0.6 else _colour(random)
        image = Image.new("RGB", (side, side), ground)
        shaded = self.gradient(random, side)
        mask = Image.new("L", (side, side))
        draw = ImageDraw.Draw(mask)
        for _ in range(int(random.integers(1, 4))):
            corners = np.sort(random.uniform(0.05 * side, 0.95 * side, (2, 2)), axis=0)
            box = tuple(corners.ravel().tolist())
            if random.random() < 0.5:
                draw.ellipse(box, 255)
            else:
                draw.polygon(random.uniform(0.1 * side, 0.9 * side, 8).tolist(), 255)
        image.paste(shaded, (0, 0), mask)
        return image

    def _font(self, random: Random, size: int) -> Font:
        if not self.fonts:
            return ImageFont.load_default(size)
        return ImageFont.truetype(self.fonts[int(random.integers(len(self.fonts)))], size)


def flats(count: int, random: Random) -> Tensor:
    """Images of one colour each: [count, 3, FLAT_SIDE, FLAT_SIDE] uint8."""
    colours = torch.tensor([_colour(random) for _ in range(count)], dtype=torch.uint8)
    return colours[:, :, None, None].expand(-1, -1, FLAT_SIDE, FLAT_SIDE)


def _has_latin_letters(font: Path) -> bool:
    """Whether two letters look different; a font that lacks them draws the same box for both."""
    try:
        loaded = ImageFont.truetype(font, 16)
    except OSError:  # a broken file
        return False
    return bytes(loaded.getmask("A")) != bytes(loaded.getmask("e"))


def _colour(random: Random) -> Colour:
    """White, black, a grey, a saturated colour, or any colour."""
    kind = random.random()
    if kind < 0.15:
        return (255, 255, 255)
    if kind < 0.22:
        return (0, 0, 0)
    if kind < 0.4:
        grey = int(random.integers(256))
        return (grey, grey, grey)
    if kind < 0.6:
        return _clipped(random.choice([0, 85, 170, 255], 3))
    return _clipped(random.integers(0, 256, 3))


def _contrasting(random: Random, ground: Colour) -> Colour:
    """A colour whose brightness differs from the background by 60 levels or more."""
    while True:
        colour = _colour(random)
        if abs(sum(colour) - sum(ground)) > 180:
            return colour


def _pair(random: Random) -> tuple[Colour, Colour]:
    """Two distinguishable colours, the first one often white."""
    ground: Colour = (255, 255, 255) if random.random() < 0.3 else _colour(random)
    return ground, _contrasting(random, ground)


def _mixed(one: Colour, two: Colour, share: float) -> Colour:
    """The first colour mixed with a share of the second."""
    return _clipped(np.array(one) * (1 - share) + np.array(two) * share)


def _clipped(values: npt.ArrayLike) -> Colour:
    red, green, blue = np.clip(np.rint(np.asarray(values, np.float64)), 0, 255).astype(int).tolist()
    return red, green, blue


def _image(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _lit(image: Image.Image, random: Random) -> Image.Image:
    """The image under uneven light."""
    side = image.width
    y, x = np.mgrid[:side, :side] / side
    light = 1 + random.normal(0, 0.3) * (x - 0.5) + random.normal(0, 0.3) * (y - 0.5)
    return _image(np.asarray(image, np.float64) * np.clip(light, 0.2, 1.5)[..., None])


def _words(random: Random, length: int) -> str:
    letters = random.choice(list(GLYPHS), max(1, length))
    letters[random.random(len(letters)) < 0.16] = " "
    return "".join(letters)

"""Legibility of text in screens, documents and captioned photographs.

    python tests/bench text [PHOTOGRAPH ...] [--ocr FOLDER] [--vgg FILE]

Renders pages, a chat, forms and slides (HTML in headless Chromium), charts (matplotlib), a
terminal, a desktop with small type, a scan and captioned photographs (Pillow), and reads them with
an OCR, once as they are and once decoded. Legibility is the share of characters that are read as in
the original. With --vgg also DISTS of photographs within the images. Needs matplotlib, chromium
and `rapidocr-onnxruntime`; --ocr names a folder that holds the latter, as `pip install --target
FOLDER` leaves it.
"""

import argparse
import html
import math
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dynenc import Codec
from dynenc.errors import ImageWarning
from dynenc.evaluation.reference_codecs import REFERENCE_CODECS, ReferenceCodec
from dynenc.imaging.sources import open_rgb

SIZE = 1024, 768  # px, of a screen
ZOOM = 2  # in which the OCR sees images; it was made for larger type than that of screens
READABLE = 0.97  # legibility
LINES = 24  # that are read of an image, evenly spread, at most
QUALITIES = range(2, 100, 4)  # of peers
MARKER = 255, 0, 255  # a colour that no page has
PHOTO = Path(__file__).parents[1] / "images" / "chelsea.png"
FONTS = Path("/usr/share/fonts/truetype")
TEXT = """account added after against amount archive balance before between branch browser budget
button cancel change channel chapter chart circle client column comment commit compare config copy
create current customer daily data decline default delete deliver detail device disk document
drive due editor email engine error event every export factor failed family feature figure file
filter folder forecast format general garden global growth guide handle height history image
import index input install invoice item join kernel label language large latest layer league
length level limit list local login machine manage margin market match medium memory menu message
meter method minor model month morning network night notice number offer office open option order
output owner page panel paper patient payment percent person phone picture place plan player point
policy power price print process product profile project public quarter query question quick rate
reader recent record region release remove report request reset result return review river row
sales sample save screen search section select send server session settings share shop signal size
source space start state station status stock stop store street student subject submit success
summary support switch system table target task team ticket time title today total track train
travel under update upload user value version video view visit volume water week weight width
window winter worker write year zone
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class Screen:
    """An image with text."""

    kind: str  # screen, document or mixed
    name: str
    image: Image.Image
    photograph: tuple[int, int, int, int] | None = None  # left, top, right, bottom of one in it


class Prose:
    """Words, numbers and lines in a fixed order for each seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def word(self) -> str:
        return self.random.choice(WORDS)

    def words(self, count: int) -> str:
        return " ".join(self.word() for _ in range(count))

    def sentence(self) -> str:
        text = self.words(self.random.randint(6, 14)).capitalize()
        if self.random.random() < 0.4:
            text += f" {self.number()}"
        return text + "."

    def sentences(self, count: int) -> str:
        return " ".join(self.sentence() for _ in range(count))

    def number(self) -> str:
        digits = self.random.choice(("{:d}", "{:,.2f}", "{:.1f}%", "${:,d}"))
        value = self.random.randint(10, 99_999)
        return digits.format(value if "d" in digits else value / 100)

    def time(self) -> str:
        return f"{self.random.randint(0, 23):02}:{self.random.randint(0, 59):02}"


def font(name: str, size: int) -> Any:
    [path, *_] = sorted(FONTS.rglob(f"{name}.*"))
    return ImageFont.truetype(str(path), size)


def rendered(page: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """A page of HTML as Chromium shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(f"<!doctype html><meta charset=utf-8>{page}", encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        window = f"--window-size={size[0]},{size[1]}"
        command = [browser, *options, window, f"--screenshot={target}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(target) as image:
            return image.convert("RGB")


def web_page(seed: int, *, dark: bool, typeface: str, image: str = "") -> str:
    prose = Prose(seed)
    back, ink, box, link = (
        ("#15181c", "#d6dade", "#22272e", "#6cb2ff")
        if dark
        else ("#ffffff", "#24292f", "#f3f5f7", "#0a62c9")
    )
    links = " &nbsp; ".join(f"<a>{prose.word().capitalize()}</a>" for _ in range(7))
    rows = "".join(
        f"<tr><td>{prose.words(2)}<td>{prose.number()}<td>{prose.number()}" for _ in range(5)
    )
    side = "".join(f"<li><a>{html.escape(prose.words(3))}</a>" for _ in range(9))
    figure = f"<img src='{image}' width=420 style='float:right;margin:0 0 8px 14px'>" * bool(image)
    return f"""<style>body{{margin:0;background:{back};color:{ink};font:15px/1.5 {typeface}}}
    a{{color:{link}}} nav{{background:{box};padding:12px 24px}} main{{padding:8px 24px;display:flex;
    gap:28px}} aside{{width:210px;background:{box};padding:8px;font-size:13px;border-radius:8px}}
    td{{border:1px solid #8886;padding:2px 10px;font-size:13px}} code{{background:{box}}}</style>
    <nav><b>{prose.word()}</b> &nbsp; {links}</nav><main><div style='flex:1'>
    <h1 style='margin:6px 0'>{prose.words(4).capitalize()}</h1>{figure}<p>{prose.sentences(5)}
    <p><code>{prose.word()}.{prose.word()}({prose.number()})</code> {prose.sentences(3)}
    <table style='border-collapse:collapse'>{rows}</table><p style='font-size:13px'>
    {prose.sentences(6)}</div><aside><b>{prose.words(2)}</b><ul>{side}</ul></aside></main>"""


def chat(seed: int) -> str:
    prose, bubbles = Prose(seed), ""
    for i in range(11):
        mine = i % 3 == 1
        colour, align = ("#d8f5c8", "flex-end") if mine else ("#ffffff", "flex-start")
        bubbles += f"""<div style='display:flex;justify-content:{align};margin:6px'><div
        style='background:{colour};border-radius:10px;padding:7px 11px;max-width:440px;
        box-shadow:0 1px 1px #0002'>{prose.sentence()}
        <span style='color:#888;font-size:11px'>{prose.time()}</span></div></div>"""
    people = "".join(
        f"""<div style='padding:9px 12px;border-bottom:1px solid #e5e5e5'><b>
        {prose.words(2).title()}</b><br><span style='color:#666;font-size:13px'>{prose.words(4)}
        </span></div>"""
        for _ in range(12)
    )
    return f"""<body style='margin:0;font:14px/1.4 Roboto;display:flex;height:100vh'><div
    style='width:280px;background:#fafafa;overflow:hidden'>{people}</div><div style='flex:1;
    background:#e9e2d8;padding:10px;overflow:hidden'>{bubbles}</div>"""


def form(seed: int) -> str:
    prose = Prose(seed)
    fields = "".join(
        f"""<label style='display:flex;margin:9px 0'><span style='width:170px'>
        {prose.words(2).capitalize()}</span><input style='flex:1;font:13px Liberation Sans'
        value='{prose.words(3)} {prose.number()}'></label>"""
        for _ in range(9)
    )
    checks = "".join(f"<p><input type=checkbox checked> {prose.sentence()}" for _ in range(4))
    return f"""<body style='margin:0;background:#f0f0f0;font:13px Liberation Sans'><div
    style='margin:22px auto;width:720px;background:#fff;border:1px solid #bbb;padding:14px 26px'>
    <h2>{prose.words(3).title()}</h2>{fields}{checks}<button>{prose.word().title()}</button>
    <button>{prose.word().title()}</button></div>"""


def slide(seed: int, image: str) -> str:
    prose = Prose(seed)
    points = "".join(f"<li>{prose.words(5).capitalize()} {prose.number()}" for _ in range(5))
    return f"""<body style='margin:0;font:24px Lato;background:linear-gradient(#fdfdff,#dfe6f2)'>
    <h1 style='background:#1d3a6b;color:#fff;margin:0;padding:22px 40px'>{prose.words(4).title()}
    </h1><div style='display:flex;padding:26px 40px;gap:26px'><ul style='flex:1;line-height:1.7'>
    {points}</ul><img src='{image}' width=400 height=300 style='object-fit:cover'></div><p
    style='position:absolute;bottom:0;left:40px;font-size:14px;color:#667'>{prose.sentence()}"""


def terminal(seed: int) -> Image.Image:
    prose, image = Prose(seed), Image.new("RGB", SIZE, (12, 14, 20))
    draw, face = ImageDraw.Draw(image), font("DejaVuSansMono", 14)
    colours = (204, 204, 204), (110, 200, 110), (230, 190, 80), (110, 160, 240), (230, 100, 100)
    for line in range(44):
        left = 8.0
        while left < SIZE[0] - 160:
            colour = prose.random.choice(colours) if prose.random.random() < 0.4 else colours[0]
            text = prose.random.choice((prose.word(), prose.number(), f"./{prose.word()}.py"))
            draw.text((left, 6 + 17 * line), text, colour, face)
            left += draw.textlength(f"{text} ", face)
            if prose.random.random() < 0.12:
                break
    return image


def desktop(seed: int, size: int) -> Image.Image:
    """Windows full of small type, with icons."""
    prose, image = Prose(seed), Image.new("RGB", SIZE, (58, 110, 165))
    draw = ImageDraw.Draw(image)
    face, bold = font("LiberationSans-Regular", size), font("LiberationSans-Bold", size)
    for left, top, right, bottom in ((10, 8, 500, 420), (512, 8, 1014, 420), (10, 430, 1014, 760)):
        draw.rectangle((left, top, right, bottom), (250, 250, 250), (60, 60, 60))
        draw.rectangle((left, top, right, top + 18), (40, 80, 140))
        draw.text((left + 6, top + 3), prose.words(3).title(), "white", bold)
        for y in range(top + 24, bottom - size - 4, size + 5):
            draw.rectangle((left + 6, y, left + 6 + size, y + size), (220, 170, 60), (90, 70, 20))
            for x, text in ((24, prose.words(3)), (190, prose.number()), (270, prose.sentence())):
                text = text[: int((right - left - x - 8) / (size * 0.56))]
                draw.text((left + x, y), text, (20, 20, 20), face)
    return image


def document(seed: int, typeface: str, *, scanned: bool) -> Image.Image:
    """A page of print; as a scan it is turned, blurred and noisy."""
    prose, image = Prose(seed), Image.new("RGB", (900, 1100), "white")
    draw, face, head = ImageDraw.Draw(image), font(typeface, 17), font(typeface, 30)
    draw.text((70, 60), prose.words(4).title(), "black", head)
    for line in range(38):
        text, y = prose.sentences(2), 120 + 24 * line
        if line % 9 == 8:
            continue
        while draw.textlength(text, face) > 760:
            text = text.rpartition(" ")[0]
        draw.text((70, y), text, (15, 15, 20), face)
    if scanned:
        image = image.rotate(0.7, Image.Resampling.BICUBIC, fillcolor="white")
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
        noise = np.random.default_rng(seed).normal(0, 3, pixels.shape)
        shade = np.linspace(0.97, 0.88, pixels.shape[1])[None, :, None]
        image = Image.fromarray((pixels * shade + noise).clip(0, 255).astype(np.uint8))
    return image


def receipt(seed: int) -> Image.Image:
    prose, image = Prose(seed), Image.new("RGB", (420, 760), (248, 247, 243))
    draw, face = ImageDraw.Draw(image), font("LiberationMono-Regular", 16)
    draw.text((90, 20), prose.words(2).upper(), "black", font("LiberationMono-Bold", 22))
    for line in range(28):
        draw.text((24, 70 + 24 * line), f"{prose.word()} {prose.word()}"[:20], "black", face)
        draw.text((396, 70 + 24 * line), f"{prose.number()}", "black", face, anchor="ra")
    return image


def chart(seed: int) -> Image.Image:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    prose, values = Prose(seed), np.random.default_rng(seed)
    figure, axes = pyplot.subplots(2, 2, figsize=(10.24, 7.68), dpi=100)
    for one in axes.flat:
        kind = prose.random.randrange(3)
        for name in range(3):
            steps = values.normal(0.2, 1, 60).cumsum()
            if kind == 0:
                one.plot(steps, label=prose.words(2))
            elif kind == 1:
                one.bar(np.arange(5) + name / 4, abs(steps[:5]), 0.25, label=prose.word())
            else:
                one.scatter(steps, values.normal(0, 1, 60), s=9, label=prose.word())
        one.set_title(prose.words(4).capitalize())
        one.set_xlabel(prose.words(2))
        one.set_ylabel(prose.words(2))
        one.legend(fontsize=8)
        one.grid(alpha=0.4)
    figure.tight_layout()
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    pyplot.close(figure)
    return image


def captioned(seed: int, photograph: Image.Image) -> Image.Image:
    """A photograph with a caption below and words upon it."""
    prose = Prose(seed)
    width, height = photograph.size
    image = Image.new("RGB", (width, height + 70), "white")
    image.paste(photograph)
    draw, face = ImageDraw.Draw(image), font("Roboto-Regular", 17)
    draw.text((12, height + 10), prose.words(8).capitalize(), (30, 30, 30), face)
    draw.text((12, height + 38), prose.words(7), (90, 90, 90), face)
    big = font("OpenSans-Bold", 34)
    draw.text((24, 20), prose.words(2).title(), "white", big, stroke_width=2, stroke_fill="black")
    return image


def illustrated(seed: int, image: str) -> str:
    return web_page(20 + seed, dark=seed % 2 == 1, typeface="Lato", image=image)


def mixed(name: str, page: str, marked: str) -> Screen:
    """A page as it is shown; its photograph is where the other page has a marker."""
    found = (np.asarray(rendered(marked)) == MARKER).all(-1)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Screen("mixed", name, rendered(page), box)


def screens(photographs: Sequence[Image.Image]) -> Iterator[Screen]:
    """Everything that is measured; the same at each call."""
    with tempfile.TemporaryDirectory() as folder:
        images, markers = [], []
        for i, photograph in enumerate(photographs):
            path, marker = Path(folder) / f"{i}.png", Path(folder) / f"{i}_marker.png"
            photograph.save(path)
            Image.new("RGB", photograph.size, MARKER).save(marker)
            images.append(path.as_uri())
            markers.append(marker.as_uri())
        yield Screen(
            "screen", "page, light", rendered(web_page(1, dark=False, typeface="Open Sans"))
        )
        yield Screen("screen", "page, dark", rendered(web_page(2, dark=True, typeface="Roboto")))
        yield Screen(
            "screen", "page, serif", rendered(web_page(3, dark=False, typeface="DejaVu Serif"))
        )
        yield Screen("screen", "chat", rendered(chat(4)))
        yield Screen("screen", "form", rendered(form(5)))
        yield Screen("screen", "terminal", terminal(6))
        yield Screen("screen", "desktop, 12 px", desktop(7, 12))
        yield Screen("screen", "desktop, 10 px", desktop(8, 10))
        yield Screen("screen", "chart", chart(9))
        yield Screen("document", "print", document(10, "LiberationSerif-Regular", scanned=False))
        yield Screen("document", "scan", document(11, "LiberationSerif-Regular", scanned=True))
        yield Screen("document", "receipt", receipt(12))
        for i, photograph in enumerate(photographs):
            pages, slides = (
                [draw(i, image) for image in (images[i], markers[i])]
                for draw in (illustrated, lambda i, image: slide(30 + i, image))
            )
            yield mixed(f"page with photograph {i + 1}", *pages)
            yield mixed(f"slide {i + 1}", *slides)
            below_words = 0, 70, *photograph.size
            page = captioned(40 + i, photograph)
            yield Screen("mixed", f"caption {i + 1}", page, below_words)


@cache
def reader() -> Any:
    """The OCR."""
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def enlarged(image: Image.Image) -> Any:
    size = image.width * ZOOM, image.height * ZOOM
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))[..., ::-1].copy()


class Text:
    """The lines that the OCR finds in an image, and how much of them is read in another."""

    def __init__(self, original: Image.Image) -> None:
        large = enlarged(original)
        boxes, _ = reader().text_det(large)
        boxes = [] if boxes is None else reader().sorted_boxes(boxes)
        self.boxes = boxes[:: math.ceil(len(boxes) / LINES) or 1]
        self.lines = self.read(large)

    def read(self, large: Any) -> list[str]:
        crops = reader().get_crop_img_list(large, self.boxes)
        return [line.replace(" ", "") for line, _ in reader().text_rec(crops)[0]] if crops else []

    def legibility(self, decoded: Image.Image) -> float:
        """The share of characters that are read as in the original."""
        pairs = list(zip(self.lines, self.read(enlarged(decoded)), strict=True))
        wrong = sum(min(len(line), distance(line, read)) for line, read in pairs)
        return 1 - wrong / max(1, sum(map(len, self.lines)))


def distance(one: str, two: str) -> int:
    """The edits that make one text the other (Levenshtein)."""
    row = list(range(len(two) + 1))
    for i, left in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(two, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


class Ladder:
    """The files of an image that a codec makes at `QUALITIES`, and how well they are read."""

    def __init__(self, text: Text, image: Image.Image, peer: ReferenceCodec) -> None:
        self.text, self.image, self.peer = text, image, peer

    @cache  # noqa: B019 - as short-lived as the image
    def data(self, rung: int) -> bytes:
        return self.peer.encode(self.image, QUALITIES[rung])

    def decoded(self, rung: int) -> Image.Image:
        return self.peer.decode(self.data(rung))

    @cache  # noqa: B019
    def legibility(self, rung: int) -> float:
        return self.text.legibility(self.decoded(rung))

    def first(self, good: Callable[[int], bool]) -> int:
        """The lowest rung that is good, or the highest of all; found by bisection."""
        return min(bisect_left(range(len(QUALITIES)), True, key=good), len(QUALITIES) - 1)


Distance = Callable[[Image.Image, Image.Image], float]


def dists(weights: Path) -> Distance:
    """DISTS of two images, with the weights of `evaluation.vgg`."""
    import torch

    from dynenc.evaluation.vgg import DISTS, VGG16
    from dynenc.imaging.tensors import to_tensor

    network = DISTS(VGG16(weights))

    def distance(one: Image.Image, two: Image.Image) -> float:
        with torch.no_grad():
            return float(network(*(to_tensor(each) for each in (one, two))))

    return distance


def row(screen: Screen, codec: Codec, quality: float, distance: Distance | None) -> list[float]:
    """Bits per pixel and legibility with the layer, without it, and of AVIF and WebP.

    Then the bits per pixel of the AVIF that can be read, and DISTS of a photograph in the image,
    of dynenc and of the AVIF with no fewer bytes.
    """
    image, text = screen.image, Text(screen.image)

    def bpp(data: bytes) -> float:
        return 8 * len(data) / (image.width * image.height)

    ours = codec.encode(image, quality=quality)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        without = codec.encode(image, quality=quality, detail="off")
    found, decoded = [], [codec.decode(ours).convert("RGB")]
    for blob in (ours, without):
        found += [bpp(blob), text.legibility(codec.decode(blob).convert("RGB"))]
    avif, webp = (Ladder(text, image, REFERENCE_CODECS[name]) for name in ("avif", "webp"))
    for ladder in (avif, webp):
        equal = ladder.first(lambda rung, peer=ladder: len(peer.data(rung)) >= len(ours))
        found += [bpp(ladder.data(equal)), ladder.legibility(equal)]
        decoded.append(ladder.decoded(equal))
    reads = avif.first(lambda rung: avif.legibility(rung) >= READABLE)
    found.append(bpp(avif.data(reads)))
    for each in decoded[:2]:
        box = screen.photograph
        is_measured = distance is not None and box is not None
        found.append(distance(image.crop(box), each.crop(box)) if is_measured else math.nan)
    return found


def main() -> None:
    """Print a row for each image, and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="*", type=Path, default=[PHOTO])
    parser.add_argument("--ocr", help="folder that holds rapidocr-onnxruntime")
    parser.add_argument("--vgg", type=Path, help="weights of DISTS; see dynenc/evaluation/vgg.py")
    parser.add_argument("--encoder", default="light")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--only", default="", help="images whose kind or name contains this")
    arguments = parser.parse_args()
    if arguments.ocr:
        sys.path.append(arguments.ocr)
    codec = Codec(arguments.encoder, "embedded", "cpu")
    photographs = [open_rgb(path) for path in arguments.photographs]
    print(
        "| | dynenc bpp | legibility | no layer bpp | legibility | AVIF bpp | legibility "
        f"| WebP bpp | legibility | AVIF that reads {READABLE}, bpp | photograph: DISTS | AVIF |"
    )
    print("|---" * 12 + "|")
    distance = dists(arguments.vgg) if arguments.vgg else None
    rows = []
    for screen in screens(photographs):
        if arguments.only in f"{screen.kind} {screen.name}":
            rows.append(row(screen, codec, arguments.quality, distance))
            print(
                f"| {screen.name} | " + " | ".join(f"{v:.3f}" for v in rows[-1]) + " |", flush=True
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no image has a photograph
        means = np.nanmean(rows, 0)
    print("| mean | " + " | ".join(f"{v:.3f}" for v in means) + " |")

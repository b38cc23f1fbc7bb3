"""More than 8 bits a channel are reduced to 8 with a note, whatever the format."""

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from dynenc.imaging import boxes, formats, jxl, notes
from dynenc.imaging.read import open_image

NOTE = ["more than 8 bits per channel are reduced to 8"]
FILES = {  # of 4x4 px, written by libavif and OpenJPEG, compressed by zlib
    "AVIF, 10 bits": (
        "eNpjYGBQSCupLEgsy0xjAAIQnZuZZpibmZjm62joCBR6nZtaksgAAYoZKTlFUDZDQWZyCQMa4CvILMkFsxiBWC4zJz8Z"
        "xHEB8RkhoozCIBkg1sjMzEuDq5UCclKZoLzEMgND5/ycfLBdWZkFRQVA2juzIDkfSItkFhekQu1jgWKBgsyKTJAAMxcX"
        "F5DiSSwzdG5UcAAJCSfn5xTlJedUMDABIVsDUEg8syAX5iegw1gYmZpBpqjlpiSWCDFwcViw1O7h4JByMBKQcUp68oBB"
        "DGjDBNPJ+2d/AADTLDTL"
    ),
    "AVIF, 12 bits": (
        "eNpjYGCQSSupLEgsy0xjAAIQnZuZZpibmQjiv85NLUlkgADFjJScIiiboSAzuYQBDfAVZJbkglmMQCyXmZOfDOK4gPiM"
        "EFFGfpAMEGtkZualwdVKATmpTFBeYpmBoXN+Tj7YrqzMgqICIO2dWZCcD6RFMosLUqH2sUCxQEFmRSZIgJmHhwdI8SSW"
        "GTo3OiSAhIST83OK8pJzKhiYgJCtASgknlmQC/MT0GEsjEzNIFPUclMSS4QYuDgiWGrXMjGxdRgJyDglPXnAIMbAMsF0"
        "8v55RQoAtP8z2w=="
    ),
    "JPEG 2000, 12 bits": (
        "eNr77/8/kEGfAQRYoBgGUPnM3IyMEPQ/iIGXkYmBkZGBBSjd8T+GgdUpgeF/CoMqA6NzUWpiSWqKQlKlgn9Bap5XgKu7"
        "QllqUXFmfp6CkZ6pnsn/CQxcYPPEGRj/Tz7f4CAY4JXW0PD/JgBIoxwJ"
    ),
}


def notes_of(data):
    with notes.collected() as found:
        open_image(data)
    return found


def encoded(image, form, **options):
    image.save(buffer := io.BytesIO(), form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_deep_files_are_noted(name):
    assert notes_of(zlib.decompress(base64.b64decode(FILES[name]))) == NOTE


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000"])
def test_files_of_8_bits_are_not(form):
    for mode in ("RGB", "RGBA", "L"):
        assert notes_of(encoded(Image.new(mode, (20, 10)), form)) == []


@pytest.mark.parametrize(("largest", "is_deep"), [(200, False), (255, False), (256, True)])
def test_ppm(largest, is_deep):
    samples = bytes(2 * 3 * (1 + is_deep))
    assert notes_of(b"P6 2 1 %d\n" % largest + samples) == NOTE * is_deep


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_heic(bits, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    samples = np.zeros((16, 24, 3), np.uint8 if bits == 8 else np.uint16)
    mode = "RGB" if bits == 8 else "RGB;16"
    heif.encode(mode, (24, 16), samples.tobytes(), buffer := io.BytesIO(), quality=20)
    assert notes_of(buffer.getvalue()) == NOTE * (bits > 8)


def test_the_description_may_stand_behind_the_pixels():
    """Some programs write the meta box last; it is found by the boxes before it, however long."""
    data = zlib.decompress(base64.b64decode(FILES["AVIF, 10 bits"]))
    start, end = data.index(b"meta") - 4, data.index(b"mdat") - 4
    turned = io.BytesIO(data[:start] + bytes(4) + data[end:])
    assert boxes.description(turned) == b""
    long = (2**17).to_bytes(4, "big") + b"free" + bytes(2**17 - 8)
    assert boxes.depth(boxes.description(io.BytesIO(data[:start] + long + data[start:]))) == 10
    large = b"\0\0\0\1mdat" + (2**17).to_bytes(8, "big") + bytes(2**17 - 16)
    assert boxes.depth(boxes.description(io.BytesIO(data[:start] + large + data[start:end]))) == 10


@pytest.mark.parametrize(
    ("start", "bits"),
    [
        ("ff0a1890010013880200bc00b59f2000", 8),
        ("ff0a18109450b4080013880200bc00b5", 10),
        ("ff0a18109850b4080013880200bc00b5", 12),
        ("ff0a1810fc24142d020013880200b800", 16),
        ("ff0a18107209458b0013880200ac00b5", 32),
    ],
)
def test_depth_of_jxl(start, bits):
    """Of files that libjxl wrote; the last holds floats."""
    assert jxl.depth(bytes.fromhex(start)) == bits


def test_jxl_of_8_bits():
    pytest.importorskip("pillow_jxl")
    formats.JXL.load()
    assert notes_of(encoded(Image.new("RGB", (20, 10)), "JXL")) == []

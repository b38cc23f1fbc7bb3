"""Coverage-guided fuzzing with Atheris; runs until something is found, or an option stops it.

    python tests/fuzz/fuzz.py TARGET [OPTION OF LIBFUZZER]... NEW_INPUTS_FOLDER tests/golden

TARGET is one of
    parser    a file as it is, and with a right checksum
    metadata  chunks of a sound file; what is read can be put into every format of images
    payload   the same through the entropy decoder; what decodes must be coded to the same bytes
    weights   a safetensors file for a network, for the entropy coder and for a foreign decoder
    latents   a file of latents to import, and what it says about them
    caches    what a trainer's cache holds besides the latents of a .lat file, and its export
Anything but the documented errors is a crash, and so is an input that takes over LIMIT_S.
"""

import contextlib
import io
import json
import logging
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import atheris
from PIL import Image

with atheris.instrument_imports(include=["dynenc"]):
    from dynenc import registry
    from dynenc.coding import bitstream
    from dynenc.coding.encode_latents import encode_latents
    from dynenc.coding.entropy import EntropyCoder, load_coder
    from dynenc.errors import BitstreamError, LatentsError, WeightsError

LIMIT_S = 0.5  # of processor time, for files of at most MAX_BYTES that declare MAX_PIXELS
MAX_BYTES, MAX_PIXELS = 4096, 96 * 96
OPTIONS = [f"-max_len={MAX_BYTES}", "-rss_limit_mb=2048", "-timeout=30", "-print_final_stats=1"]


def sealed(data: bytes) -> bytes:
    """Any bytes as the fields and the payload of a file with a right checksum."""
    body = bitstream.PREFIX.pack(bitstream.MAGIC, bitstream.VERSION)
    body += data[bitstream.PREFIX.size : -bitstream.CRC.size]
    return body + bitstream.CRC.pack(zlib.crc32(body))


def parser() -> Callable[[bytes], None]:
    """A target: bytes -> nothing, or an error that is a bug."""

    def run(data: bytes) -> None:
        for blob in (data, sealed(data)):
            with contextlib.suppress(BitstreamError):
                header, payload, chunks = bitstream.read(blob)
                if chunks or not header.flags & bitstream.HAS_CHUNKS:
                    assert bitstream.write(header, payload, chunks) == blob

    return run


def payload() -> Callable[[bytes], None]:
    """A target, as above."""
    kinds = ("fast", False), ("full", False), ("full", True)
    coders = [load_coder(name, has_trellis=has_trellis) for name, has_trellis in kinds]

    def run(data: bytes) -> None:
        with contextlib.suppress(BitstreamError):
            header, coded, _ = bitstream.read(sealed(data), MAX_PIXELS)
            height, width = -(-header.height // 8), -(-header.width // 8)
            model = coders[header.coder_id % len(coders)]
            symbols = model.decode(coded, height, width, header.step_q)
            assert model.encode(symbols, header.step_q) == coded

    return run


def metadata() -> Callable[[bytes], None]:
    """A target, as above: a byte for the chunk, one whether to pack, the rest is its data."""
    with atheris.instrument_imports(include=["dynenc"]):
        from dynenc.imaging import extras, packing, pixels, save
        from dynenc.imaging.read import open_image
    logging.getLogger("PIL").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    tags = ["grey", "alph", "exif", "xmpp", "iccp", "none", "Detl"]
    side = 6

    def run(data: bytes) -> None:
        if len(data) < 2:
            return
        tag, body = tags[data[0] % len(tags)], data[2:]
        if data[1] % 2:
            body = packing.pack(body)
        with contextlib.suppress(BitstreamError):
            chunks = [("grey", b""), (tag, body)][not data[1] & 2 :]
            parsed = extras.from_chunks(chunks, (side, side))
            image = extras.restore(Image.new("RGB", (side, side), "teal"), parsed)
            for form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
                try:
                    shown = pixels.to_rgb(image) if form == "JPEG" else image
                    saved = save.save(shown, form, "fuzz")
                except (OSError, ValueError) as exc:  # only where metadata is not to blame
                    raise AssertionError(form) from exc
                open_image(io.BytesIO(saved), keep_metadata=True)

    return run


def weights() -> Callable[[bytes], None]:
    """A target, as above; half of the inputs choose names and shapes for a valid file."""
    with atheris.instrument_imports(include=["dynenc"]):
        # these two take seconds, which are no input's
        import diffusers.loaders.single_file_utils
        import diffusers.models.autoencoders  # noqa: F401
        import numpy as np
        from safetensors.numpy import save

        from dynenc.networks import decoders
        from dynenc.networks import loading as networks
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    path = Path(tempfile.mkdtemp(), "x.safetensors")
    names = [
        *networks.build(registry.MODELS["nano"]).state_dict(),
        *(f"plain.{stage}.{part}" for stage in (0, 5) for part in ("neighbours", "hidden", "bias")),
        *("plain.counts", "thresholds", "decoder.layers.0.weight", "decoder.conv_in.weight"),
        *("vae.decoder.conv_in.weight", "first_stage_model.decoder.up.0.block.0.conv1.weight"),
        *(f"decoder.up_blocks.{i}.resnets.0.conv1.bias" for i in range(4)),
    ]
    types = ["float16", "float32", "int8", "int64", "bool"]

    def file(choices: atheris.FuzzedDataProvider) -> bytes:
        tensors = {}
        for _ in range(choices.ConsumeIntInRange(0, 12)):
            shape = [
                choices.ConsumeIntInRange(0, 9) for _ in range(choices.ConsumeIntInRange(0, 4))
            ]
            kind = types[choices.ConsumeIntInRange(0, len(types) - 1)]
            tensors[names[choices.ConsumeIntInRange(0, len(names) - 1)]] = np.zeros(shape, kind)
        kinds = [*registry.MODELS, "none"]
        return save(tensors, {"model": kinds[choices.ConsumeIntInRange(0, len(kinds) - 1)]})

    def run(data: bytes) -> None:
        made = file(atheris.FuzzedDataProvider(data[1:])) if data[:1] < b"\x80" else data[1:]
        path.write_bytes(made)
        for load, source in (
            (networks.load_path, path),
            (lambda data: EntropyCoder.load(data, has_trellis=False), made),
            (decoders.load_decoder, str(path)),
        ):
            with contextlib.suppress(WeightsError):
                load(source)

    return run


def latents() -> Callable[[bytes], None]:
    """A target, as above: files as they are, and those of chosen tensors and texts."""
    with atheris.instrument_imports(include=["dynenc"]):
        import numpy as np
        import torch
        from safetensors.numpy import save

        from dynenc.interop import latent_files
    names = [
        *("latents", "latents_2x3", "latents_3x2", "latent_tensor", "latent_format_version_0"),
        *("original_size_2x3", "original_size", "crop_ltrb_2x3"),
    ]
    types = ["float16", "float32", "float64", "int32", "bool"]
    words = ["scale", "width", "height", "encoder", "step", "prompt", "sdxl", "light", "0.18215"]

    def written(choices: atheris.FuzzedDataProvider, kind: int) -> bytes:
        tensors = {}
        for _ in range(choices.ConsumeIntInRange(0, 4)):
            name = names[choices.ConsumeIntInRange(0, len(names) - 1)]
            dtype = types[choices.ConsumeIntInRange(0, len(types) - 1)]
            shape = [(1, 4, 2, 3, 16)[choices.ConsumeIntInRange(0, 4)] for _ in range(3)]
            values = choices.ConsumeBytes(8 * int(np.prod(shape))).ljust(8 * int(np.prod(shape)))
            array = np.frombuffer(values, np.uint8)[:: 8 // np.dtype(dtype).itemsize]
            tensors[name] = np.resize(array, np.prod(shape)).astype(dtype).reshape(shape)
        texts = {
            words[choices.ConsumeIntInRange(0, 6)]: (
                words[choices.ConsumeIntInRange(5, 8)]
                if choices.ConsumeBool()
                else choices.ConsumeUnicodeNoSurrogates(9)
            )
            for _ in range(choices.ConsumeIntInRange(0, 4))
        }
        if kind == 1:
            return bytes(save(tensors, texts))
        file = io.BytesIO()
        if kind == 2:
            np.savez(file, **tensors)
        else:
            torch.save({k: torch.from_numpy(v) for k, v in tensors.items()} | texts, file)
        return file.getvalue()

    def run(data: bytes) -> None:
        kind = data[0] % 5 if data else 0
        blob = data[1:]
        if kind in (1, 2, 3):
            blob = written(atheris.FuzzedDataProvider(blob), kind)
        elif kind == 4:  # a .npy inside a sound archive
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("latents_2x3.npy", blob)
            blob = file.getvalue()
        with contextlib.suppress(LatentsError):
            found = latent_files.read(blob, "fuzz")
            assert np.isfinite(found.latents).all()
            assert len(found.latents) == 4
            assert found.note is not None

    return run


def caches() -> Callable[[bytes], None]:
    """A target, as above: an index as it is, or one of chosen tensors; then their data."""
    with atheris.instrument_imports(include=["dynenc"]):
        import numpy as np
        import torch  # noqa: F401  # takes a second, which is no input's

        from dynenc.coding import quantize
        from dynenc.imaging.packing import pack
        from dynenc.interop import cache_chunk, containers, latent_export
    random = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    file = encode_latents(random, (24, 16), quantize.STEP_UNIT // 4, registry.IMPORTED)
    lat = bitstream.write(file.header, file.payload, ())
    names = ["latents", "latents_2x3", "latent_image", "file", "", "a/b"]
    forms = ["npz", "pt", "comfy", "musubi", "safetensors", "ai-toolkit", "none"]
    dtypes = [*containers.DTYPES, "F8", None]
    numbers = [1, 0.18215, 0, -1, 1e300, float("inf"), 10**400, "1", None]

    def index(choices: atheris.FuzzedDataProvider) -> tuple[bytes, bytes]:
        tensors, data = [["latents", "F32", [4, 2, 3], "payload", 0]], b""
        for _ in range(choices.ConsumeIntInRange(0, 4)):
            what = choices.PickValueInList(["data", "lat", "payload", "none"])
            dtype = choices.PickValueInList(dtypes)
            shape = [
                choices.ConsumeIntInRange(-1, 5) for _ in range(choices.ConsumeIntInRange(0, 4))
            ]
            size = choices.ConsumeIntInRange(-1, 40)
            if choices.ConsumeProbability() < 0.8:
                size = int(np.prod(np.abs(shape))) * int(
                    (containers.DTYPES.get(dtype) or "<f4")[2:]
                )
            part = lat if what == "lat" else choices.ConsumeBytes(max(size, 0)).ljust(max(size, 0))
            tensors.append([choices.PickValueInList(names), dtype, shape, what, len(part)])
            data += part
        contents = {
            "form": choices.PickValueInList(forms),
            "scaling": [choices.PickValueInList(numbers[: choices.PickValueInList([2, 9])]), 0],
            "facts": {choices.ConsumeUnicode(3): choices.PickValueInList(["a", 1, None, []])},
            "tensors": tensors[choices.ConsumeIntInRange(0, 15) == 0 :],
        }
        return json.dumps(contents).encode(), data

    def run(data: bytes) -> None:
        text, rest = data[1:], b""
        if data[:1] < b"\xc0":
            text, rest = index(atheris.FuzzedDataProvider(data[1:]))
        chunk = cache_chunk.TAG, pack(cache_chunk.INDEX_LENGTH.pack(len(text)) + text + rest)
        with contextlib.suppress(BitstreamError, LatentsError):
            kept = cache_chunk.from_chunks([chunk])
            written, _ = latent_export.write(
                kept.format_name, replace(file, chunks=[chunk]), file.latents
            )
            again = containers.read(written, "fuzz")
            assert set(again.tensors) == {tensor.key for tensor in kept.tensors}

    return run


def main() -> None:
    """Fuzz the target that is named."""
    targets = (parser, metadata, payload, weights, latents, caches)
    run = {target.__name__: target for target in targets}[sys.argv[1]]()
    slowest = 0.0

    def timed(data: bytes) -> None:
        nonlocal slowest
        start = time.process_time()
        run(data)
        seconds = time.process_time() - start
        if seconds > 1.2 * slowest:
            slowest = seconds
            print(f"slowest input so far: {1e3 * seconds:.1f} ms", file=sys.stderr)
        assert seconds <= LIMIT_S, f"{seconds:.2f} s for {len(data)} bytes"

    run(b"")  # what the first use imports does not count
    atheris.Setup([sys.argv[0], *OPTIONS, *sys.argv[2:]], timed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

import contextlib
import io
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.lat_files import read_latents
from PIL import Image

import dynenc
from dynenc import metrics, registry, runtime
from dynenc.codec import Codec
from dynenc.coding import bitstream, quantize
from dynenc.coding.encode_latents import FLAT_ERROR
from dynenc.coding.encode_options import EncodeOptions
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.encoding import EncodingJob
from dynenc.errors import (
    BitstreamError,
    Corrupt,
    DeviceError,
    ImageError,
    TargetMissed,
    UnknownModel,
    WeightsError,
)
from dynenc.imaging import arrays
from dynenc.imaging.tensors import to_image, to_tensor
from dynenc.networks import compat, integer_decoder
from dynenc.networks.compat import CPU_DTYPE
from dynenc.networks.decoders import load_decoder
from dynenc.networks.tiling import TiledDecoder


@pytest.fixture(scope="module")
def nano():
    return Codec.from_pretrained("nano", decoder="embedded", device="cpu")


@pytest.fixture
def photo(photo_path):
    return Image.open(photo_path).convert("RGB").crop((100, 60, 199, 141))


def test_public_names():
    assert dynenc.__all__ == [
        "Codec",
        "DynamicConv",
        "DynencError",
        "HybridDense",
        "LatentDataset",
        "SameSizeBatches",
        "convert",
        "load_decoder",
        "load_encoder",
        "make_cache",
        "vae",
    ]
    for name in dynenc.__all__:
        assert getattr(dynenc, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = dynenc.nothing


def test_a_photograph_survives(nano, photo):
    decoded = nano.decode(nano.encode(photo))
    assert decoded.size == photo.size
    assert metrics.psnr_db(to_tensor(decoded), to_tensor(photo)) > 18


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 13), (8, 8), (64, 1), (33, 40)])
def test_any_size(nano, size):
    image = Image.effect_noise(size, 40).convert("RGB")
    assert nano.decode(nano.encode(image)).size == size


def test_tensors_and_images_give_the_same_bytes(nano, photo):
    tensor = to_tensor(photo)
    blob = nano.encode(photo)
    assert nano.encode(tensor) == blob
    assert nano.encode(tensor[0]) == blob
    assert nano.encode(tensor.clone().requires_grad_()) == blob
    decoded = nano.decode_tensor(blob)
    assert decoded.shape == tensor.shape
    assert to_image(decoded).tobytes() == nano.decode(blob).tobytes()


def test_arrays_and_images_give_the_same_bytes(nano, photo):
    array, blob = np.array(photo), nano.encode(photo)
    assert nano.encode(array) == blob
    assert nano.encode(np.asarray(photo)) == blob  # which cannot be written to
    assert nano.encode(torch.from_numpy(array).permute(2, 0, 1)) == blob
    mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert nano.encode(array[:, ::-1]) == nano.encode(mirrored)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))]
)
def test_arrays_that_are_no_image(nano, array):
    with pytest.raises(ImageError, match="array"):
        nano.encode(array)


@pytest.mark.parametrize("encoder", ["nano", "light", "base"])
def test_tiles_give_the_latents_of_the_whole(photo, encoder, monkeypatch):
    coder = Codec(encoder, device="cpu")
    images = [photo, torch.rand(1, 3, 81, 99) * 2 - 1]
    for image in images:
        monkeypatch.setenv(CPU_DTYPE, "float32")
        whole = coder.latents([image])
        monkeypatch.setattr(arrays, "TILE_PATCHES", 5)
        tiles = coder.latents([image])
        monkeypatch.undo()
        np.testing.assert_allclose(tiles, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["light", "base"])
def test_bfloat16_hardly_moves_latents(photo, encoder, monkeypatch):
    """Where the CPU has it the blocks use it, unless somebody wants a gradient."""
    network, image, found = dynenc.load_encoder(encoder), to_tensor(photo)[..., :80, :96], {}
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv(CPU_DTYPE, dtype)
        with torch.no_grad():
            found[dtype] = network(image)
    torch.testing.assert_close(network(image), found["float32"])
    error = (found["bfloat16"] - found["float32"]).square().mean().sqrt()
    assert 0 < error < 0.005


@pytest.mark.parametrize("encoder", ["nano", "light", "autoencoder"])
def test_a_batch_in_threads_has_the_bytes_of_its_images(encoder, photo, monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 3)
    coder = Codec(encoder, device="cpu")
    parts = [photo.crop((x, x, x + 49, x + 31)) for x in range(0, 50, 10)]
    before = set(threading.enumerate())
    for target in (None, 300):
        options = EncodeOptions.from_arguments(target_size=target)
        together = [each.blob for each in coder.encode_batch(parts, options)]
        alone = [coder.encode_batch([part], options)[0].blob for part in parts]
        assert together == alone
        assert len(set(together)) == len(parts)
    assert set(threading.enumerate()) <= before


def test_encoding_twice_gives_the_same_bytes(nano, photo):
    assert nano.encode(photo) == nano.encode(photo)


def test_grey_and_transparent_images(nano, photo):
    for mode in ("L", "RGBA", "P"):
        assert nano.decode(nano.encode(photo.convert(mode))).size == photo.size


@pytest.mark.parametrize("shape", [(3, 0, 8), (1, 8, 8), (2, 3, 8, 8), (8, 8), (3, 70_000, 1)])
def test_tensors_that_are_no_image(nano, shape):
    with pytest.raises(ImageError):
        nano.encode(torch.zeros(shape))


@pytest.mark.parametrize("quality", [-1, 100.5, float("nan")])
def test_quality_out_of_range(nano, photo, quality):
    with pytest.raises(ValueError, match="quality"):
        nano.encode(photo, quality=quality)


def test_pixels_of_8_bits_train_as_floats_do():
    pixels = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    gradients = []
    for image in (pixels, pixels / 127.5 - 1):
        encoder = dynenc.load_encoder("nano").requires_grad_()
        with torch.inference_mode():
            encoder(pixels)  # rows that are made here are without a gradient
        encoder(image).square().sum().backward()
        gradients.append(encoder.stem.weight.grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)
    frozen = dynenc.load_encoder("nano")
    with torch.inference_mode():
        before = frozen(pixels)
    assert frozen(pixels).equal(before)


def test_unknown_encoder():
    with pytest.raises(WeightsError, match="nano, light, base"):
        Codec("huge")


class NamedFile(os.PathLike):
    """A path of somebody else's type."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_paths_are_read(nano, photo_path, tmp_path):
    blob = nano.encode(photo_path)
    assert nano.encode(str(photo_path)) == blob == nano.encode(Image.open(photo_path))
    assert nano.encode(NamedFile(photo_path)) == blob
    (path := tmp_path / "a.lat").write_bytes(blob)
    expected = nano.decode(blob).tobytes()
    for file in (path, str(path), NamedFile(path), bytearray(blob), LatFile.parse(blob)):
        assert nano.decode(file).tobytes() == expected
    assert nano.decode_tensor(path).equal(nano.decode_tensor(blob))


def opened(photo, *, cut=0, is_closed=False):
    """An image of a PNG file whose pixels have not been read; of a cut or closed file."""
    photo.save(file := io.BytesIO(), "PNG")
    image = Image.open(io.BytesIO(file.getvalue()[: -cut or None]))
    if is_closed:
        image.close()
    return image


@pytest.mark.parametrize(
    "call",
    [
        lambda codec, _: codec.encode(None),
        lambda codec, _: codec.encode(b"bytes"),
        lambda codec, _: codec.encode("no such file.png"),
        lambda codec, photo: codec.encode(opened(photo, cut=100)),
        lambda codec, photo: codec.encode(opened(photo, is_closed=True)),
        lambda codec, _: codec.encode(Image.new("F", (0, 5))),
        lambda codec, _: codec.encode(Image.new("I", (5, 0))),
        lambda codec, _: codec.encode(torch.full((3, 8, 8), float("nan"))),
        lambda codec, _: codec.encode(torch.full((3, 8, 8), float("inf"))),
        lambda codec, _: codec.encode(torch.zeros(3, 8, 8, dtype=torch.int64)),
        lambda codec, _: codec.encode(torch.zeros(3, 8, 8, dtype=torch.complex64)),
        lambda codec, _: codec.encode(np.zeros((8, 8, 3), np.float32)),
        lambda codec, _: codec.encode(torch.zeros(1, 8, 8)),
        lambda codec, photo: codec.encode(photo, quality="high"),
        lambda codec, photo: codec.encode(photo, quality=101),
        lambda codec, photo: codec.encode(photo, quality=float("nan")),
        lambda codec, photo: codec.encode(photo, quality=50, target_bpp=0.1),
        lambda codec, photo: codec.encode(photo, target_bpp=-1),
        lambda codec, photo: codec.encode(photo, target_size="5 apples"),
        lambda codec, photo: codec.encode(photo, target_psnr=[30]),
        lambda codec, photo: codec.encode(photo, effort=10),
        lambda codec, photo: codec.encode(photo, effort="2"),
        lambda codec, photo: codec.encode(photo, effort=1.5),
        lambda codec, photo: codec.encode(photo, detail=np.array([1, 2])),
        lambda codec, _: codec.decode(None),
        lambda codec, _: codec.decode(Image.new("RGB", (8, 8))),
        lambda codec, _: codec.decode(b""),
        lambda codec, _: codec.decode("no such file.lat"),
        lambda *_: Codec("huge"),
        lambda *_: Codec(None),
        lambda *_: Codec(decoder=5),
        lambda *_: Codec(device="tpu"),
        lambda *_: Codec(device="cpu:1"),
        lambda *_: Codec(device=None),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(nano, photo, call):
    with pytest.raises(dynenc.DynencError) as caught:
        call(nano, photo)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_foreign_model_numbers(nano, photo):
    header, payload, _ = bitstream.read(nano.encode(photo))
    for change in ({"model_id": 200}, {"coder_id": 200}):
        with pytest.raises(UnknownModel, match=r"200.*update"):
            nano.decode(bitstream.write(replace(header, **change), payload))


def test_a_payload_of_another_size_is_refused(nano, photo):
    header, payload, _ = bitstream.read(nano.encode(photo))
    other = replace(header, width=header.width + 80)
    with pytest.raises(Corrupt):
        nano.decode(bitstream.write(other, payload))


def test_random_payloads_raise_only_bitstream_errors(nano):
    random = np.random.default_rng(0)
    for _ in range(50):
        header = bitstream.Header(*random.integers(1, 300, 3).tolist(), 1, 1)
        junk = random.bytes(4 * int(random.integers(0, 60)))
        with contextlib.suppress(BitstreamError):
            read_latents(bitstream.write(header, junk))


@pytest.mark.parametrize("name", registry.names("encoder"))
def test_encoders_are_local(name, photo_path, monkeypatch):
    """A crop aligned to 8 px has the crop of the latents, away from the border."""
    monkeypatch.setenv("DYNENC_CPU_DTYPE", "float32")
    image = to_tensor(Image.open(photo_path).convert("RGB"))[..., :296, :448]
    encoder = dynenc.load_encoder(name)
    with torch.inference_mode():
        whole = encoder(image)
        part = encoder(image[..., 64:264, 80:360])
    margin = encoder.reach
    inner = part[..., margin:-margin, margin:-margin]
    expected = whole[..., 8 + margin : 33 - margin, 10 + margin : 45 - margin]
    assert (inner - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", registry.names("encoder"))
def test_encoder_shapes(name):
    channels = registry.MODELS[name].space.channels
    with torch.inference_mode():
        assert dynenc.load_encoder(name)(torch.zeros(2, 3, 16, 24)).shape == (2, channels, 2, 3)


def test_image_formats_do_not_matter(nano, photo):
    buffer = io.BytesIO()
    photo.save(buffer, "WEBP", lossless=True)
    assert nano.encode(Image.open(buffer)) == nano.encode(photo)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert compat.pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compat.pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda:1", torch.device("cuda:1"), torch.device("cpu")):
        assert compat.pick_device(name) == torch.device(name)
    for name in ("mps", "cuda:2", "meta", "tpu"):
        with pytest.raises(DeviceError, match=name):
            compat.pick_device(name)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu", 0)])
def test_on_every_name_of_the_cpu_integers_are_computed(photo, device):
    codec = Codec("nano", "embedded", device)
    codec.decode(codec.encode(photo))
    assert codec.native_encoder
    assert "backend" not in vars(codec)


def test_a_missed_size_is_that_of_the_refined_file(nano, photo, monkeypatch):
    def refined(job, file, max_bytes=0):
        return replace(file, chunks=[("test", bytes(4))])  # 16 bytes more

    monkeypatch.setattr(EncodingJob, "_refined", refined)
    with pytest.raises(TargetMissed, match="closest is 38"):
        nano.encode(photo, target_size=3, strict=True)


@pytest.mark.parametrize("encoder", ["light", "base"])
def test_flat_images_are_rounded_plainly_where_that_costs_less(photo, encoder):
    """And finely: of the files whose error is small, on either lattice, the smallest is taken."""
    made = Codec(encoder, device="cpu")
    trellis = load_coder("full", has_trellis=True)
    assert LatFile.parse(made.encode(photo)).header.has_trellis
    step_q, lattices = quantize.quality_to_step(25, has_trellis=True), []
    largest = FLAT_ERROR * step_q / quantize.STEP_UNIT
    for colour in ((243, 8, 36), (79, 222, 108), (121, 131, 193)):
        flat = Image.new("RGB", (200, 200), colour)
        file = LatFile.parse(made.encode(flat, quality=25))
        lattices.append(file.header.has_trellis)
        assert file.header.step_q < step_q
        latents = made.latents([flat])[0]

        def rms_error(file, latents=latents):
            return np.sqrt(np.square(file.latents - latents).sum() / latents[0].size)

        assert rms_error(file) <= largest
        fine = file.header.step_q
        symbols = quantize.to_symbols(latents, fine, trellis)
        other = LatFile.from_symbols(symbols, trellis, (200, 200), fine, file.model)
        assert rms_error(other) > largest or len(file.payload) <= len(other.payload)
    assert False in lattices


@pytest.mark.parametrize("name", ["nano", "light"])
def test_the_kernel_and_the_network_write_the_same_file(name):
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1, 3), np.uint8)
    pixels = np.cumsum(np.repeat(pixels, 60, 1), 1, np.uint8)  # more than a tile high
    native, by_network = Codec(name, device="cpu"), Codec(name, device="cpu")
    blob = native.encode(pixels)
    assert native.encode(Image.fromarray(pixels)) == blob
    _ = by_network.encoder
    assert by_network.encode(pixels) == blob
    by_network.encoder.linear.bias.add_(1)
    assert by_network.encode(pixels) != blob


@pytest.mark.parametrize("name", ["light", "embedded", "full"])
def test_from_pretrained_misses_weights_at_once(name, monkeypatch, tmp_path):
    lost = replace(registry.MODELS[name], file="lost.safetensors")
    monkeypatch.setitem(registry.MODELS, name, lost)
    integer_decoder.load.cache_clear()
    load_coder.cache_clear()
    with pytest.raises(WeightsError, match=r"lost\.safetensors cannot be read"):
        Codec.from_pretrained(device="cpu")


def test_rows_that_overlap_are_an_image(nano):
    row = np.random.default_rng(0).integers(0, 256, (64, 3), np.uint8)
    for array in (np.broadcast_to(row, (64, 64, 3)), row[:, None].transpose(1, 0, 2)):
        assert nano.encode(array) == nano.encode(array.copy())


def test_each_file_is_decoded_with_its_own_step(nano, photo):
    decoder = load_decoder("embedded")
    decoder.network.step_bias.slope.data += 0.5
    files = [LatFile.parse(nano.encode(photo, quality=quality)) for quality in (20, 80)]
    for file, image in zip(files, nano.backend.images(files, decoder), strict=True):
        expected = decoder(torch.from_numpy(file.latents)[None], file.step)
        expected = expected[..., : photo.height, : photo.width].clamp(-1, 1)
        for decoded in (to_tensor(image), nano.backend.decode_tensor(file, decoder)):
            assert metrics.psnr_db(decoded, expected) > 50
        without = decoder(torch.from_numpy(file.latents)[None])[..., : photo.height, : photo.width]
        assert metrics.psnr_db(without.clamp(-1, 1), expected) < 40


@pytest.mark.parametrize("encoder", ["light", "light-sdxl"])
def test_an_assigned_decoder_is_used_in_its_space(encoder, photo):
    codec = Codec(encoder, device="cpu")
    blob, other = codec.encode(photo), codec.decoder
    black = TiledDecoder("black", Black(), space=other.space)
    codec.decoder = black
    assert codec.decode(blob).getextrema() == ((0, 0),) * 3
    blob = Codec("light" if encoder != "light" else "light-sdxl").encode(photo)
    assert codec.decode(blob).getextrema() != ((0, 0),) * 3


class Black(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # tells the device

    def forward(self, latents):
        return -torch.ones(len(latents), 3, *(8 * side for side in latents.shape[2:]))


@pytest.mark.parametrize("decoder", ["embedded", "fine"])
def test_decoded_tensors_take_part_in_training(nano, photo, decoder):
    decoded = Codec("nano", decoder, "cpu").decode_tensor(nano.encode(photo))
    factor = torch.ones(1, requires_grad=True)
    (decoded * factor).sum().backward()
    assert factor.grad is not None


def test_autocast_changes_nothing(photo):
    codec = Codec("base", "fine", "cpu")

    def run():
        image = photo.crop((0, 0, 96, 64))
        blob = codec.encode(image, effort=1)
        return codec.encode(image), blob, codec.decode(blob).tobytes()

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert run() == expected


def test_loading_networks_draws_no_random_numbers(photo):
    state = torch.get_rng_state()
    Codec.from_pretrained("base", decoder="fine", device="cpu").encode(photo)
    assert torch.equal(torch.get_rng_state(), state)

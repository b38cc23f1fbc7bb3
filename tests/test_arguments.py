"""Every wrong argument of the public API is a DynencError that is also a ValueError."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import dynenc
import dynenc.pillow

NAN, INF = float("nan"), float("inf")
PHOTO = Image.effect_noise((40, 24), 60).convert("RGB")
NOT_NAMES = [None, 5, 1.5, True, b"nano", ["nano"], "", "huge"]
NOT_DEVICES = [None, 5, 5.5, -1, b"cpu", ["cpu"], "", "tpu", "cpu:1"]
NOT_WHOLE = [-1, 1.5, NAN, "x", b"5", [], True]
NOT_POSITIVE = [0, *NOT_WHOLE]
NOT_FUNCTIONS, NOT_LISTS = [5, "x"], [5, None, [5], [None], b"*"]
zeros = torch.zeros
NOT_IMAGES = [None, 5, b"x", [PHOTO], {}, "missing.png", ".", "a.lat", "a\0b", ""]
NOT_IMAGES += [torch.full((3, 8, 8), value) for value in (NAN, INF, 200.0)]
NOT_IMAGES += [zeros(3, 8, 8, dtype=t) for t in (torch.int64, torch.bool, torch.complex64)]
NOT_IMAGES += [zeros(shape) for shape in [(3,), (1, 8, 8), (2, 3, 8, 8), (1, 1, 3, 8, 8)]]
NOT_IMAGES += [zeros(3, 0, 8), zeros(3, 8, 8, device="meta"), zeros(3, 8, 8).to_sparse()]
NOT_IMAGES += [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 3, 3), np.uint8)]
NOT_LATS = [None, 5, b"", b"junk", "missing.lat", ".", "a.png", PHOTO, [b""], "a\0b", ""]


def not_batches(channels):
    """What is no batch [B, channels, H, W] of floats with sides that are multiples of 8."""
    shapes = [(channels, 8, 8), (8, 8), (1, channels + 1, 8, 8), (1, channels, 0, 8)]
    dtypes = [torch.int64, torch.bool, torch.complex64]
    wrong = [zeros(shape) for shape in shapes]
    wrong += [zeros(1, channels, 8, 8, dtype=dtype) for dtype in dtypes]
    return [*wrong, None, [1], np.zeros((1, channels, 8, 8))]


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A codec, networks and a data set."""
    folder = tmp_path_factory.mktemp("files")
    codec = dynenc.Codec("nano", decoder="embedded")
    PHOTO.save(folder / "a.png")
    (folder / "a.lat").write_bytes(codec.encode(PHOTO))
    dynenc.convert("export", folder / "a.lat", folder / "a.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {
            "codec": codec,
            "encoder": dynenc.load_encoder("nano"),
            "decoder": dynenc.load_decoder("embedded"),
            "vae": dynenc.vae("nano", device="cpu"),
            "conv": dynenc.DynamicConv(3, 4, hidden=2),
            "dense": dynenc.HybridDense(4, 4),
            "dataset": dynenc.LatentDataset("a.lat"),
        }


def converting(**options):
    """A conversion that would succeed, with other options."""
    given = {"task": "encode", "inputs": "a.png", "output": "x.lat", "existing": "force"}
    return dynenc.convert(**given | {"encoder": "nano", "jobs": 1} | options)


def opening(decoder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynenc.pillow, "decoder", decoder)
        with Image.open("a.lat") as image:
            image.load()


def saving(**options):
    PHOTO.save(io.BytesIO(), "LAT", **options)


def sampling(**options):
    return dynenc.LatentDataset("a.lat", **options)[0]


ENCODE = {
    "quality": [-1, 101, NAN, "x", b"5", [], True, 1j],
    **{key: [0, -1, NAN, INF, "x", b"5", [], 1j] for key in ("target_bpp", "target_psnr")},
    "target_size": [0, -5, NAN, INF, "x", b"5", [], "9" * 400],
    "effort": [10, None, "1", *NOT_WHOLE],
}
CONVERT = ENCODE | {
    "task": [None, 5, "", "Encode", b"encode"],
    "inputs": [None, 5, b"a.png", "", [], [None], [5], [["a.png"]], "missing.png", "a\0b"],
    "output": [5, b"x", "", [], ["x.lat"], "x\0y"],
    "include": NOT_LISTS,
    "exclude": NOT_LISTS,
    "suffix": [5, "", "a/b", b"lat"],
    "naming": [None, 5, "x"],
    "existing": [5, "x"],
    "engine": [None, "x"],
    "address": ["x"],
    "encoder": NOT_NAMES,
    "tune_for": NOT_NAMES[:-1],
    "device": NOT_DEVICES,
    "scale": [0, -1, NAN, INF, "x", [], True],
    "strict": [True],
    "max_pixels": [None, *NOT_WHOLE],
    **dict.fromkeys(("shard_size", "jobs", "batch_size"), NOT_POSITIVE),
    "preview": NOT_WHOLE,
    **dict.fromkeys(("on_result", "on_step"), NOT_FUNCTIONS),
}
CONV = {
    **{key: [None, "3", 3.5, 0, -1] for key in ("in_channels", "out_channels")},
    **{key: [0, "x", (1, 2, 3), 1.5, None] for key in ("kernel_size", "stride", "dilation")},
    "padding": [-1, "odd", 1.5],
    "groups": [0, 2, "x", None],
    "hidden": [0, -1, 1.5, "x"],
}
CALLS = {  # the names of arguments: wrong values
    "Codec": (lambda _, **o: dynenc.Codec(**o), {"encoder": NOT_NAMES, "device": NOT_DEVICES}),
    "Codec.from_pretrained": (
        lambda _, **o: dynenc.Codec.from_pretrained(**o),
        {"encoder": NOT_NAMES, "decoder": NOT_NAMES},
    ),
    "Codec.encode": (
        lambda o, **given: o["codec"].encode(**{"image": PHOTO} | given),
        ENCODE | {"image": NOT_IMAGES, "strict": [True]},
    ),
    **{
        f"Codec.{name}": (
            lambda o, name=name, **given: getattr(o["codec"], name)(**{"file": "a.lat"} | given),
            {"file": NOT_LATS, "max_pixels": [0, None, *NOT_WHOLE]},
        )
        for name in ("decode", "decode_tensor")
    },
    "load_encoder": (lambda _, **o: dynenc.load_encoder(**o), {"name": NOT_NAMES}),
    "load_decoder": (
        lambda _, **o: dynenc.load_decoder(**{"name": "embedded"} | o),
        {"name": NOT_NAMES, "device": NOT_DEVICES},
    ),
    "vae": (
        lambda _, **o: dynenc.vae(**{"encoder": "nano", "device": "cpu"} | o),
        {"encoder": [*NOT_NAMES, "autoencoder"], "decoder": NOT_NAMES, "device": NOT_DEVICES},
    ),
    "encoder": (
        lambda o, image: o["encoder"](image),
        {"image": [*not_batches(3), zeros(1, 3, 9, 8)]},
    ),
    "decoder": (lambda o, latents: o["decoder"](latents), {"latents": not_batches(4)}),
    "vae.encode": (lambda o, x: o["vae"].encode(x), {"x": not_batches(3)}),
    "vae.decode": (lambda o, z: o["vae"].decode(z), {"z": not_batches(4)}),
    "DynamicConv": (
        lambda _, **o: dynenc.DynamicConv(**{"in_channels": 3, "out_channels": 4} | o),
        CONV,
    ),
    "conv": (lambda o, image: o["conv"](image), {"image": [*not_batches(3), zeros(1, 3, 1, 1)]}),
    "HybridDense": (
        lambda _, **o: dynenc.HybridDense(**{"in_features": 4, "out_features": 4} | o),
        {"in_features": [None, "3", 3.5, 0, -1], "groups": [0, 3, -1, 1.5, "x", None]},
    ),
    "dense": (
        lambda o, inputs: o["dense"](inputs),
        {"inputs": [None, zeros(2, 5), zeros(()), zeros(2, 4, dtype=torch.int64)]},
    ),
    "make_cache": (
        lambda _, **o: dynenc.make_cache(**{"images": "a.png", "cache": "cache"} | o),
        {
            "images": [None, 5, b"a.png", [None], []],
            "cache": [None, 5, b"cache", "memory://cache"],
            "space": [None, 5, [1], "sd2", "sd3"],
            "encoder": [None, 5, "imported", "autoencoder"],
            "vae": [5, "missing", "a.png"],
            "resolution": [-1, 1.5, "512"],
            "quality": [-1, 101, None, "80", float("nan"), 10**400],
            "shard_size": [0, -1, 1.5, None],
        },
    ),
    "LatentDataset": (
        lambda _, **o: dynenc.LatentDataset(**{"sources": "a.lat"} | o)[0],
        {
            "sources": [None, 5, b"a.lat", "", [], [5], [None], ["a.lat", 5], "no.tar", "a.png"],
            "max_pixels": [0, None, *NOT_WHOLE],
        },
    ),
    "LatentDataset of images": (
        lambda _, decoder: sampling(images=True, decoder=decoder),
        {"decoder": NOT_NAMES},
    ),
    "dataset[...]": (lambda o, index: o["dataset"][index], {"index": ["x", None, 1.5]}),
    "SameSizeBatches": (
        lambda o, **given: dynenc.SameSizeBatches(
            **{"dataset": o["dataset"], "batch_size": 1} | given
        ),
        {
            "dataset": [None, 5, [], "a.lat"],
            "batch_size": NOT_POSITIVE,
            "seed": ["x", None, 1.5],
            "num_replicas": NOT_POSITIVE,
            "rank": ["x", None, 1, -1],
        },
    ),
    "set_epoch": (
        lambda o, epoch: dynenc.SameSizeBatches(o["dataset"], 1).set_epoch(epoch),
        {"epoch": ["x", None, 1.5]},
    ),
    "convert": (lambda _, **o: converting(**o), CONVERT),
    "convert, decode": (
        lambda _, **o: converting(**{"task": "decode", "inputs": "a.lat", "output": "x.png"} | o),
        {"decoder": NOT_NAMES, "suffix": [5, "jpg"]},
    ),
    "convert, import": (
        lambda _, **o: converting(**{"task": "import", "inputs": "a.npz"} | o),
        {"scale": [0, -1, NAN, "x", 5], "quality": ["x", 101], "target_bpp": [1]},
    ),
    "Image.save": (
        lambda _, **o: saving(**o),
        {"quality": ["x", 101], "encoder": NOT_NAMES, "target_bpp": [-1], "target_size": ["x"]},
    ),
    "pillow.decoder": (lambda _, decoder: opening(decoder), {"decoder": NOT_NAMES}),
}


@pytest.mark.parametrize(
    ("call", "argument"), [(call, name) for call, (_, wrong) in CALLS.items() for name in wrong]
)
def test_wrong_arguments(objects, call, argument):
    function, wrong = CALLS[call]
    for value in wrong[argument]:
        with pytest.raises(dynenc.DynencError) as caught:
            function(objects, **{argument: value})
        assert isinstance(caught.value, ValueError), (value, caught.value)
        assert "\n" not in str(caught.value)


def test_every_public_name_is_tried():
    tried = {name.partition(".")[0].partition(",")[0] for name in CALLS}
    assert set(dynenc.__all__) - tried == {"DynencError"}


def test_numbers_of_numpy_are_numbers(objects):
    file = objects["codec"].encode(PHOTO, quality=np.float32(30), effort=np.int64(0))
    assert file == objects["codec"].encode(PHOTO, quality=30)

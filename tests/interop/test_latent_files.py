"""Files of latents that other programs read and write: theirs are the oracles here."""

import io
import itertools
import json
import pickle
import re
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.bitstream import HAS_CHUNKS
from dynenc.coding.encode_latents import encode_latents, encode_quantized
from dynenc.coding.lat_file import LatFile
from dynenc.errors import LatentsError, UsageError
from dynenc.interop import containers, latent_export, latent_files
from dynenc.latent_space import FLUX1, SD1, SD3

GOLDEN = Path(__file__).parents[1] / "golden" / "v1_light_33x40.lat"  # 5 x 5 latents
IS_OTHER = re.compile("autoencoder|detail|more_metadata")
SCALE = 0.18215
FORMS = ("safetensors", "npz", "comfy", "pt")


@pytest.fixture(scope="module")
def read():
    """The file and the latents [4, 5, 5] of an image of 33x40 px."""
    file = LatFile.parse(GOLDEN.read_bytes())
    return file, file.latents


def written(form, file, latents):
    """A file of a form, of which nothing is left out."""
    data, note = latent_export.write(form, file, latents)
    assert note == ""
    return data


@pytest.fixture
def latents():
    """As a VAE might give them, times 0.18215: [4, 6, 8]."""
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.8


def comfy_loads(data: bytes) -> torch.Tensor:
    """LoadLatent of ComfyUI's nodes.py."""
    latent = safetensors.torch.load(data)
    multiplier = 1.0
    if "latent_format_version_0" not in latent:
        multiplier = 1.0 / 0.18215
    return latent["latent_tensor"].float() * multiplier


def kohya_loads(
    data: bytes, bucket_reso: tuple[int, int], version: str
) -> tuple[np.ndarray, list, list]:
    """_default_load_latents_from_disk of sd-scripts' library/strategy_base.py, stride 8."""
    height, width = bucket_reso[1] // 8, bucket_reso[0] // 8  # bucket_reso is (W, H)
    suffix = f"_{height}x{width}" if version != "0.10.1, SD and SDXL" else ""
    npz = np.load(io.BytesIO(data))
    if "latents" + suffix not in npz and version == "later, SD and SDXL":
        suffix = ""
    if "latents" + suffix not in npz:
        raise ValueError(f"latents{suffix} not found")
    latents = npz["latents" + suffix]
    return latents, npz["original_size" + suffix].tolist(), npz["crop_ltrb" + suffix].tolist()


def kohya_saves(latents: torch.Tensor, original_size, suffix: str) -> bytes:
    """save_latents_to_disk of the same; before there were several sizes, the suffix was ""."""
    arrays = {
        "latents" + suffix: latents.float().cpu().numpy(),
        "original_size" + suffix: np.array(original_size),
        "crop_ltrb" + suffix: np.array((0, 0, *original_size)),
    }
    return npz(**arrays)


def npz(**arrays) -> bytes:
    """A .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def pt(content) -> bytes:
    """A .pt file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_comfyui_reads_what_is_written(read):
    file, latents = read
    loaded = comfy_loads(written("comfy", file, latents))
    np.testing.assert_allclose(loaded[0], latents / SCALE, rtol=1e-6)


@pytest.mark.parametrize("version", ["0.10.1, SD and SDXL", "later, SD and SDXL"])
def test_kohya_reads_what_is_written(read, version):
    file, latents = read
    data = written("npz", file, latents)
    loaded, original_size, crop = kohya_loads(data, (40, 40), version)
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, latents / SCALE, rtol=1e-6)
    assert (original_size, crop) == ([33, 40], [0, 0, 33, 40])


@pytest.mark.parametrize("space", [FLUX1, SD3], ids=lambda space: space.name)
def test_kohya_reads_what_is_written_for_models_of_16_channels(space):
    latents = np.random.default_rng(0).normal(size=(16, 5, 5)).astype(np.float32)
    file = encode_latents(latents, (33, 40), 300, registry.IMPORTED_MODELS[space.name])
    data = written("npz", file, file.latents)
    loaded, original_size, _ = kohya_loads(data, (40, 40), "FLUX and SD3")
    np.testing.assert_allclose(
        loaded, file.latents if space is FLUX1 else space.raw(file.latents), rtol=1e-6, atol=1e-6
    )
    assert original_size == [33, 40]


def test_safetensors_says_what_it_holds(read):
    file, latents = read
    data = written("safetensors", file, latents)
    assert np.array_equal(safetensors.torch.load(data)["latents"], latents)
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {
        "space": "sd1",
        "scale": "0.18215",
        "width": "33",
        "height": "40",
        "encoder": "light",
        "step": "0.3359375",
    }


def test_pt_is_a_dict_that_weights_only_reads(read):
    file, latents = read
    loaded = torch.load(io.BytesIO(written("pt", file, latents)), weights_only=True)
    assert np.array_equal(loaded["latents"], latents)
    assert (loaded["scale"], loaded["encoder"]) == ("0.18215", "light")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again(read, form):
    file, latents = read
    found = latent_files.read(written(form, file, latents), "a")
    np.testing.assert_allclose(found.latents, latents, rtol=1e-6)
    assert (found.width, found.height) == (33, 40)
    knows_more = form != "npz"
    assert found.model.name == ("light" if knows_more else "imported")
    assert found.step_q == (file.header.step_q if knows_more else None)


@pytest.mark.parametrize(
    "name",  # of files of SD latents alone: a detail layer and a cache are exported, too
    [p.stem for p in sorted(GOLDEN.parent.glob("v1_*.lat")) if not IS_OTHER.search(p.stem)],
)
@pytest.mark.parametrize("form", ["safetensors", "comfy", "pt"])
def test_export_and_import_give_the_same_file(name, form):
    blob = (GOLDEN.parent / f"{name}.lat").read_bytes()
    file = LatFile.parse(blob)
    header = file.header
    found = latent_files.read(written(form, file, file.latents), name)
    assert found.chunks(lambda latents: b"") == []
    size = found.width, found.height
    again = encode_quantized(found.latents, size, found.step_q, found.model)
    if header.flags & HAS_CHUNKS or header.coder_id != again.header.coder_id:
        assert replace(again.header, coder_id=header.coder_id) == replace(
            header, flags=header.flags & ~HAS_CHUNKS
        )
        assert np.array_equal(again.latents, file.latents)
    else:
        assert again.to_bytes() == blob


def test_comfyuis_files_without_the_marker_are_in_sd_scale(latents):
    old = safetensors.torch.save({"latent_tensor": latents[None]})
    new = {"latent_tensor": latents[None] / SCALE, "latent_format_version_0": torch.tensor([])}
    torch.testing.assert_close(comfy_loads(old) * SCALE, latents[None])
    for data in (old, safetensors.torch.save(new)):
        np.testing.assert_allclose(latent_files.read(data, "a").latents, latents, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["", "_6x8"])
@pytest.mark.parametrize(("original", "size"), [((61, 43), (61, 43)), ((512, 384), (64, 48))])
def test_kohyas_files_old_and_new(latents, suffix, original, size):
    found = latent_files.read(kohya_saves(latents / SCALE, original, suffix), "a.npz")
    np.testing.assert_allclose(found.latents, latents, rtol=1e-6)
    assert (found.width, found.height) == size
    assert (found.model.name, found.step_q, found.note) == ("imported", None, "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(latents, dtype):
    for make in (safetensors.torch.save, pt):
        found = latent_files.read(make({"latents": latents.to(dtype)}), "a", SCALE)
        np.testing.assert_allclose(found.latents, latents, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["to_safetensors", "to_npz", "to_pt"])
def test_tensors_of_any_type_and_shape_are_written(name):
    dtypes = set(containers.DTYPES)
    if name == "to_pt" and torch.__version__.startswith("2.4."):  # which cannot save these
        dtypes -= {"U16", "U32", "U64"}
    for dtype, shape in itertools.product(sorted(dtypes), [(), (0,), (2, 3)]):
        values = np.arange(np.prod(shape)).reshape(shape) % 2
        tensor = containers.RawTensor.from_array(values, dtype)
        assert tensor.array.shape == tensor.floats.shape == shape
        written = getattr(containers, name)(containers.Container({"a": tensor}))
        found = containers.read(written, "a").tensors["a"]
        np.testing.assert_array_equal(found.array, values)


@pytest.mark.parametrize("make", [lambda t: pt(t), lambda t: pt({"latents": t})])
@pytest.mark.parametrize("make_scale", [1, SCALE])
def test_scale_is_asked_for_where_no_file_says_it(latents, make, make_scale):
    data = make(latents / SCALE * make_scale)
    with pytest.raises(LatentsError, match=r"the scale of the latents in .* is unknown"):
        latent_files.read(data, "a.pt")
    found = latent_files.read(data, "a.pt", make_scale)
    np.testing.assert_allclose(found.latents, latents, rtol=1e-6)


def test_scale_given_goes_before_what_a_file_says(latents):
    data = kohya_saves(latents, (64, 48), "_6x8")  # against that program's custom
    np.testing.assert_array_equal(latent_files.read(data, "a.npz", SCALE).latents, latents)


@pytest.mark.parametrize("factor", [1 / SCALE, SCALE])
def test_wrong_scale_is_noticed(latents, factor):
    data = safetensors.torch.save({"latents": latents * factor})
    assert "root mean square" in latent_files.read(data, "a", SCALE).note
    assert latent_files.read(safetensors.torch.save({"latents": latents}), "a", SCALE).note == ""


def test_scale_of_no_sd_1_model(latents):
    with pytest.raises(UsageError, match=r"SD 1\.x latents cannot have scale 0\.13025"):
        latent_files.read(pt(latents), "a.pt", 0.13025)
    with pytest.raises(
        LatentsError, match=r"declares scale 0\.5, which is not that of SD 1\.x latents"
    ):
        latent_files.read(pt({"latents": latents, "scale": 0.5}), "a.pt")


SDXL_FILES = {
    "scale": lambda t: pt({"latents": t, "scale": 0.13025}),
    "space": lambda t: pt({"latents": t, "scale": 0.13025, "space": "sdxl"}),
    "metadata": lambda t: safetensors.torch.save(
        {"latents": t},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base", "scale": "0.13025"},
    ),
    "ComfyUI's workflow": lambda t: safetensors.torch.save(
        {"latent_tensor": t[None] / 0.13025, "latent_format_version_0": torch.tensor([])},
        {"prompt": '{"4": {"inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}}}'},
    ),
    "name": lambda t: kohya_saves(t / 0.13025, (64, 48), "_6x8"),
}


@pytest.mark.parametrize("make", SDXL_FILES.values(), ids=SDXL_FILES)
def test_files_that_say_that_they_are_of_sdxl(latents, make):
    name = "cat_0064x0048_sdxl.npz" if make is SDXL_FILES["name"] else "a"
    found = latent_files.read(make(latents), name)
    assert found.model is registry.IMPORTED_MODELS["sdxl"]
    np.testing.assert_allclose(found.latents, latents, rtol=1e-5)
    with pytest.raises(LatentsError, match=r"of SDXL, but SD 1\.x was given"):
        latent_files.read(make(latents), name, space=SD1)


OTHERS = {
    "16 channels": (lambda t: pt(t.repeat(4, 1, 1)), r"whether they are of FLUX\.1 or SD 3"),
    "5 channels": (lambda t: pt(torch.cat([t, t[:1]])), "5 channels: those of SD 1"),
    "several images": (lambda t: pt(torch.stack([t, t])), "of 2 images"),
    "integers": (lambda t: pt(t.round().long()), "holds int64 instead"),
    "flat": (lambda t: pt(t.flatten()), r"a tensor \[192\]"),
    "empty": (lambda t: pt(t[:, :0]), r"a tensor \[4, 0, 8\]"),
    "wide": (lambda t: pt(torch.zeros(4, 1, 8193)), r"a tensor \[4, 1, 8193\]"),
    "NaN": (lambda t: pt(t.clone().fill_(torch.nan)), "192 latents that are infinite or NaN"),
    "infinite": (lambda t: pt(t.index_fill(0, torch.tensor(1), torch.inf)), "48 latents"),
    "missing keys": (lambda t: npz(latents_6x8=t), "the scale of the latents in .* is unknown"),
    "no latents": (lambda t: npz(crop_ltrb_6x8=t), "holds 'crop_ltrb_6x8', but no latents"),
    "only sizes": (lambda t: npz(original_size=np.array([3, 4])), "holds 'original_size', but no"),
    "other tensors": (lambda t: safetensors.torch.save({"weight": t}), "holds 'weight', but no"),
    "a flipped image alone": (lambda t: npz(latents_flipped_6x8=t), "but no latents"),
    "a list": (lambda t: pt([t]), "holds a list"),
    "more than there is": (lambda t: pt(torch.zeros(1).expand(4, 8000, 8000)), "claims to hold"),
    "an image": (lambda t: b"\x89PNG\r\n\x1a\n" + bytes(40), "is not a file of latents"),
    "nothing": (lambda t: b"", "is empty"),
    "an old pickle": (
        lambda t: pickle.dumps({"latents": 1}),
        "is a pickle, .* which can run any code",
    ),
    "an empty zip": (lambda t: npz(), "not a file of latents"),
}


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_what_is_refused(latents, make, message):
    with pytest.raises(LatentsError, match=message):
        latent_files.read(make(latents), "a.npz")


def test_a_prompt_may_speak_of_sdxl(latents):
    tensors = {"latent_tensor": latents[None]}
    data = safetensors.torch.save(tensors, {"prompt": '{"text": "better than SDXL", "a": 1}'})
    assert latent_files.read(data, "a.latent").width == 64


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "make",
    [
        lambda trap: npz(latents_6x8=np.array([trap], object)),
        lambda trap: npz(original_size=np.array([trap], object), latents=np.zeros((4, 6, 8))),
        lambda trap: pt({"latents": trap}),
        lambda trap: pt({"latents": torch.zeros(4, 6, 8), "more": trap}),
        lambda trap: pickle.dumps(trap),
    ],
    ids=["npz", "npz, other array", "pt", "pt, other entry", "pickle"],
)
def test_nothing_is_unpickled(make, tmp_path):
    data = make(Trap(tmp_path / "mark"))
    with pytest.raises(LatentsError):
        latent_files.read(data, "a.npz", 1)
    assert not (tmp_path / "mark").exists()


def test_npz_that_claims_to_be_large():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1000000, 1000000), }\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("latents.npy", array)
    with pytest.raises(LatentsError, match="cut short, or claims to be larger"):
        latent_files.read(file.getvalue(), "a.npz", 1)


def test_npz_that_unpacks_to_a_lot(monkeypatch):
    monkeypatch.setattr(containers, "MAX_CONTAINER_BYTES", 2**20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", bytes(containers.MAX_CONTAINER_BYTES + 1))
    with pytest.raises(LatentsError, match="unpacks to more"):
        latent_files.read(file.getvalue(), "a.npz", 1)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_raise_only_latents_errors(read, form):
    data = written(form, *read)
    random = np.random.default_rng(0)
    for end in random.integers(0, len(data), 40):
        with pytest.raises(LatentsError):
            latent_files.read(data[:end], "a")
    for place in random.integers(0, len(data), 150):
        damaged = bytearray(data)
        damaged[place] ^= 1 << random.integers(8)
        try:
            found = latent_files.read(bytes(damaged), "a")
        except LatentsError:
            continue
        assert np.isfinite(found.latents).all()  # a bit of a latent


def test_there_is_no_such_form(read):
    with pytest.raises(LatentsError, match="unknown latent format 'ckpt'"):
        latent_export.write("ckpt", *read)


def test_imported_is_no_encoder_to_choose():
    assert "imported" not in registry.names("encoder")
    assert registry.latent_model(4).name == "imported"
    assert len({maker.number for maker in registry.LATENT_MODELS}) == len(registry.LATENT_MODELS)
    assert quantize.quality_to_step(80, has_trellis=False) == 134


def test_a_scale_that_contradicts_the_file_is_refused(read):
    data = written("safetensors", *read)
    assert latent_files.read(data, "a", SCALE).scaling == (SCALE, 0.0)
    with pytest.raises(LatentsError, match=r"declares scale 0\.18215, but 1 was"):
        latent_files.read(data, "a", 1)

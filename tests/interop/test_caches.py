"""The caches of trainers: look-alikes go in, and come back as the trainers expect them."""

import gzip
import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from dynenc.batch.convert import convert
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, LatentsError
from dynenc.imaging.packing import pack
from dynenc.interop import cache_chunk, containers, latent_export, latent_files
from dynenc.interop.containers import RawTensor
from dynenc.latent_space import FLUX1, SD1, SD3, SDXL, SPACES

FINE = 100  # quality; a step of .075 or .084


def scaled(space, height=6, width=8, seed=0):
    """Latents as a diffusion model takes them: [C, h, w]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(space.channels, height, width, generator=random) * 0.8


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **{k: np.asarray(v) for k, v in arrays.items()})
    return file.getvalue()


def pt(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def through_lat(tmp_path, name, data, form=None, **options):
    """Import a file and export it again; the .lat file and what it became."""
    (tmp_path / name).write_bytes(data)
    for folder in ("lats", "back"):
        (tmp_path / folder).mkdir()
    convert("import", tmp_path / name, tmp_path / "lats", quality=FINE, **options)
    [lat] = (tmp_path / "lats").iterdir()
    if form is None:
        return LatFile.parse(lat.read_bytes()), None
    convert("export", lat, tmp_path / "back", form=form)
    [back] = (tmp_path / "back").iterdir()
    assert back.name == name
    return LatFile.parse(lat.read_bytes()), back.read_bytes()


def near(found, expected, scale=1.0):
    error = np.asarray(found, np.float64) - np.asarray(expected)
    assert np.sqrt(np.square(error).mean()) < 0.15 / scale  # 1.1 if others were compared


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_latents_of_each_space_in_every_form(space, tmp_path):
    latents = scaled(space)
    facts = {"space": space.name, "scale": "1.0"}
    data = safetensors.torch.save({"latents": space.raw(latents)}, facts)
    file, _ = through_lat(tmp_path, "a.safetensors", data)
    assert file.model.space is space
    near(file.latents, latents)
    for form in ("safetensors", "npz", "comfy", "pt"):
        again, note = latent_export.write(form, file, file.latents)
        assert note == ""
        name = f"a_0064x0048_{'flux' if space is FLUX1 else space.name}.npz"
        found = latent_files.read(again, name, space=space)
        assert found.model.space is space
        np.testing.assert_allclose(found.latents, file.latents, rtol=1e-4, atol=1e-5)


SD_SCRIPTS = {"sd": SD1, "sdxl": SDXL, "sd3": SD3, "flux": FLUX1, "lumina": FLUX1}


@pytest.mark.parametrize("tag", SD_SCRIPTS)
def test_sd_scripts(tag, tmp_path):
    """Several sizes in one file, flipped ones, masks, crops: all come back under their names."""
    space = SD_SCRIPTS[tag]
    convention = (lambda t: t) if space is FLUX1 else space.raw
    unit = 1.0 if space is FLUX1 else space.scale
    kept, given = {}, {}
    for number, (height, width) in enumerate(((6, 8), (5, 4))):
        end = f"_{height}x{width}"
        given["latents" + end] = convention(scaled(space, height, width, number)).numpy()
        given["latents_flipped" + end] = convention(
            scaled(space, height, width, number + 9)
        ).numpy()
        kept["original_size" + end] = np.array([1000, 800])
        kept["crop_ltrb" + end] = np.array([7, 0, 990, 800])
        kept["alpha_mask" + end] = np.linspace(0, 1, 64 * height * width, dtype=np.float32).reshape(
            8 * height, 8 * width
        )
    name = f"cat_1000x0800_{tag}.npz"
    file, back = through_lat(tmp_path, name, npz(**given, **kept), "npz")
    assert (file.model.space, *file.size) == (space, 64, 48)
    found = np.load(io.BytesIO(back))
    assert found.files == [*given, *kept]
    for key, array in kept.items():
        assert found[key].dtype == array.dtype
        assert np.array_equal(found[key], array)
    for key, array in given.items():
        assert (found[key].dtype, found[key].shape) == (np.float32, array.shape)
        near(found[key], array, unit)


@pytest.mark.parametrize("key", ["arr_0", "latents"])
def test_old_caches_of_sd_scripts(key, tmp_path):
    """They do not say which space they are of, nor do they need other keys."""
    arrays = {key: SDXL.raw(scaled(SDXL))}
    if key == "latents":
        arrays |= {"original_size": [64, 48], "crop_left_top": [0, 3]}
    file, back = through_lat(tmp_path, "cat.npz", npz(**arrays), "npz", space="sdxl")
    assert file.model.space is SDXL
    near(file.latents, scaled(SDXL))
    assert np.load(io.BytesIO(back)).files == list(arrays)


MUSUBI = {"zi": ("z_image", False), "fk": ("flux_kontext", True)}


@pytest.mark.parametrize("tag", MUSUBI)
def test_musubi_tuner(tag, tmp_path):
    architecture, is_scaled = MUSUBI[tag]
    convention = (lambda t: t) if is_scaled else FLUX1.raw
    tensors = {"latents_1x6x8_float32": convention(scaled(FLUX1))}
    if tag == "fk":
        tensors["latents_control_1x5x4_float32"] = convention(scaled(FLUX1, 5, 4))
    facts = {
        "architecture": architecture,
        "width": "64",
        "height": "47",
        "format_version": "1.0.1",
    }
    data = safetensors.torch.save(tensors, facts)
    file, back = through_lat(tmp_path, f"cat_0064x0047_{tag}.safetensors", data, "musubi")
    assert (file.model.space, *file.size) == (FLUX1, 64, 47)
    near(file.latents, scaled(FLUX1))
    found = safetensors.torch.load(back)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        near(found[key], tensor, 1.0 if is_scaled else FLUX1.scale)
    assert facts_of(back) == facts


def facts_of(data):
    with io.BytesIO(data) as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))["__metadata__"]


@pytest.mark.parametrize(
    ("version", "space"),
    [("sd1", SD1), ("sdxl", SDXL), ("sd3", SD3), ("flux1", FLUX1), ("zimage", FLUX1)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ai_toolkit(version, space, dtype, tmp_path):
    facts = {"filename": "sdxl cat.jpg", "crop_x": "3", "latent_space_version": version}
    tensors = {"latent": scaled(space).to(dtype), "tensor": torch.zeros(3, 4, 4, dtype=torch.uint8)}
    name = "cat_dGhpcyBpcyBhIGhhc2gx.safetensors"
    file, back = through_lat(tmp_path, name, safetensors.torch.save(tensors, facts), "ai-toolkit")
    assert file.model.space is space
    near(file.latents, scaled(space))
    found = safetensors.torch.load(back)
    assert {k: (t.dtype, t.shape) for k, t in found.items()} == {
        k: (t.dtype, t.shape) for k, t in tensors.items()
    }
    near(found["latent"].float(), tensors["latent"].float())
    assert facts_of(back) == facts


def test_onetrainer(tmp_path):
    item = {
        "latent_image": SDXL.raw(scaled(SDXL)).bfloat16(),
        "latent_mask": torch.rand(1, 6, 8),
        "original_resolution": (800, 1000),
        "crop_offset": (0, 4),
    }
    file, back = through_lat(tmp_path, "0.pt", pt(item), "pt", space="sdxl")
    near(file.latents, scaled(SDXL))
    found = torch.load(io.BytesIO(back), weights_only=True)
    assert torch.equal(found["latent_mask"], item["latent_mask"])
    assert (found["original_resolution"], found["crop_offset"]) == ([800, 1000], [0, 4])
    assert found["latent_image"].dtype == torch.bfloat16
    near(found["latent_image"].float(), item["latent_image"].float(), SDXL.scale)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_simpletuner(pack, tmp_path):
    data = pack(pt(scaled(FLUX1).half()))
    file, _ = through_lat(tmp_path, "f00d.pt", data, scale=FLUX1.scale, space="flux1")
    near(file.latents, scaled(FLUX1))


def test_what_another_form_cannot_hold_is_said(tmp_path):
    data = npz(
        latents_6x8=scaled(SD1), original_size_6x8=[64, 48], alpha_mask_6x8=np.ones((48, 64))
    )
    file, _ = through_lat(tmp_path, "a_0064x0048_sd.npz", data)
    _, note = latent_export.write("comfy", file, file.latents)
    assert note == "other data of the npz file is dropped"
    with pytest.raises(LatentsError, match="only latents imported from musubi"):
        latent_export.write("musubi", file, file.latents)


BAD = {
    "a mask of another size": (
        "a.npz",
        lambda: npz(latents=scaled(SD1), original_size=[64, 48], alpha_mask=np.ones((40, 64))),
        r"a mask \[40, 64\] that does not fit its latents, \[6, 8\]",
    ),
    "a mask of another size, in OneTrainer": (
        "a.pt",
        lambda: pt({"latent_image": scaled(SD1), "latent_mask": torch.ones(1, 5, 8)}),
        r"a mask \[1, 5, 8\]",
    ),
    "half of a cache": (
        "a.npz",
        lambda: npz(latents=scaled(SD1), original_size=[64, 48])[:600],
        "is cut short or damaged",
    ),
    "another model of ai-toolkit": (
        "a.safetensors",
        lambda: safetensors.torch.save({"latent": scaled(SD1)}, {"latent_space_version": "pixart"}),
        "the latent space of pixart is unknown",
    ),
    "another model of musubi-tuner": (
        "a_0064x0048_qi.safetensors",
        lambda: safetensors.torch.save(
            {"latents_1x6x8_float32": scaled(FLUX1)}, {"architecture": "qwen_image"}
        ),
        r"latents of qwen_image are not supported \(supported: SD 1\.x",
    ),
    "another model of sd-scripts": (
        "a_0064x0048_anima.npz",
        lambda: npz(latents_6x8=scaled(FLUX1), original_size_6x8=[64, 48]),
        "latents of anima are not supported",
    ),
    "OneTrainer's list of files": ("a.pt", lambda: pt([{"image_path": "a"}]), "holds a list"),
    "code": ("a.pt", lambda: pt({"latents": scaled(SD1), "a": torch.float32}), "under 'a' a dtype"),
    "a key of no text": ("a.pt", lambda: pt({"latents": scaled(SD1), 1: "a"}), "holds the key 1,"),
    "a key of no text within": (
        "a.pt",
        lambda: pt({"latents": scaled(SD1), "a": {1: "b", "1": "c"}}),
        "under 'a' the key 1, which is not text",
    ),
    "an object": ("a.pt", lambda: pt({"latents": scaled(SD1), "a": RawTensor}), "pickled objects"),
    "no data": ("a.pt", lambda: pt(scaled(SD1).to("meta")), "a tensor without data"),
    "complex": ("a.pt", lambda: pt(scaled(SD1) * 1j), "a tensor of another layout"),
    "a control image alone": (
        "a.safetensors",
        lambda: safetensors.torch.save(
            {"latents_control_1x6x8_float32": scaled(FLUX1)}, {"architecture": "flux_kontext"}
        ),
        "no latents of the image itself",
    ),
    "16 channels that say nothing": (
        "a.npz",
        lambda: npz(latents=scaled(FLUX1), original_size=[64, 48]),
        r"does not say whether they are of FLUX\.1 or SD 3",
    ),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD.values(), ids=BAD)
def test_bad_caches_are_refused(name, make, message):
    with pytest.raises(LatentsError, match=message):
        latent_files.read(make(), name, 1)


def test_a_scale_that_was_applied_already_is_noticed():
    raw = npz(latents=scaled(SDXL), original_size=[64, 48])  # which should be raw
    assert "root mean square is 0.1" in latent_files.read(raw, "a_sdxl.npz").note


def test_spaces_in_a_folder_may_be_mixed(tmp_path):
    for space in (SD1, SDXL):
        data = npz(latents=space.raw(scaled(space)), original_size=[64, 48])
        (tmp_path / f"a_0064x0048_{space.name.removesuffix('1')}.npz").write_bytes(data)
    convert("import", tmp_path, tmp_path / "lats", jobs=1)
    lats = [LatFile.parse(p.read_bytes()) for p in sorted((tmp_path / "lats").iterdir())]
    assert [lat.model.space for lat in lats] == [SD1, SDXL]
    summary = convert("import", tmp_path, tmp_path / "sdxl", space="sdxl", jobs=1)
    assert (summary.done, summary.failed) == (1, 1)
    assert "holds latents of SD 1.x, but SDXL was given" in summary.failures[0].reason


HOSTILE = {  # text of an index
    "nested": "[" * 100_000,
    "an infinite side": '{"tensors": [["latents", "F32", [Infinity], "payload", 0]]}',
    "a side too large": '{"tensors": [["latents", "F32", [0, 1e30], "payload", 0]]}',
    "too many sides": f'{{"tensors": [["latents", "F32", {[1] * 99}, "payload", 0]]}}',
    "a name in pieces": '{"tensors": [["\\ud800", "F32", [4], "payload", 0]]}',
}
REST = '"facts": {}, "scaling": [1, 0]'
SOUND = '"form": "npz", "tensors": [["latents", "F32", [4, 1, 1], "payload", 0]]'
WITH_DATA = SOUND.replace("]]", '], ["{}", "F32", {}, "data", 0]]')
HOSTILE |= {
    "sides too large together": f"{{{WITH_DATA.format('m', [0, 65536, 65536])}, {REST}}}",
    "a name that safetensors keeps": f"{{{WITH_DATA.format('__metadata__', [0])}, {REST}}}",
    "a scale of 0": f'{{{SOUND}, "facts": {{}}, "scaling": [0, 0]}}',
    "a scale too large": f'{{{SOUND}, "facts": {{}}, "scaling": [1{"0" * 400}, 0]}}',
    "a shift of NaN": f'{{{SOUND}, "facts": {{}}, "scaling": [1, NaN]}}',
    "a fact of a tensor's name": f'{{{SOUND}, "facts": {{"latents": "a"}}, "scaling": [1, 0]}}',
    "facts that are no texts": f'{{{SOUND}, "facts": {{"a": [1]}}, "scaling": [1, 0]}}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_indices_are_corrupt(text):
    chunk = cache_chunk.TAG, pack(cache_chunk.INDEX_LENGTH.pack(len(text)) + text.encode())
    with pytest.raises(Corrupt, match="does not hold a cache"):
        cache_chunk.from_chunks([chunk])


def test_tensors_may_have_the_names_of_parameters():
    container = containers.Container(
        {"file": RawTensor.from_array(np.arange(3)), "a/b": RawTensor.from_array(np.eye(2))}
    )
    again = containers.read(containers.to_npz(container), "x.npz")
    assert again.tensors == container.tensors


def test_a_damaged_chunk_is_one_sentence():
    tag, data = cache_chunk.to_chunk(
        cache_chunk.CacheContents(
            "npz",
            (1.0, 0.0),
            {},
            (cache_chunk.CacheTensor("latents", "F32", (4, 1, 1), "payload"),),
        )
    )
    assert cache_chunk.from_chunks([(tag, data)]).tensors[0].key == "latents"
    with pytest.raises(Corrupt, match="twice"):
        cache_chunk.from_chunks([(tag, data)] * 2)
    random = np.random.default_rng(0)
    for end in range(0, len(data), 5):
        with pytest.raises(Corrupt):
            cache_chunk.from_chunks([(tag, data[:end])])
    for place in random.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[place] ^= 1 << random.integers(8)
        try:
            cache_chunk.from_chunks([(tag, bytes(damaged))])
        except Corrupt:
            continue


def test_an_empty_text_names_no_space():
    data = safetensors.torch.save({"latents": scaled(SDXL)}, {"model": "sdxl base", "note": ""})
    assert latent_files.read(data, "a.safetensors", 1).model.space is SDXL


def test_texts_that_are_not_about_a_model_name_no_space():
    facts = {"caption": "an SDXL diagram in a flux of light", "image_path": "sd3/a.png"}
    data = safetensors.torch.save({"latents": scaled(SD1)}, facts)
    assert latent_files.read(data, "a.safetensors", SD1.scale).model.space is SD1
    data = safetensors.torch.save({"latents": scaled(FLUX1)}, facts)
    assert latent_files.read(data, "a.safetensors", 1, FLUX1).model.space is FLUX1


def test_sd_scripts_latents_of_flux_are_scaled_whatever_the_name():
    data = npz(latents_6x8=scaled(FLUX1), original_size_6x8=[64, 48])
    np.testing.assert_array_equal(
        latent_files.read(data, "a.npz", space=FLUX1).latents, scaled(FLUX1)
    )


def test_numbers_beside_latents_of_comfy_come_back_as_texts(tmp_path):
    (tmp_path / "a.pt").write_bytes(pt({"latent_tensor": scaled(SD1), "width": 64}))
    convert("import", tmp_path / "a.pt", tmp_path / "a.lat")
    convert("export", tmp_path / "a.lat", tmp_path / "a.latent")
    assert containers.read((tmp_path / "a.latent").read_bytes(), "a").metadata["width"] == "64"


@pytest.mark.parametrize(("key", "other"), [("", "mask"), ("latents", "m" * 40_000)])
def test_what_could_not_be_exported_is_not_imported(key, other, tmp_path):
    tensors = {name: RawTensor.from_array(scaled(SD1).numpy()) for name in (key, other)}
    data = containers.to_safetensors(containers.Container(tensors))
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(LatentsError, match="cannot be kept"):
        convert("import", tmp_path / "a.safetensors", tmp_path / "a.lat", scale=1)
    assert not (tmp_path / "a.lat").exists()


@pytest.mark.parametrize("bomb", ["values", "tensors"])
def test_what_refers_to_itself_often_is_too_large(bomb):
    nested: list[object] = [0]
    for _ in range(8):
        nested = [nested] * 8
    shared = torch.zeros(2**22)
    content = {"a": nested} if bomb == "values" else {str(i): shared for i in range(20)}
    with pytest.raises(LatentsError, match="unpacks to more"):
        containers.read(pt(content), "a.pt")


RAW_OR_DESCRIBED = {  # files of which only the scale, or metadata, differ from what export writes
    "a.pt": lambda: pt({"latents": SD1.raw(scaled(SD1))}),
    "a_sd.npz": lambda: npz(
        latents_6x8=scaled(SD1), original_size_6x8=[64, 48], crop_ltrb_6x8=[0, 0, 64, 48]
    ),
    "a.safetensors": lambda: safetensors.torch.save(
        {"latents": SD1.raw(scaled(SD1))}, {"space": "sd1", "scale": "1.0"}
    ),
    "b.safetensors": lambda: safetensors.torch.save(
        {"latents": scaled(SD1)},
        {"scale": "0.18215", "width": "1000", "height": "700", "encoder": "my-vae"},
    ),
}


@pytest.mark.parametrize("name", RAW_OR_DESCRIBED)
def test_scale_and_metadata_come_back_as_they_were(name, tmp_path):
    data = RAW_OR_DESCRIBED[name]()
    scale = {"a.pt": 1.0, "a_sd.npz": SD1.scale}.get(name)
    _, back = through_lat(tmp_path, name, data, name.partition(".")[2], scale=scale)
    given, found = containers.read(data, name), containers.read(back, name)
    assert found.metadata == given.metadata
    assert found.tensors.keys() == given.tensors.keys()
    key = next(iter(given.tensors))
    assert found.tensors[key].floats.std() == pytest.approx(given.tensors[key].floats.std(), 0.05)

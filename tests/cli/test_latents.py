"""`dynenc export` and `dynenc import`: files, folders, shards, and what users see of bad files."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dynenc.cli.main import app
from dynenc.coding.lat_file import LatFile
from dynenc.interop.latent_formats import LATENT_FORMATS

GOLDEN = Path(__file__).parents[1] / "golden"
runner = CliRunner()


def run(*arguments, code=0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture
def lat(tmp_path):
    """A .lat file of 33x40 px."""
    path = tmp_path / "a.lat"
    path.write_bytes((GOLDEN / "v1_light_33x40.lat").read_bytes())
    return path


@pytest.fixture
def lats(tmp_path):
    """A folder of .lat files, one of them in a sub-folder."""
    (tmp_path / "lats" / "sub").mkdir(parents=True)
    for name, golden in (
        ("a", "v1_light_33x40"),
        ("b", "v1_nano_q0"),
        ("sub/c", "v1_base_photo_q100"),
    ):
        data = (GOLDEN / f"{golden}.lat").read_bytes()
        (tmp_path / "lats" / f"{name}.lat").write_bytes(data)
    return tmp_path / "lats"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("form", "suffix"), list(LATENT_FORMATS.items())[:4])
def test_one_file_there_and_back(lat, form, suffix, tmp_path):
    there = lat.with_suffix(suffix)
    assert run("export", lat, "--to", form).stdout == f"{there}\n"
    quality = ["-Q", 50] if form == "npz" else []  # it does not tell the step
    back = run("import", there, "-o", tmp_path / "back.lat", *quality)
    assert back.stdout.startswith(f"{tmp_path / 'back.lat'}  54 bytes")
    encoder = "imported" if form == "npz" else "light"
    fields = json.loads(run("info", tmp_path / "back.lat", "--json").stdout)
    assert (fields["width"], fields["height"], fields["encoder"]) == (33, 40, encoder)
    if encoder == "light":
        assert (tmp_path / "back.lat").read_bytes() == lat.read_bytes()


@pytest.mark.parametrize("name", ["v1_light_detail_whole", "v1_light_detail_part_avif"])
def test_latents_beneath_a_detail_layer_are_not_rounded_to_the_file_s_step(name, tmp_path):
    (tmp_path / "a.lat").write_bytes((GOLDEN / f"{name}.lat").read_bytes())
    run("export", tmp_path / "a.lat", "--to", "safetensors")
    exported = load_file(tmp_path / "a.safetensors")["latents"]
    run("import", tmp_path / "a.safetensors", "-o", tmp_path / "back.lat")
    latents = LatFile.parse((tmp_path / "back.lat").read_bytes()).latents
    assert np.abs(latents - exported.numpy()).mean() < 0.05


def test_a_step_that_the_latents_do_not_have_is_not_kept(lat, tmp_path):
    """As after a program has changed them, and kept the metadata."""
    run("export", lat, "--to", "safetensors")
    with safe_open(lat.with_suffix(".safetensors"), "pt") as file:
        latents, metadata = file.get_tensor("latents"), file.metadata()
    changed = latents + 0.1
    save_file({"latents": changed}, tmp_path / "changed.safetensors", metadata)
    run("import", tmp_path / "changed.safetensors", "-o", tmp_path / "back.lat")
    back = LatFile.parse((tmp_path / "back.lat").read_bytes())
    assert back.model.name == "imported"
    assert np.abs(back.latents - changed.numpy()).mean() < 0.05


def test_a_folder_there_and_back(lats, tmp_path):
    run("export", lats, "-r", "--to", "comfy", "-o", tmp_path / "there", "-j", 1)
    assert sorted(contents(tmp_path / "there")) == ["a.latent", "b.latent", "sub/c.latent"]
    run("import", tmp_path / "there", "-r", "-o", tmp_path / "back", "-j", 1)
    assert contents(tmp_path / "back") == contents(lats)


def test_workers_tell_what_is_odd(lats, tmp_path):
    for name in "abc":
        save_file({"latents": torch.randn(4, 5, 5) * 5}, tmp_path / f"{name}.safetensors")
    result = run("import", tmp_path, "-o", tmp_path / "out", "--scale", "0.18215", "-j", 2)
    odd = [line for line in result.stderr.splitlines() if "root mean square" in line]
    assert len(odd) == 3
    assert str(tmp_path / "a.safetensors") in "".join(odd)
    assert "3 done" in result.stderr


def test_a_shard(lats, tmp_path):
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(lats / "a.lat", "a.lat")
    run("export", shard, "--to", "npz", "-o", tmp_path / "there")
    with tarfile.open(tmp_path / "there" / "0.tar") as tar:
        assert tar.getnames() == ["a.npz"]
    run("import", tmp_path / "there" / "0.tar", "-o", tmp_path / "back", "-Q", 50)
    with tarfile.open(tmp_path / "back" / "0.tar") as tar:
        assert tar.getnames() == ["a.lat"]


def test_quality_of_latents_that_were_never_rounded(tmp_path):
    torch.manual_seed(0)
    save_file({"latent_tensor": torch.randn(1, 4, 8, 8)}, tmp_path / "a.latent")
    run("import", tmp_path / "a.latent")
    assert json.loads(run("info", tmp_path / "a.lat", "--json").stdout)["step"] == 150 / 1024
    run("import", tmp_path / "a.latent", "-Q", 50, "--force")
    assert json.loads(run("info", tmp_path / "a.lat", "--json").stdout)["step"] == 344 / 1024


def test_update_looks_at_the_quality(lat, tmp_path):
    run("export", lat, "--to", "pt")
    for options, status in ((["-Q", 20], "1 done"), (["-Q", 20], "1 skipped"), ([], "1 skipped")):
        result = run("import", tmp_path, "-o", tmp_path / "out", "-u", *options)
        assert status in result.stderr
    assert "1 skipped" in run("export", tmp_path, "--to", "pt", "-u").stderr


def test_update_looks_at_the_form(tmp_path):
    cache, out = tmp_path / "a.safetensors", tmp_path / "out"
    save_file({"latent": torch.randn(4, 8, 8)}, cache, {"latent_space_version": "sd1"})
    run("import", cache)
    forms = ("safetensors", "ai-toolkit", "ai-toolkit", "safetensors")
    for form, status in zip(forms, ("1 done", "1 done", "1 skipped", "1 done"), strict=True):
        told = run("export", tmp_path, "--to", form, "-o", out, "-u").stderr
        assert status in told
    told = run("export", tmp_path, "--to", "ai-toolkit", "-o", out).stderr
    assert "made with other settings" in told
    save_file({"weight": torch.zeros(3)}, out / "a.safetensors")
    told = run("export", tmp_path, "--to", "ai-toolkit", "-o", out, "-u", code=1).stderr
    assert "has no record of being made by this command" in told


def test_update_looks_at_the_scale_and_at_the_default_quality(tmp_path):
    (folder := tmp_path / "in").mkdir()
    save_file({"latents": torch.randn(4, 8, 8)}, folder / "a.safetensors")
    extra = {
        "crop_xy": torch.zeros(2)
    }  # with which the scale is recorded, as one that is not usual
    save_file({"latents": torch.randn(4, 8, 8), **extra}, folder / "b.safetensors")
    for options, n_done in (
        ("--scale 1 -Q 30", 2),
        ("--scale 1", 2),
        ("--scale 1", 0),
        ("--scale 0.18215", 2),
        ("--scale 0.18215", 1),
        ("--scale 0.18215 -Q 30", 2),
    ):
        told = run("import", folder, "-o", tmp_path / "out", "-u", *options.split()).stderr
        assert f"{n_done} done" in told, options


def test_existing_outputs_are_kept(lat):
    target = lat.with_suffix(".npz")
    target.write_bytes(b"keep")
    assert "--force" in run("export", lat, "--to", "npz", code=6).stderr
    assert target.read_bytes() == b"keep"
    run("export", lat, "--to", "npz", "--force")
    assert np.load(target)["latents"].shape == (4, 5, 5)


def test_streams(lat):
    result = runner.invoke(app, ["export", "-", "--to", "npz", "-o", "-"], input=lat.read_bytes())
    assert result.exit_code == 0
    again = runner.invoke(app, ["import", "-", "-o", "-", "-Q", "50"], input=result.stdout_bytes)
    assert again.stdout_bytes.startswith(b"\x89LAT")


def test_one_bad_file_stops_nothing(lat, tmp_path):
    run("export", lat, "--to", "pt")
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 no more of it")
    result = run("import", tmp_path, "-o", tmp_path / "out", code=1)
    assert "b.npz is cut short or damaged" in result.stderr
    assert sorted(contents(tmp_path / "out")) == ["a.lat"]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", 10, "is empty"),
        (None, 10, "cannot be read: No such file"),
    ],
)
def test_one_file_that_is_no_latents(tmp_path, content, code, words):
    if content is not None:
        (tmp_path / "a.pt").write_bytes(content)
    result = run("import", tmp_path / "a.pt", code=code)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "a.lat").exists()


def test_wrong_usage(lat, tmp_path):
    assert "'bmp' is not one of" in run("export", lat, "--to", "bmp", code=2).stderr
    run("export", lat, code=2)
    run("export", lat, "--to", "pt")
    assert (
        "--scale 1 or" in run("import", lat.with_suffix(".pt"), "-f", "--scale", 2, code=2).stderr
    )
    run("encode", lat, "-e", "imported", code=2)
    assert "are latents to import" in run("import", tmp_path, "--exclude", "*.pt", code=10).stderr

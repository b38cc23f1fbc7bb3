import json
import shutil
import tarfile
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_vgg import vgg_weights
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from dynenc import registry
from dynenc.cli.main import app
from dynenc.coding.encode_latents import encode_latents
from dynenc.coding.entropy import EntropyCoder
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import quality_to_step
from dynenc.errors import ImageError, OutputError, OutputExists, UsageError, WeightsError
from dynenc.evaluation.lpips import LPIPS
from dynenc.imaging.sources import iter_images
from dynenc.networks.loading import load_encoder, load_path, model_name
from dynenc.training import adversary, run
from dynenc.training.config import PRESETS, TrainConfig, TrainPaths, configure
from dynenc.training.crops import Crops, build_cache, open_crops
from dynenc.training.file_latents import AsFiles, FileLatents
from dynenc.training.losses import ReconstructionLoss
from dynenc.training.prior import Prior
from dynenc.training.run import train, train_with_log
from dynenc.training.synthetic import Synthetic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, a file that is none, a tiny teacher and a tiny LPIPS."""
    from diffusers import AutoencoderTiny
    from diffusers.utils import logging

    logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("train")
    (images := folder / "images").mkdir()
    for i, size in enumerate([(80, 64), (65, 71), (40, 90), (36, 200)]):
        Image.effect_noise(size, 60).convert("RGB").save(images / f"{i}.png")
    (images / "notes.txt").write_text("not an image")
    torch.manual_seed(0)
    channels = (8, 8, 8, 8)
    AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder / "teacher")
    widths = [3, 4, 6, 5, 4, 4]
    kernels = [11, 5, 3, 3, 3]
    state = {}
    for i, kernel in enumerate(kernels):
        shape = (widths[i + 1], widths[i], kernel, kernel)
        state[f"AlexNet_0.Conv_{i}.kernel"] = torch.randn(shape) * 0.2
        state[f"AlexNet_0.Conv_{i}.bias"] = torch.zeros(widths[i + 1])
        state[f"NetLinLayer_{i}.Conv_0.kernel"] = torch.rand(1, widths[i + 1], 1, 1)
    save_file(state, folder / "lpips.safetensors")
    save_file(vgg_weights(), folder / "vgg.safetensors")
    return folder


def paths(folder, run, **changes):
    values = {
        "data": (folder / "images",),
        "teacher": folder / "teacher",
        "lpips": folder / "lpips.safetensors",
        "vgg": folder / "vgg.safetensors",
        "run": run,
        "export": run / "out.safetensors",
    }
    return TrainPaths(**values | changes)


WEIGHTS = (
    "mse",
    "blocks",
    "pattern",
    "lpips",
    "lpips_vgg",
    "dists",
    "flats",
)  # of the loss of a decoder
SMALL = {"steps": 6, "distill_steps": 2, "batch": 2, "crop": 40, "warmup_steps": 2}
GAN = {"distill_steps": 0, "gan": 0.5, "gan_warmup": 1}


def nothing(_step, _progress, _terms):
    pass


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("nano", {"rate": 0.1}),
        ("autoencoder", {"distill_steps": 0}),
        ("embedded", GAN),
    ],
)
def test_resuming_gives_the_same_weights(folder, tmp_path, preset, changes):
    config = replace(PRESETS[preset], **SMALL | changes)
    straight = paths(folder, tmp_path / "straight")
    train(config, straight, CPU, nothing)

    stopped = paths(folder, tmp_path / "stopped")

    def stop(step, _progress, _terms):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stopped, CPU, stop)
    assert not stopped.export.exists()
    train(config, stopped, CPU, nothing)
    one, two = load_file(straight.export), load_file(stopped.export)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("preset", "changes", "owner", "name"),
    [
        # the weights have changed, their average and the count of steps have not
        ("nano", {}, AveragedModel, "update_parameters"),
        # the discriminator has updated its spectral norms
        ("embedded", GAN, adversary, "discriminator_loss"),
    ],
)
def test_a_step_that_is_interrupted_halfway_is_not_saved(
    folder, tmp_path, monkeypatch, preset, changes, owner, name
):
    config = replace(PRESETS[preset], **SMALL | changes)
    straight, stopped = (paths(folder, tmp_path / name) for name in ("straight", "stopped"))
    train(config, straight, CPU, nothing, save_every=1)
    call, counts = getattr(owner, name), iter(range(99))

    def stop(*arguments):
        if next(counts) == 3:
            raise KeyboardInterrupt
        return call(*arguments)

    monkeypatch.setattr(owner, name, stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, stopped, CPU, nothing, save_every=1)
    monkeypatch.undo()
    train(config, stopped, CPU, nothing)
    one, two = (
        torch.load(where.run / f"{preset}.checkpoint", weights_only=True)
        for where in (straight, stopped)
    )
    for part in ("model", "average", "discriminator"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one.get(part, ()))


def test_a_loss_of_the_discriminator_that_is_not_finite_skips_one_step(
    folder, tmp_path, monkeypatch
):
    loss, counts, seen = adversary.discriminator_loss, iter(range(99)), []
    monkeypatch.setattr(
        adversary,
        "discriminator_loss",
        lambda *scores: loss(*scores) * (torch.nan if next(counts) == 2 else 1),
    )
    config = replace(PRESETS["embedded"], **SMALL | GAN)
    where = paths(folder, tmp_path)
    train(config, where, CPU, lambda _step, _progress, terms: seen.append(terms))
    assert [terms["discriminator_skipped"] for terms in seen] == [0, 0, 1, 0, 0, 0]
    assert np.isfinite([terms["discriminator"] for terms in seen]).sum() == 5
    state = torch.load(where.run / "embedded.checkpoint", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["discriminator"].values())


def test_training_leaves_the_process_as_it_was(folder, tmp_path):
    before = torch.get_rng_state(), torch.backends.cudnn.benchmark
    threads = set(threading.enumerate())
    train(replace(PRESETS["nano"], **SMALL), paths(folder, tmp_path), CPU, nothing)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.backends.cudnn.benchmark == before[1]
    assert set(threading.enumerate()) <= threads


def test_damaged_checkpoints_and_test_images_of_no_use(folder, tmp_path):
    config = replace(PRESETS["nano"], **SMALL)
    (small := tmp_path / "small").mkdir()
    Image.new("RGB", (16, 16)).save(small / "a.png")
    assert set(train(config, paths(folder, tmp_path, test=small), CPU, nothing)) == {
        "images",
        "psnr_db",
    }
    (tmp_path / "nano.checkpoint").write_bytes(b"PK")
    with pytest.raises(OutputExists, match="is damaged"):
        train(config, paths(folder, tmp_path), CPU, nothing)


def test_a_run_is_continued_with_the_same_inputs_alone_wherever_they_are(folder, tmp_path):
    config = replace(PRESETS["nano"], **SMALL)
    where = paths(folder, tmp_path / "run", embedded=shipped("embedded"))
    train(config, where, CPU, nothing)
    with pytest.raises(OutputExists, match=r"with other settings$"):
        train(replace(config, seed=1), where, CPU, nothing)
    shutil.copytree(folder, moved := tmp_path / "moved")
    same = {"embedded": Path(shutil.copy(where.embedded, moved)), "test": moved / "images"}
    train(config, paths(moved, where.run, **same), CPU, nothing)
    decoder = load_file(where.embedded)
    save_file(
        decoder, moved / "embedded.safetensors", {"model": "embedded", "steps": "of another run"}
    )
    teacher = load_file(moved / "teacher" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: weight + 0.01 for name, weight in teacher.items()},
        moved / "teacher" / "diffusion_pytorch_model.safetensors",
    )
    (moved / "images" / "0.png").unlink()
    others = "images, teacher, starting weights, embedded decoder"
    with pytest.raises(OutputExists, match=f"with other {others}$"):
        train(config, paths(moved, where.run, **same, start=shipped("nano")), CPU, nothing)


def shipped(name):
    return registry.folder() / registry.MODELS[name].file


def test_a_run_that_overwrites_its_start_can_be_run_again(folder, tmp_path):
    small = SMALL | {"distill_steps": 0, "learning_rate": 0.05}
    config = replace(PRESETS["nano"], **small, joint=1, share_of_start=0.5)
    where = paths(
        folder,
        tmp_path,
        start=tmp_path / "out.safetensors",
        embedded=tmp_path / "embedded.safetensors",
    )
    shutil.copy(shipped("nano"), where.start)
    shutil.copy(shipped("embedded"), where.embedded)
    for name in ("first", "again"):
        train(config, where, CPU, nothing)
        (tmp_path / name).mkdir()
        for file in (where.start, where.embedded):
            shutil.copy(file, tmp_path / name)
    for file in ("out.safetensors", "embedded.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("first", "again"))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_exported_may_lie_between_the_start_and_the_end(folder, tmp_path):
    begin = paths(folder, tmp_path / "begin")
    config = replace(PRESETS["nano"], **SMALL)
    train(config, begin, CPU, nothing)
    found = {}
    for share in (0.0, 0.5, 1.0):
        where = paths(folder, tmp_path / str(share), start=begin.export)
        train(replace(config, seed=1, share_of_start=share), where, CPU, nothing)
        found[share] = load_file(where.export)
    start = load_file(begin.export)
    name = "stem.weight"
    assert not torch.equal(found[0.0][name], start[name])
    assert torch.equal(found[1.0][name], start[name])
    mean = (found[0.0][name].float() + start[name].float()) / 2
    assert torch.allclose(found[0.5][name].float(), mean, rtol=2e-3, atol=1e-6)


def test_the_autoencoder_learns_whole_and_pays_for_its_bits(folder, tmp_path):
    where = paths(folder, tmp_path, test=folder / "images")
    config = replace(PRESETS["autoencoder"], **SMALL | {"distill_steps": 0})
    seen = []
    figures = train(config, where, CPU, lambda _step, _progress, terms: seen.append(terms))
    assert all(terms.keys() >= {"mse", "blocks", "lpips", "rate"} for terms in seen)
    assert all(terms["rate"] > 0 for terms in seen)
    assert figures["images"] == 4
    network = load_path(where.export)
    image = torch.rand(1, 3, 32, 40) * 2 - 1
    with torch.inference_mode():
        assert network(image).shape == image.shape
        assert torch.equal(network(image), network.decoder(network.encoder(image)))
    assert 2 * sum(p.numel() for p in network.parameters()) < 1_000_000


def test_bits_of_the_prior_are_those_of_its_distribution():
    """Over all symbols the probabilities sum to 1; a position never sees itself or what follows."""
    torch.manual_seed(0)
    prior = Prior(channels=4)
    latents, step = torch.randn(1, 4, 6, 6), torch.full((1, 1, 1, 1), 0.5)
    symbols = torch.arange(-400, 401).view(-1, 1, 1, 1) * step
    many = latents.repeat(len(symbols), 1, 1, 1)
    many[:, :, 3:4, 3:4] = symbols
    with torch.no_grad():
        bits = prior(many, step.expand(len(symbols), 1, 1, 1))
    assert torch.allclose((2 ** -bits[:, :, 3, 3]).sum(0), torch.ones(4), atol=2e-3)
    assert torch.equal(bits[0, :, :3], bits[-1, :, :3])
    assert torch.equal(bits[0, :, 3, :3], bits[-1, :, 3, :3])


def test_embedded_decoder_learns_from_teacher_and_encoders(folder, tmp_path):
    encoder = paths(folder, tmp_path / "encoder")
    train(replace(PRESETS["nano"], **SMALL), encoder, CPU, nothing)
    where = paths(folder, tmp_path / "decoder", encoders=(encoder.export,), test=folder / "images")
    seen = []
    config = replace(PRESETS["embedded"], **SMALL | {"distill_steps": 0})
    figures = train(config, where, CPU, lambda _step, _progress, terms: seen.append(terms))
    assert {name for terms in seen for name in terms} == set(WEIGHTS)
    assert figures["images"] == 4
    with safe_open(where.export, "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("step_bias.slope").any()
    assert metadata["model"] == "embedded"
    assert figures.keys() == {"images", "psnr_db", "lpips", "lpips-vgg", "dists"}
    assert json.loads(metadata["figures"]) == figures
    assert json.loads(metadata["config"])["steps"] == 6
    assert metadata["data"] == "images"

    through = paths(folder, tmp_path / "again", start=encoder.export, embedded=where.export)
    config = replace(PRESETS["nano"], **SMALL | {"distill_steps": 0})
    train(config, through, CPU, nothing)
    assert through.export.exists()


@pytest.mark.parametrize("name", ["nano", "base"])  # with and without a trellis
def test_a_decoder_is_trained_on_what_files_hold(name):
    config = configure("embedded", ["lowest_quality=30", "highest_quality=30"])
    encoder = load_encoder(name)
    model = registry.encoder_model(name)
    images = torch.rand(2, 3, 48, 64) * 2 - 1
    latents_of = FileLatents([(encoder, model)], AsFiles(config), nullcontext)
    given = latents_of(images, np.random.default_rng(0))
    step_q = quality_to_step(30, has_trellis=model.has_trellis)
    for image, latents, step in zip(images, *given, strict=True):
        with torch.no_grad():
            encoded = encoder(image[None])[0].numpy()
        file = encode_latents(encoded, (64, 48), step_q, model)
        assert np.array_equal(latents, LatFile.parse(file.to_bytes()).latents)
        assert step == step_q / 1024
    config = configure("embedded", ["lowest_quality=0", "highest_quality=100"])
    wide = FileLatents([(encoder, model)], AsFiles(config), nullcontext)
    assert not torch.equal(wide(images, np.random.default_rng(0)).latents, given.latents)


def test_gradients_pass_straight_through_quantisation():
    latents = (2 * torch.randn(2, 4, 6, 8)).requires_grad_()
    model, random = registry.encoder_model("base"), np.random.default_rng(0)
    held, step = AsFiles(configure("base", []))(latents, model, random)
    assert 0.01 < (held - latents).abs().mean() < step.max()
    weight = torch.randn_like(held)
    (held * weight).sum().backward()
    assert torch.equal(latents.grad, weight)


def test_encoder_and_decoder_learn_together(folder, tmp_path):
    decoder = paths(folder, tmp_path / "decoder")
    small = SMALL | {"distill_steps": 0}
    train(replace(PRESETS["embedded"], **small), decoder, CPU, nothing)
    other = paths(folder, tmp_path / "other")
    train(replace(PRESETS["light"], **small), other, CPU, nothing)
    where = paths(
        folder,
        tmp_path / "both",
        embedded=decoder.export,
        encoders=(other.export,),
        test=folder / "images",
    )
    config = replace(PRESETS["nano"], **small, joint=1, embedded_share=1.0, rate=0.02)
    seen = []
    train(config, where, CPU, lambda _step, _progress, terms: seen.append(terms))
    assert all(terms["rate"] > 0 for terms in seen)
    before, after = load_file(decoder.export), load_file(tmp_path / "both" / "embedded.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["layers.0.weight"], after["layers.0.weight"])
    before, after = load_file(other.export), load_file(tmp_path / "both" / "light.safetensors")
    assert not torch.equal(before["head.weight"], after["head.weight"])
    for name, file in {
        "nano": where.export,
        "light": tmp_path / "both" / "light.safetensors",
    }.items():
        assert model_name(file) == name
    twice = replace(where, run=tmp_path / "twice", encoders=(other.export, other.export))
    with pytest.raises(UsageError, match="each network can be trained once"):
        train(config, twice, CPU, nothing)
    with pytest.raises(UsageError, match="embedded decoder"):
        train(config, paths(folder, tmp_path / "alone"), CPU, nothing)


def test_training_lowers_the_distance_to_the_teacher(folder, tmp_path):
    settings = SMALL | {"steps": 60, "distill_steps": 60, "batch": 4}
    seen = []
    train(
        replace(PRESETS["nano"], **settings),
        paths(folder, tmp_path),
        CPU,
        lambda _step, _progress, terms: seen.append(terms["tie"]),
    )
    assert np.mean(seen[-10:]) < np.mean(seen[:10])


def test_command(folder, tmp_path):
    command = ["train", "nano", "--data", folder / "images", "--teacher", folder / "teacher"]
    command += ["--lpips", folder / "lpips.safetensors", "--vgg", folder / "vgg.safetensors"]
    command += ["--run", tmp_path / "run"]
    command += ["-o", tmp_path / "nano.safetensors", "--test", folder / "images"]
    for name, value in SMALL.items():
        command += ["--set", f"{name}={value}"]
    result = CliRunner().invoke(app, [str(c) for c in command])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 4
    assert (tmp_path / "nano.safetensors").exists()


def test_coder_is_fitted_to_teacher_and_encoders(folder, tmp_path):
    encoder = paths(folder, tmp_path / "encoder")
    train(replace(PRESETS["nano"], **SMALL), encoder, CPU, nothing)
    config = configure("fast", ["samples=300", "iterations=3", "batch=64", "copies=1"])
    changes = {
        "encoders": (encoder.export,),
        "test": folder / "images",
        "lpips": None,
        "vgg": None,
    }
    where = paths(folder, tmp_path, **changes, data=(large_images(tmp_path / "large"),))
    figures = train_with_log(config, where, CPU)
    assert figures["images"] == 4
    assert 0 < figures["bpp"] < 10
    model = EntropyCoder.load(where.export.read_bytes(), has_trellis=False)
    symbols = np.ones((4, 3, 5), np.int32)
    assert np.array_equal(model.decode(model.encode(symbols, 307), 3, 5, 307), symbols)


def test_what_a_coder_cannot_be_measured_on_or_written_to_is_found_before_the_fit(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "fit", lambda *_: pytest.fail("fitted"))
    changes = {"lpips": None, "vgg": None, "data": (large_images(tmp_path / "large"),)}
    where = paths(folder, tmp_path, **changes)
    with pytest.raises(ImageError, match="neither a folder nor a tar"):
        train_with_log(configure("fast", []), replace(where, test=tmp_path / "none"), CPU)
    (tmp_path / "file").touch()
    where = replace(where, export=tmp_path / "file" / "out.safetensors")
    with pytest.raises(OutputError, match="cannot be created"):
        train_with_log(configure("fast", []), where, CPU)


def large_images(folder):
    """Images of the size that crops for training must have."""
    folder.mkdir()
    for i in range(2):
        Image.effect_noise((136, 128), 60).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_networks_need_the_weights_of_the_distances(folder, tmp_path):
    no_judges = replace(PRESETS["nano"], **SMALL, lpips=0, lpips_vgg=0, dists=0)
    without = paths(folder, tmp_path, lpips=None, vgg=None, test=folder / "images")
    assert ReconstructionLoss(no_judges, without).alex is None
    assert train(no_judges, without, CPU, nothing).keys() == {"images", "psnr_db"}
    for name in ("lpips", "vgg"):
        with pytest.raises(UsageError, match="weights") as error:
            train(PRESETS["nano"], paths(folder, tmp_path, **{name: None}), CPU, nothing)
        assert error.value.hint == f"give --{name}"


def test_settings():
    assert configure("nano", ["steps=5", "lpips=0.5"]) == replace(
        PRESETS["nano"], steps=5, lpips=0.5
    )
    wrong = ["steps", "steps=x", "speed=1", "preset=base"]
    wrong += ["steps=0", "lpips=nan", "tie=-1", "synthetic=1.5", "crop=41", "joint=2"]  # ranges
    for setting in wrong:
        with pytest.raises(UsageError, match=setting):
            configure("nano", [setting])
    with pytest.raises(UsageError, match="has_trellis"):
        configure("fast", ["has_trellis=1"])
    wrong = ["radius=0", "radius=128", "neighbours=0", "neighbours=129", "hidden=129", "middle=129"]
    wrong += ["smallest_step=0.0009", "largest_step=64", "prior=0"]
    for setting in wrong:
        with pytest.raises(UsageError, match=f"{setting}.* is out of range"):
            configure("fast", [setting])
    with pytest.raises(UsageError, match="smallest_step must not be above largest_step"):
        configure("fast", ["smallest_step=2"])
    with pytest.raises(UsageError, match="lowest_quality must not be above highest_quality"):
        configure("fine", ["lowest_quality=81"])


@pytest.mark.parametrize(
    ("preset", "setting"),
    [
        *(("light", "gan=0.1"), ("autoencoder", "gan=0.1"), ("base", "gan_warmup=5")),
        *(("embedded", "joint=1"), ("autoencoder", "joint=1"), ("embedded", "rate=0.1")),
        *(("embedded", "tie=0.1"), ("autoencoder", "distill_steps=5")),
        *(("fine", "largest_step=0.4"), ("autoencoder", "lowest_quality=20")),
    ],
)
def test_settings_without_effect_are_refused(folder, tmp_path, preset, setting):
    with pytest.raises(UsageError, match=f"{setting} has no effect on the training of {preset}"):
        configure(preset, [setting])
    name, value = setting.split("=")
    config = replace(PRESETS[preset], **{name: float(value)})
    with pytest.raises(UsageError, match=name):
        train(config, paths(folder, tmp_path), CPU, nothing)
    assert configure(preset, [f"{name}=0"])


@pytest.mark.parametrize(
    ("preset", "option"),
    [
        *(("embedded", "embedded"), ("full", "embedded"), ("light", "encoders"), ("full", "start")),
        *(("full", "lpips"), ("full", "vgg"), ("full", "fonts")),
    ],
)
def test_paths_without_effect_are_refused(folder, tmp_path, preset, option):
    given = tmp_path / "some.safetensors"
    none = dict.fromkeys(("lpips", "vgg"))
    where = paths(folder, tmp_path, **none | {option: (given,) if option == "encoders" else given})
    with pytest.raises(UsageError) as error:
        train_with_log(configure(preset, []), where, CPU)
    assert error.value.hint == f"omit --{'encoder' if option == 'encoders' else option}"


@pytest.mark.parametrize(
    ("preset", "setting", "option", "message"),
    [
        ("embedded", "gan_warmup=5", None, "gan_warmup=5 has no effect while gan is 0"),
        ("nano", "budget_s=9", None, "steps=6 has no effect"),
        ("nano", "lowest_quality=9", None, "lowest_quality has no effect without an embedded"),
        ("nano", "synthetic=0", "fonts", "fonts is not used while synthetic is 0"),
        ("nano", "embedded_share=0", "embedded", "embedded is not used while embedded_share is 0"),
    ],
)
def test_what_other_settings_leave_without_effect_is_refused(
    folder, tmp_path, preset, setting, option, message
):
    name, value = setting.split("=")
    config = replace(PRESETS[preset], **SMALL | {"distill_steps": 0, name: float(value)})
    where = paths(folder, tmp_path, **({option: tmp_path} if option else {}))
    with pytest.raises(UsageError, match=message):
        train(config, where, CPU, nothing)


def test_a_device_is_refused_for_a_coder(folder, tmp_path):
    command = ["train", "fast", "--data", folder / "images", "--teacher", folder / "teacher"]
    command += ["--run", tmp_path, "-o", tmp_path / "out.safetensors", "--device", "cuda"]
    result = CliRunner().invoke(app, [str(c) for c in command])
    assert result.exit_code == 2
    assert "fast is fitted on the CPU" in result.stderr


def test_every_preset_is_a_model_and_every_field_a_number():
    for name, config in PRESETS.items():
        assert isinstance(config, TrainConfig)
        assert config.preset == name


def test_crops_are_parts_of_their_images_mirrored_or_not(folder, tmp_path):
    build_cache(folder / "images", tmp_path / "cache")
    crops = Crops([tmp_path / "cache"], 40)
    assert len(crops) == 3
    pixels = crops.sample(20, np.random.default_rng(0))
    assert pixels.shape == (20, 3, 40, 40)
    wholes = [whole.tobytes() for whole in crops.whole()]
    rows = [crop[:, 0].T.numpy() for crop in pixels]  # of the top row, [40, 3]
    straight = [any(row.tobytes() in whole for whole in wholes) for row in rows]
    mirrored = [any(row[::-1].tobytes() in whole for whole in wholes) for row in rows]
    assert all(one or two for one, two in zip(straight, mirrored, strict=True))
    assert any(straight)
    assert any(mirrored)


def test_sources_of_one_name_are_two(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        large_images(tmp_path / name / "x")
    crops = open_crops([tmp_path / "a" / "x", tmp_path / "b" / "x"], tmp_path / "run", 128)
    assert len(crops) == 4


def test_images_that_are_added_or_changed_are_seen(tmp_path):
    source = large_images(tmp_path / "x")
    before = open_crops([source], tmp_path / "run", 128)
    (source / "notes.txt").write_text("no image")
    assert open_crops([source], tmp_path / "run", 128).digests == before.digests
    assert len([*(tmp_path / "run" / "cache").iterdir()]) == 1
    Image.new("RGB", (128, 150)).save(source / "2.png")
    more = open_crops([source], tmp_path / "run", 128)
    assert len(more) == 3
    Image.new("RGB", (128, 150), "red").save(source / "2.png")
    changed = open_crops([source], tmp_path / "run", 128)
    assert changed.whole()[2].max() == 255
    assert len({*before.digests, *more.digests, *changed.digests}) == 3


def test_drawn_crops_depend_on_the_random_numbers_alone():
    one, two = (Synthetic(64).sample(30, np.random.default_rng(5)) for _ in range(2))
    assert one.shape == (30, 3, 64, 64)
    assert torch.equal(one, two)
    deviations = one.float().flatten(1).std(1)
    assert deviations.min() == 0  # a flat
    assert deviations.max() > 60  # black and white


def test_a_budget_of_time_ends_the_run(folder, tmp_path):
    config = replace(PRESETS["nano"], **SMALL | {"steps": PRESETS["nano"].steps}, budget_s=1.5)
    seen = []
    train(config, paths(folder, tmp_path), CPU, lambda step, progress, _: seen.append(progress))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_tar_shards_hold_the_same_images(folder, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "images", "x")
    from_tar = [(n.split("/")[-1], p.tobytes()) for n, p in iter_images(tmp_path / "shard.tar")]
    assert from_tar == [(n, p.tobytes()) for n, p in iter_images(folder / "images")]


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match="neither a folder nor a tar"):
        list(iter_images(tmp_path / "none.tar"))


def test_lpips_of_equal_images_is_zero(folder):
    distance = LPIPS(folder / "lpips.safetensors")
    one, two = torch.rand(2, 2, 3, 64, 64)
    assert torch.equal(distance(one, one), torch.zeros(2))
    assert (distance(one, two) > 0).all()


def test_lpips_needs_its_weights(folder, tmp_path):
    with pytest.raises(WeightsError, match="LPIPS"):
        LPIPS(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="LPIPS"):
        LPIPS(folder / "teacher" / "diffusion_pytorch_model.safetensors")

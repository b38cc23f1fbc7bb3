"""Running a training: resuming, checkpoints, log."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save
from torch import nn

from dynenc import registry
from dynenc.coding import bitstream
from dynenc.coding.entropy import EntropyCoder
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.imaging.sources import iter_images
from dynenc.imaging.tensors import pad, to_tensor
from dynenc.io.writing import make_folder, writing
from dynenc.latent_space import ceil_div
from dynenc.networks import loading
from dynenc.networks.decoders import load_autoencoder
from dynenc.networks.encoder import to_floats
from dynenc.training.config import PRESETS, TrainConfig, TrainPaths, check, check_paths
from dynenc.training.crops import open_crops
from dynenc.training.fit_coder import fit, n_parts
from dynenc.training.provenance import origin
from dynenc.training.samples import FitConfig
from dynenc.training.trainer import TEST_STEP, Trainer

LOG_EVERY = 50  # steps


def train(
    config: TrainConfig,
    paths: TrainPaths,
    device: torch.device,
    report: Callable[[int, float, dict[str, float]], None],
    save_every: int = 200,
) -> dict[str, float]:
    """Run or resume training to its end, export the result and return its figures.

    `report` is called with every step, the progress of the run from 0 to 1, and the terms of the
    loss. A checkpoint is written every `save_every` steps, at the end, and when interrupted.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    make_folder(str(paths.export.parent))
    with _own_state(device), ThreadPoolExecutor(1) as prefetcher:
        trainer = Trainer(config, paths, device, prefetcher)
        trainer.resume()
        try:
            while trainer.progress < 1:
                terms = trainer.train_step()
                report(trainer.step, trainer.progress, terms)
                if trainer.step % save_every == 0:
                    trainer.save()
        finally:
            if not trainer.is_updating:  # else the checkpoint before stays
                trainer.save()
        return trainer.export()


@contextmanager
def _own_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random numbers and flags afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        cudnn.benchmark = True  # all batches have the same few shapes
        try:
            yield
        finally:
            cudnn.benchmark = before


def train_coder(
    config: FitConfig, paths: TrainPaths, report: Callable[[int], object]
) -> dict[str, float]:
    """Fit the entropy coder to latents of the teacher and of the encoders in turn, and export it.

    Returns: `images` (their number) and the mean `bpp` of the payloads of the test images, with
    latents of the last encoder (without one, of the teacher) at TEST_STEP; empty without images.
    """
    check(config)
    check_paths(config, paths)
    space = registry.MODELS[config.preset].space
    teacher, _ = load_autoencoder(paths.teacher, space)
    encoders = [teacher, *(loading.load_path(path, space) for path in paths.encoders)]
    crops = open_crops(paths.data, paths.run, PRESETS["embedded"].crop)
    # a fit may take hours and has no checkpoints: what can fail comes before it
    tests = _test_images(paths.test, encoders[-1])
    make_folder(str(paths.export.parent))

    @torch.inference_mode()
    def latents() -> Iterator[npt.NDArray[np.float32]]:
        whole = crops.whole()
        every = ceil_div(len(whole), config.images) if config.images else 1
        for number, pixels in enumerate(whole[::every]):
            image = to_floats(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
            yield encoders[number % len(encoders)](pad(image))[0].numpy()

    with torch.random.fork_rng([]):
        tensors = fit(latents(), config, report)
    figures = _figures(tests, EntropyCoder.of(tensors, has_trellis=config.has_trellis))
    metadata = {"model": config.preset, **origin(config, paths, len(crops), figures)}
    with writing(str(paths.export), overwrite=True) as file:
        file.write(save(tensors, metadata))
    return figures


@dataclass(frozen=True, slots=True, eq=False)
class _TestImage:
    latents: npt.NDArray[np.float32]  # [C, h, w]
    size: tuple[int, int]  # px


@torch.inference_mode()
def _test_images(source: Path | None, encoder: nn.Module) -> list[_TestImage]:
    """Encode the test images, if there are any."""
    return [
        _TestImage(encoder(pad(to_tensor(image)))[0].numpy(), image.size)
        for _, image in (iter_images(source) if source else ())
    ]


def _figures(tests: list[_TestImage], coder: EntropyCoder) -> dict[str, float]:
    """The figures of `train_coder`."""
    step_q = round(TEST_STEP * STEP_UNIT)
    rates = []
    for test in tests:
        payload = coder.encode(to_symbols(test.latents, step_q, coder), step_q)
        rates.append(bitstream.bpp(len(payload), *test.size))
    return {"images": len(rates), "bpp": sum(rates) / len(rates)} if rates else {}


def train_with_log(
    config: TrainConfig | FitConfig,
    paths: TrainPaths,
    device: torch.device,
    on_progress: Callable[[float, float], object] = lambda done, total: None,
) -> dict[str, float]:
    """Train a network, with a line every 50 steps in the run's log, or fit an entropy coder.

    Args:
        on_progress: called with what is done, and the total.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    if isinstance(config, FitConfig):
        total = n_parts(config)
        return train_coder(config, paths, lambda done: on_progress(done, total))
    sums: dict[str, list[float]] = {}
    with (paths.run / f"{config.preset}.log").open("a") as log:

        def report(step: int, progress: float, terms: dict[str, float]) -> None:
            for name, value in terms.items():
                sums.setdefault(name, []).append(value)
            if step % LOG_EVERY == 0:
                means = {name: sum(values) / len(values) for name, values in sums.items()}
                log.write(json.dumps({"step": step, **means}) + "\n")
                log.flush()
                sums.clear()
            on_progress(progress, 1)

        return train(config, paths, device, report)

"""The training loop that made the shipped weights.

An encoder is first fitted to the teacher's latents (closed-form linear start, then regression), and
then trained end to end: its latents, with the noise of a random quantiser step, go through frozen
decoders of SD latents, and the picture that comes out is compared with the picture that went in.
With `rate`, the bits of its latents are in the loss. The autoencoder is trained whole, in the same
way; so are, if `joint`, an encoder and the embedded decoder.
The embedded decoder is trained on latents of the teacher and of the encoders, with the same noise;
the entropy coder's tables are fitted to them.
"""

import copy
import json
import math
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import get_ema_multi_avg_fn as ema

from dynenc import registry
from dynenc.coding.entropy import EntropyModel
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.errors import OutputExists, UsageError
from dynenc.evaluation.lpips import LPIPS
from dynenc.evaluation.measure import evaluate
from dynenc.imaging.image import pad, to_tensor
from dynenc.imaging.sources import iter_images
from dynenc.latent_space import SD1
from dynenc.metrics import bpp
from dynenc.networks import loading
from dynenc.networks.autoencoder import Autoencoder
from dynenc.networks.encoder import Encoder, to_floats
from dynenc.networks.external_vae import fast_dtype, load_teacher
from dynenc.training.crops import Crops, build_cache
from dynenc.training.fit_coder import NETWORKS, FitConfig, fit


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Every default of a training run; written into the metadata of the weights it exports."""

    preset: str  # a name of registry.MODELS
    steps: int = 6000  # optimiser steps in all
    distill_steps: int = 2000  # of them, the first ones, regress to the teacher's latents alone
    batch: int = 8  # crops a step
    crop: int = 128  # px, side of a crop
    learning_rate: float = 1e-3  # of AdamW, after warm-up; falls to 0 along a cosine
    warmup_steps: int = 100
    clip: float = 0.5  # largest norm of the gradient
    mse: float = 1.0  # weight of the squared error of pixels in [-1, 1]
    lpips: float = 0.06  # weight of LPIPS
    embedded_lpips: float = 1.0  # times that weight where the embedded decoder decodes
    tie: float = 0.03  # weight of the absolute distance to the teacher's latents
    rate: float = 0.0  # weight of the bits for a latent, times the step squared
    embedded_share: float = 0.5  # of the end-to-end steps that decode with the embedded decoder
    joint: int = 0  # 1: the embedded decoder learns with the encoder, and is exported beside it
    largest_step: float = 0.4  # quantiser step whose noise is added, drawn from 0 to this
    ema: float = 0.998  # decay of the average of the weights that is exported
    share_of_start: float = 0.0  # in what is exported, of the weights that the run began with
    seed: int = 0


PRESETS = {
    "nano": TrainConfig(
        "nano", steps=7500, distill_steps=2500, learning_rate=2e-3, lpips=0.4, rate=0.03
    ),
    "light": TrainConfig("light", steps=8000, learning_rate=1.6e-3, lpips=0.22, rate=0.04),
    "base": TrainConfig("base", lpips=0.14, embedded_lpips=0.5, rate=0.05),
    "embedded": TrainConfig("embedded", distill_steps=0),
    "autoencoder": TrainConfig(
        "autoencoder",
        steps=12000,
        distill_steps=0,
        lpips=0.008,
        tie=0.0,
        rate=0.006,
    ),
}
DECODER = "embedded"  # the preset that trains the embedded decoder
WIDE = FitConfig("wide", hidden=48, middle=24, neighbours=56, batch=2048, learning_rate=9e-3)
CODERS = {  # these fit an entropy coder's tables
    "context": FitConfig("context", states=1),
    "trellis": FitConfig("trellis"),
    "wide": WIDE,
    "plain": replace(WIDE, preset="plain", states=1),
}
TEST_STEP = 0.3  # of the quantiser, for figures


@dataclass(frozen=True, slots=True)
class TrainPaths:
    """Where a training run reads and writes."""

    data: tuple[Path, ...]  # folders or tar shards of pictures
    teacher: Path  # autoencoder of SD latents, in diffusers form
    lpips: Path | None  # weights of LPIPS; the entropy coder needs none
    run: Path  # checkpoints, log, caches of the data
    export: Path  # safetensors to write at the end
    start: Path | None = None  # weights to start from instead of the linear fit
    embedded: Path | None = None  # embedded decoder to train an encoder through
    encoders: tuple[Path, ...] = ()  # encoders to train the embedded decoder on
    test: Path | None = None  # folder of pictures to measure on at the end, never trained on


def linear_start(crops: Crops, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Least-squares map of 8x8 patches to the teacher's latents: weight [4, 3, 8, 8], bias [4]."""
    n_values = SD1.patch_values
    gram = torch.zeros(n_values + 1, n_values + 1, dtype=torch.float64)
    moment = torch.zeros(n_values + 1, SD1.channels, dtype=torch.float64)
    for _ in range(64):
        pixels, target = crops.sample(16, random)
        image = to_floats(pixels)
        rows = (
            F.pixel_unshuffle(image, SD1.patch).permute(0, 2, 3, 1).reshape(-1, n_values).double()
        )
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        gram += rows.T @ rows
        moment += rows.T @ target.permute(0, 2, 3, 1).reshape(-1, SD1.channels).double()
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(n_values + 1, dtype=torch.float64)
    solution = torch.linalg.solve(gram, moment).float()
    weight, bias = solution[:n_values].T, solution[n_values]
    return weight.reshape(SD1.channels, 3, SD1.patch, SD1.patch), bias


class Prior(nn.Module):
    """Bits of latents, for training alone: the entropy coder's place is taken by a small network.

    It sees the latents above and to the left of each position, and expects a logistic distribution.
    """

    RADIUS = 2  # positions
    HIDDEN = 32

    def __init__(self) -> None:
        super().__init__()
        side = 2 * self.RADIUS + 1
        self.context = nn.Conv2d(SD1.channels + 1, self.HIDDEN, side, padding=self.RADIUS)
        self.output = nn.Conv2d(self.HIDDEN, 2 * SD1.channels, 1)
        before = torch.arange(side**2).view(side, side) < side**2 // 2
        self.register_buffer("before", before.float())

    def forward(self, latents: Tensor, step: Tensor) -> Tensor:
        """Bits of each latent: [B, 4, h, w] in steps of [B, 1, 1, 1] -> [B, 4, h, w]."""
        inputs = torch.cat([latents, step.expand_as(latents[:, :1])], dim=1)
        weight = self.context.weight * self.get_buffer("before")
        features = F.conv2d(inputs, weight, self.context.bias, padding=self.RADIUS)
        expected, scale = self.output(F.leaky_relu(features)).chunk(2, dim=1)
        distance, spread = latents - expected, F.softplus(scale) + 0.01
        upper = torch.sigmoid((distance + step / 2) / spread)
        lower = torch.sigmoid((distance - step / 2) / spread)
        return -torch.log2((upper - lower).clamp(min=1e-6))


class Trainer:
    """One training run: state, steps, checkpoints, export."""

    def __init__(self, config: TrainConfig, paths: TrainPaths, device: torch.device) -> None:
        self.config, self.paths, self.device = config, paths, device
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True  # all batches have the same few shapes
        if paths.lpips is None:
            raise UsageError(f"training {config.preset} needs the weights of LPIPS: give --lpips")
        teacher_encoder, teacher_decoder = load_teacher(paths.teacher)
        self.crops = open_crops(paths, teacher_encoder, config.crop)
        model = loading.build(registry.MODELS[config.preset])
        self.decoders = [self._frozen(teacher_decoder)]
        self.teacher_encoder = self._frozen(teacher_encoder)
        self.encoders: list[nn.Module] = []
        self.prior: nn.Module = self._placed(Prior() if config.rate else nn.Identity())
        self.is_encoder = registry.MODELS[config.preset].kind == "encoder"
        if self.is_encoder and paths.embedded:
            self.decoders.append(self._frozen(loading.load_path(paths.embedded)))
        if not self.is_encoder or config.joint:
            self.encoders = [self._frozen(loading.load_path(path)) for path in paths.encoders]
        if paths.start:
            model.load_state_dict(loading.load_path(paths.start).state_dict())
        elif isinstance(encoder := getattr(model, "encoder", model), Encoder):
            encoder.start_linear(*linear_start(self.crops, np.random.default_rng(config.seed)))
        self.model = nn.ModuleDict({config.preset: self._placed(model)})
        if config.joint:
            if len(self.decoders) < 2:
                raise UsageError("joint training needs an embedded decoder: give --embedded")
            self.model[DECODER] = self.decoders[1].requires_grad_(True)
        self.begun = [weight.detach().clone() for weight in self.model.parameters()]
        self.average = AveragedModel(self.model, multi_avg_fn=ema(config.ema))
        self.perceptual = LPIPS(paths.lpips)
        self._frozen(self.perceptual)  # in place
        parameters = [*self.model.parameters(), *self.prior.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, config.learning_rate)
        # decoders only, as encoders stay exact; and the autoencoder's is too small to gain by it
        self.half = fast_dtype(device) != torch.float32 and not isinstance(model, Autoencoder)
        self.step = 0
        self.ahead = ThreadPoolExecutor(1)  # reads the next batch while the device computes
        self.batches: dict[int, Future[tuple[Tensor, Tensor]]] = {}  # by the step they are for

    def _random(self, step: int, purpose: int) -> np.random.Generator:
        """What is drawn for a step depends on nothing before it, so a run can go on anywhere."""
        return np.random.default_rng((self.config.seed, step, purpose))

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] in [-1, 1] and latents [B, 4, S/8, S/8] of this step, on the device.

        The next step's are begun to be read.
        """
        for step in (self.step, self.step + 1):
            if step not in self.batches:
                draw = self.config.batch, self._random(step, 0)
                self.batches[step] = self.ahead.submit(self.crops.sample, *draw)
        pixels, latents = self.batches.pop(self.step).result()
        return to_floats(pixels.to(self.device)), latents.to(self.device)

    def _frozen(self, module: nn.Module) -> nn.Module:
        return self._placed(module.eval().requires_grad_(False))

    def _placed(self, module: nn.Module) -> nn.Module:
        return module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stubs lack it

    def learning_rate(self) -> float:
        """Learning rate of the present step: linear warm-up, then a cosine to 0."""
        config = self.config
        rise = min(1.0, (self.step + 1) / config.warmup_steps)
        return (
            config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        )

    def _loss(self) -> dict[str, Tensor]:
        """Draw a batch and return the terms of the loss, weighted."""
        config = self.config
        image, target = self._batch()
        random = self._random(self.step, 1)
        terms: dict[str, Tensor] = {}
        if self.is_encoder:
            latents = self.model[config.preset](image)
            distilling = self.step < config.distill_steps
            terms["tie"] = F.l1_loss(latents, target) * (1.0 if distilling else config.tie)
            if distilling:
                return terms
            decoder = self.decoders[0]
            if len(self.decoders) > 1 and random.random() < config.embedded_share:
                decoder = self.decoders[1]
                if config.joint:  # it must not forget latents of others
                    some = slice(config.batch // 2)
                    latents = torch.cat([latents, self._others(image[some], target[some], random)])
                    image = torch.cat([image, image[some]])
        elif isinstance(model := self.model[config.preset], Autoencoder):
            latents, decoder = model.encoder(image), model.decoder
        else:
            latents = self._others(image, target, random)
            decoder = self.model[config.preset]
        drawn = config.largest_step * random.random((len(latents), 1, 1, 1), np.float32)
        width = torch.from_numpy(drawn).to(self.device)
        noise = torch.from_numpy(random.random(latents.shape, np.float32) - 0.5)
        noisy = latents + noise.to(self.device) * width
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            decoded = decoder(noisy).float()
        terms["mse"] = config.mse * F.mse_loss(decoded, image)
        weight = config.lpips * (config.embedded_lpips if decoder in self.decoders[1:] else 1)
        terms["lpips"] = weight * self.perceptual(decoded, image).mean()
        if config.rate:  # as fine steps are for pictures that may cost more
            own, step = noisy[: config.batch], width[: config.batch]
            terms["rate"] = config.rate * (step**2 * self.prior(own, step)).mean()
        return terms

    @torch.no_grad()
    def _others(self, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
        """Latents of the image by one of the frozen encoders, or by the teacher: the target."""
        pick = int(random.integers(len(self.encoders) + 1))
        latents: Tensor = self.encoders[pick - 1](image) if pick else target
        return latents

    def train_step(self) -> dict[str, float]:
        """Run one optimiser step, skipped if its gradient is not finite; return the loss terms."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        terms = self._loss()
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in terms.items()}

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self.paths.run / f"{self.config.preset}.checkpoint"

    def save(self) -> None:
        """Write the state of the run, so that `resume` goes on exactly as if never stopped."""
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        beside = self.checkpoint.with_suffix(".partial")
        torch.save(state, beside)
        beside.replace(self.checkpoint)

    def resume(self) -> bool:
        """Take up the checkpoint if there is one; say whether there was."""
        if not self.checkpoint.exists():
            return False
        state: dict[str, Any] = torch.load(self.checkpoint, self.device, weights_only=True)
        if TrainConfig(**state["config"]) != self.config:
            raise OutputExists(
                f"{self.checkpoint} is of a run with other settings: name another --run"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        return True

    def averaged(self) -> dict[str, nn.Module]:
        """The networks to export, by the name of their preset.

        Their weights are averaged over the steps, and then, if asked for, with those that the run
        began with: the mean of both ends is often better than either (WiSE-FT, Wortsman et al.).
        """
        networks = copy.deepcopy(self.average.module).eval()
        with torch.no_grad():
            for weight, begun in zip(networks.parameters(), self.begun, strict=True):
                weight.lerp_(begun, self.config.share_of_start)
        return dict(networks.named_children())

    def figures(self, name: str, trained: dict[str, Any]) -> dict[str, float]:
        """Mean PSNR and LPIPS of one of the networks to export on the test pictures, if any.

        An encoder is measured through the teacher's decoder, the embedded decoder on latents of the
        encoder it is trained with, else the last of its encoders, else the teacher, rounded to
        TEST_STEP; an autoencoder on its own latents, rounded so, too.
        """
        if not self.paths.test:
            return {}
        encode = (self.encoders or [self.teacher_encoder])[-1]
        decode, step = self.decoders[0], 0.0
        if self.is_encoder:
            encode = trained[self.config.preset]
        if name == DECODER:
            decode, step = trained[name], TEST_STEP
        elif isinstance(model := trained[name], Autoencoder):
            encode, decode, step = model.encoder, model.decoder, TEST_STEP

        def reconstruct(image: Tensor) -> Tensor:
            latents = encode(image.to(self.device))
            rebuilt: Tensor = decode((latents / step).round() * step if step else latents)
            return rebuilt.cpu()

        return evaluate(reconstruct, self.paths.test, self.perceptual.cpu())

    def export(self) -> dict[str, float]:
        """Measure, and write the averaged weights with how they were made; return the figures."""
        networks = self.averaged()
        figures = {name: self.figures(name, networks) for name in networks}
        for name, model in networks.items():
            path = self.paths.export
            loading.save_weights(
                model.state_dict(),
                path if name == self.config.preset else path.with_name(f"{name}.safetensors"),
                {
                    "model": name,
                    "start": self.paths.start.name if self.paths.start else "linear",
                    "steps": str(self.step),
                    **origin(self.config, self.paths, self.crops, figures[name]),
                },
            )
        return figures[self.config.preset]


def open_crops(paths: TrainPaths, teacher: nn.Module, size: int) -> Crops:
    """The training data, decoded and encoded by the teacher once, then kept beside the run."""
    caches = []
    for source in paths.data:
        cache = paths.run / "cache" / source.stem
        if not cache.exists():
            build_cache(source, cache, teacher, size)
        caches.append(cache)
    return Crops(caches, size)


def origin(
    config: TrainConfig | FitConfig, paths: TrainPaths, crops: Crops, figures: dict[str, float]
) -> dict[str, str]:
    """How weights were made, for the metadata of their file."""
    return {
        "config": json.dumps(asdict(config)),
        "data": ", ".join(source.name for source in paths.data),
        "tiles": str(len(crops)),
        "teacher": paths.teacher.name,
        "commit": commit(),
        "test": paths.test.name if paths.test else "none",
        "figures": json.dumps(figures),
    }


def commit() -> str:
    """The commit of the source tree, or 'unknown' outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def configure(preset: str, settings: list[str]) -> TrainConfig | FitConfig:
    """A preset with some fields changed, each as 'name=value'; raises UsageError."""
    changes: dict[str, int | float] = {}
    base = (PRESETS | CODERS)[preset]
    numbers = {f.name: type(getattr(base, f.name)) for f in fields(base) if f.name != "preset"}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            changes[name] = numbers[name](value)
        except (KeyError, ValueError) as exc:
            choices = ", ".join(numbers)
            raise UsageError(
                f"--set {setting} is not NAME=NUMBER with a name of {choices}"
            ) from exc
    return replace(base, **changes)  # type: ignore[arg-type]  # each value has its field's type


def train(
    config: TrainConfig,
    paths: TrainPaths,
    device: torch.device,
    report: Callable[[int, dict[str, float]], None],
    save_every: int = 200,
) -> dict[str, float]:
    """Run or resume a training run to its end, export it and return its figures.

    `report` gets every step and its loss terms. A checkpoint is written every `save_every` steps,
    at the end, and when interrupted.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, paths, device)
    trainer.resume()
    try:
        while trainer.step < config.steps:
            terms = trainer.train_step()
            report(trainer.step, terms)
            if trainer.step % save_every == 0:
                trainer.save()
    finally:
        trainer.save()
    return trainer.export()


def train_coder(
    config: FitConfig, paths: TrainPaths, report: Callable[[int], None]
) -> dict[str, float]:
    """Fit the entropy coder to latents of the teacher and of the encoders in turn, and export it.

    Returns: `pictures` and the mean `bpp` of the test pictures' payloads, their latents made by the
    last of the encoders (else by the teacher) and rounded to TEST_STEP; nothing without them.
    """
    teacher, _ = load_teacher(paths.teacher)
    encoders = [loading.load_path(path) for path in paths.encoders]
    crops = open_crops(paths, teacher, PRESETS["embedded"].crop)

    @torch.inference_mode()
    def latents() -> Iterator[npt.NDArray[np.float32]]:
        for number, (image, target) in enumerate(crops.whole()):
            pick = number % (len(encoders) + 1)
            yield (encoders[pick - 1](image) if pick else target)[0].numpy()

    tensors = fit(latents(), config, report)
    figures: dict[str, float] = {}
    if paths.test:
        coder, step_q = EntropyModel.of(tensors), round(TEST_STEP * STEP_UNIT)
        rates = []
        for _, picture in iter_images(paths.test):
            with torch.inference_mode():
                encoded = [teacher, *encoders][-1](pad(to_tensor(picture)))
            payload = coder.encode(to_symbols(encoded, step_q, coder), step_q)
            rates.append(bpp(len(payload), *picture.size))
        figures = {"pictures": len(rates), "bpp": sum(rates) / len(rates)}
    save_file(
        tensors, paths.export, {"model": config.preset, **origin(config, paths, crops, figures)}
    )
    return figures


def train_with_progress(
    config: TrainConfig | FitConfig, paths: TrainPaths, device: torch.device, *, quiet: bool
) -> dict[str, float]:
    """Train with a progress bar on stderr and a line every 50 steps in the run's log."""
    paths.run.mkdir(parents=True, exist_ok=True)
    columns = Progress.get_default_columns()
    bar = Progress(*columns, console=Console(stderr=True), disable=quiet)
    if isinstance(config, FitConfig):
        with bar:
            coder_task = bar.add_task(config.preset, total=NETWORKS)
            return train_coder(config, paths, lambda done: bar.update(coder_task, completed=done))
    sums: dict[str, list[float]] = {}
    with (paths.run / f"{config.preset}.log").open("a") as log, bar:
        task = bar.add_task(config.preset, total=config.steps)

        def report(step: int, terms: dict[str, float]) -> None:
            for name, value in terms.items():
                sums.setdefault(name, []).append(value)
            if step % 50 == 0:
                means = {name: sum(values) / len(values) for name, values in sums.items()}
                log.write(json.dumps({"step": step, **means}) + "\n")
                log.flush()
                sums.clear()
            bar.update(task, completed=step)

        return train(config, paths, device, report)

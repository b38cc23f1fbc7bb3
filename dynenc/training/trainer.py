"""The training loop that made the shipped weights.

An encoder is first fitted to the teacher's latents (closed-form linear start, then regression). It
is then trained end to end: its latents, with the noise of a random quantiser step, are decoded by
decoders of SD latents, and the result is compared with the original. With `rate`, the loss includes
the bits of the latents. The autoencoder is trained as a whole in the same way, and with `joint` the
embedded decoder together with one or more encoders, which take turns. By itself, a decoder is
trained on what files of random qualities hold, with latents of the teacher and of the encoders, and
with `gan` against a discriminator.
"""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import get_ema_multi_avg_fn as ema

from dynenc import registry
from dynenc.errors import UsageError
from dynenc.evaluation.measure import evaluate, load_distances
from dynenc.latent_space import SD1
from dynenc.networks import loading
from dynenc.networks.autoencoder import Autoencoder
from dynenc.networks.compat import fast_dtype
from dynenc.networks.decoders import load_autoencoder
from dynenc.networks.encoder import to_floats
from dynenc.training import checkpoint, schedule
from dynenc.training.adversary import Adversary
from dynenc.training.batches import Batches, generator
from dynenc.training.config import TrainConfig, TrainPaths, check, check_paths
from dynenc.training.file_latents import (
    AsFiles,
    FileLatents,
    Quantised,
    rounded,
    with_random_noise,
)
from dynenc.training.losses import Discriminator, ReconstructionLoss
from dynenc.training.optimizer import Optimizer
from dynenc.training.prior import Prior, rate
from dynenc.training.provenance import origin
from dynenc.training.start import Initializer
from dynenc.training.synthetic import flats

LatentsOf = Callable[[Tensor, np.random.Generator], Quantised]  # of images
TEST_STEP = 0.3  # quantiser step for figures
FLATS = 16  # images of one colour per step
FLAT_STEP = 0.15  # their largest quantiser step: files quantise them more finely


class Trainer:
    """One training run: state, steps, checkpoints, export."""

    def __init__(
        self, config: TrainConfig, paths: TrainPaths, device: torch.device, prefetcher: Executor
    ) -> None:
        check(config)
        check_paths(config, paths)
        self.config, self.paths, self.device = config, paths, device
        # not for encoders in training, which stay exact, or the autoencoder, which is too small
        self.half = fast_dtype(device) != torch.float32 and config.preset != "autoencoder"
        torch.manual_seed(config.seed)
        self.is_updating = False  # whether a step has changed some weights and will change others
        self.reconstruction_loss: nn.Module = self._frozen(ReconstructionLoss(config, paths))
        model = registry.MODELS[config.preset]
        self.space = SD1 if model.space.is_dynenc_only else model.space
        teacher_encoder, teacher_decoder = load_autoencoder(paths.teacher, self.space)
        self.batches = Batches(config, paths, prefetcher)
        self.decoders = [self._frozen(teacher_decoder)]
        self.teacher_encoder = self._frozen(teacher_encoder)
        self.as_files = AsFiles(config)
        self.file_latents: FileLatents | None = None  # for a decoder that is trained by itself
        self.prior: nn.Module = self._to_device(
            Prior(self.space.channels) if config.rate else nn.Identity()
        )
        self.is_encoder = model.kind == "encoder"
        if model.kind == "decoder":
            self.file_latents = FileLatents(self._frozen_encoders(), self.as_files, self._autocast)
        elif paths.embedded and not config.joint:
            self.decoders.append(self._frozen(loading.load_path(paths.embedded, self.space)))
        self.model = nn.ModuleDict()  # networks in training, by name
        self.starts: dict[str, Path | None] = {}  # their initial weights
        self._add_networks(model)
        self.exports = self._exports()
        self.inputs = checkpoint.inputs(config, paths, self.batches, [*self.exports.values()])
        self.initial_weights = [weight.detach().clone() for weight in self.model.parameters()]
        self.average = AveragedModel(self.model, multi_avg_fn=ema(config.ema))
        self.optimizer = Optimizer(self.model, self.prior, config.learning_rate)
        self.adversary: Adversary | None = None
        if config.gan:
            discriminator = self._to_device(Discriminator(self.space.channels))
            self.adversary = Adversary(discriminator, config, self._autocast)
        self.step, self.spent_s, self.started_at = 0, 0.0, time.monotonic()

    def _frozen_encoders(self) -> list[tuple[nn.Module, registry.Model]]:
        """The encoders whose latents a decoder learns to decode, with the models of their files."""
        encoders = [(self.teacher_encoder, registry.IMPORTED_MODELS[self.space.name])]
        for path in self.paths.encoders:
            encoder = self._frozen(loading.load_path(path, self.space))
            encoders.append((encoder, self._of_space(path)))
        return encoders

    def _add_networks(self, model: registry.Model) -> None:
        """Add all networks that are trained: that of the preset, and with `joint` the others."""
        config, paths = self.config, self.paths
        crops, random = self.batches.crops, generator(config, 0, 2)
        initializer = Initializer(crops, self._target, random)
        self._add_network(initializer, model, paths.start)
        for path in paths.encoders if config.joint else ():
            self._add_network(initializer, self._of_space(path), path)
        self.names_in_turn = list(self.model)  # encoders, one of which is trained per step
        if config.joint and paths.embedded:
            decoder = self._of_space(paths.embedded)
            self._add_network(initializer, decoder, paths.embedded)
            self.decoders.append(self.model[decoder.name])

    def _of_space(self, path: Path) -> registry.Model:
        """The model in this run's space for the weights in a file; raises UsageError."""
        name = loading.model_name(path)
        if (model := registry.counterpart(name, self.space)) is None:
            raise UsageError(
                f"{path} holds weights of {name}, unknown for {self.space.title} latents"
            )
        return model

    def _add_network(
        self, initializer: Initializer, model: registry.Model, path: Path | None
    ) -> None:
        """Add a network to those in training, with the weights in a file or without."""
        if model.name in self.model:
            raise UsageError(f"{path} is another {model.name}: each network can be trained once")
        self.model[model.name] = self._to_device(initializer.network(model, path))
        self.starts[model.name] = path

    def _exports(self) -> dict[str, Path]:
        """The file to write for each network; raises UsageError if two have the same one."""
        export, preset = self.paths.export, self.config.preset
        if export.stem in {*self.model} - {preset}:
            raise UsageError(
                f"{export} is where {export.stem} will be written", hint="choose another -o"
            )
        others = {name: export.with_name(f"{name}.safetensors") for name in self.model}
        return others | {preset: export}

    def _images(self) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of this step, on the device."""
        pixels = self.batches.of_step(self.step).to(self.device)
        return to_floats(pixels).contiguous(memory_format=torch.channels_last)

    def _frozen(self, module: nn.Module) -> nn.Module:
        return self._to_device(module.eval().requires_grad_(False))

    def _to_device(self, module: nn.Module) -> nn.Module:
        return module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stubs lack it

    @property
    def progress(self) -> float:
        """Progress of the run, 0 to 1: by steps, or by the clock if there is a time budget."""
        if self.config.budget_s:
            now = self.spent_s + time.monotonic() - self.started_at
            return min(1.0, now / self.config.budget_s)
        return min(1.0, self.step / self.config.steps)

    @property
    def current_name(self) -> str:
        """The name of the network, or of the encoder in turn, that this step trains."""
        return self.names_in_turn[self.step % len(self.names_in_turn)]

    def learning_rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then a cosine to 0."""
        config = self.config
        return schedule.learning_rate(
            config.learning_rate, self.step, config.warmup_steps, self.progress
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    @torch.no_grad()
    def _target(self, image: Tensor) -> Tensor:
        """The teacher's latents."""
        with self._autocast():
            latents: Tensor = self.teacher_encoder(image.to(self.device))
        return latents.float()

    @torch.no_grad()
    def _other_latents(self, image: Tensor, random: np.random.Generator) -> Quantised:
        """Latents that files of another encoder of a joint training hold, or of the teacher."""
        encoders = [(self._target, registry.IMPORTED_MODELS[self.space.name])]
        others = {*self.names_in_turn} - {self.current_name}
        encoders += [(self.model[name], registry.MODELS[name]) for name in sorted(others)]
        encode, model = encoders[int(random.integers(len(encoders)))]
        return self.as_files(encode(image), model, random)

    def _loss(self) -> dict[str, Tensor]:
        """Draw a batch and return the terms of the loss, weighted."""
        config = self.config
        image, random = self._images(), generator(config, self.step, 1)
        if self.file_latents:
            return self._decoder_loss(self.file_latents, image, random)
        latents, terms = self._encoded(image), dict[str, Tensor]()
        if self.is_encoder:
            is_distilling = self.step < config.distill_steps
            if is_distilling or config.tie:
                distance = F.l1_loss(latents, self._target(image))
                terms["tie"] = distance * (1.0 if is_distilling else config.tie)
            if is_distilling:
                return terms
        decoder = self._pick_decoder(random)
        if self.is_encoder and decoder is not self.decoders[0]:
            noisy = self.as_files(latents, registry.MODELS[self.current_name], random)
            if config.joint:  # keep the decoder able to decode latents of other encoders
                some = image[: max(1, config.batch // 4)]
                others = self._other_latents(some, random)
                noisy = Quantised(*map(torch.cat, zip(noisy, others, strict=True)))
                image = torch.cat([image, some])
        else:
            noisy = with_random_noise(latents, config.largest_step, random)
        terms |= self._image_terms(decoder, noisy, image, random)
        if config.rate:
            step, is_trained = noisy.step[: config.batch], self.step >= config.warmup_steps
            terms["rate"] = config.rate * rate(self.prior, latents, step, random, is_trained)
        return terms | self._flat_terms(decoder, self._noisy_latents_of_flats, random)

    def _decoder_loss(
        self, latents_of: FileLatents, image: Tensor, random: np.random.Generator
    ) -> dict[str, Tensor]:
        """The terms of the loss of a decoder that is trained by itself."""
        decoder = self._pick_decoder(random)
        terms = self._image_terms(decoder, latents_of(image, random), image, random)
        flat_terms = self._flat_terms(decoder, latents_of, random)
        if self.adversary and flat_terms:  # the gradients of other terms have been applied already
            flat_terms["flats"].backward()
        return terms | flat_terms

    def _pick_decoder(self, random: np.random.Generator) -> nn.Module:
        """The decoder of this step: the trained one, or for an encoder one of its decoders."""
        if self.is_encoder:
            is_embedded = len(self.decoders) > 1 and random.random() < self.config.embedded_share
            return self.decoders[int(is_embedded)]
        model = self.model[self.config.preset]
        return model.decoder if isinstance(model, Autoencoder) else model

    def _image_terms(
        self, decoder: nn.Module, noisy: Quantised, image: Tensor, random: np.random.Generator
    ) -> dict[str, Tensor]:
        """The terms that compare decoded images with originals.

        With an adversary, their gradient and that of the discriminator are applied here.
        """
        with self._autocast():
            decoded = decoder(*noisy).float()
        compared = decoded.detach().requires_grad_() if self.adversary else decoded
        with self._autocast():
            terms: dict[str, Tensor] = self.reconstruction_loss(compared, image, random)
        if self.adversary:
            [gradient] = torch.autograd.grad(torch.stack(list(terms.values())).sum(), compared)
            self.is_updating = True  # also by its forward pass, which updates the spectral norms
            latents = noisy.latents
            terms |= self.adversary.learn(compared, image, latents, self.learning_rate())
            decoded.backward(self.adversary.add_gradient(gradient, compared, latents, self.step))
        return terms

    def _encoded(self, image: Tensor) -> Tensor:
        """Latents of the encoder that this step trains."""
        model = self.model[self.current_name]
        latents: Tensor = (model.encoder if isinstance(model, Autoencoder) else model)(image)
        return latents

    def _noisy_latents_of_flats(self, image: Tensor, random: np.random.Generator) -> Quantised:
        return with_random_noise(self._encoded(image), FLAT_STEP, random)

    def _flat_terms(
        self, decoder: nn.Module, latents_of: LatentsOf, random: np.random.Generator
    ) -> dict[str, Tensor]:
        """The absolute error of decoded images of one colour, weighted; nothing if that is 0."""
        if not self.config.flats:
            return {}
        image = to_floats(flats(FLATS, random).to(self.device))
        latents = latents_of(image, random)
        with self._autocast():
            decoded = decoder(*latents)
        return {"flats": self.config.flats * F.l1_loss(decoded.float(), image)}

    def train_step(self) -> dict[str, float]:
        """Run one optimiser step, or skip it if its gradient is not finite; return the terms."""
        self.optimizer.zero_grad()
        terms = self._loss()
        if not self.adversary:
            torch.stack(list(terms.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.is_updating = True
        if torch.isfinite(norm):
            self.optimizer.step(self.learning_rate())
            self.average.update_parameters(self.model)
        self.step += 1
        self.is_updating = False
        return {name: value.item() for name, value in terms.items()}

    @property
    def checkpoint(self) -> Path:
        """The file that holds the state of the run."""
        return self.paths.run / f"{self.config.preset}.checkpoint"

    def _parts(self) -> dict[str, Any]:
        """The modules and optimisers in a checkpoint."""
        parts = {name: getattr(self, name) for name in ("model", "prior", "average", "optimizer")}
        if self.adversary:
            parts["discriminator"] = self.adversary.discriminator
            parts["adversary"] = self.adversary.optimizer
        return parts

    def save(self) -> None:
        """Write the state of the run, so that `resume` continues exactly as without a stop."""
        state = {
            "inputs": self.inputs,
            "begun": self.initial_weights,
            "step": self.step,
            "spent_s": self.spent_s + time.monotonic() - self.started_at,
        }
        checkpoint.write(self.checkpoint, state, self._parts())

    def resume(self) -> bool:
        """Load the checkpoint; return whether there was one. Raises: OutputExists."""
        if not self.checkpoint.exists():
            return False
        state = checkpoint.read(self.checkpoint, self.device, self.inputs, self._parts())
        names = ("step", "spent_s", "begun")
        self.step, self.spent_s, self.initial_weights = (state[name] for name in names)
        return True

    def averaged(self) -> dict[str, nn.Module]:
        """The networks to export, by preset.

        Their weights are averaged over the steps, and with `share_of_start` also with the initial
        ones, which is often better than either (WiSE-FT, Wortsman et al.).
        """
        networks = copy.deepcopy(self.average.module).eval()
        with torch.no_grad():
            for weight, initial in zip(networks.parameters(), self.initial_weights, strict=True):
                weight.lerp_(initial, self.config.share_of_start)
        return dict(networks.named_children())

    def figures(self, name: str, trained: dict[str, Any]) -> dict[str, float]:
        """The figures of an exported network on the test images.

        An encoder is measured with the teacher's decoder. A decoder is measured on latents
        of the encoder it is trained with, else of the last of its encoders, else of the teacher; an
        autoencoder on its own. Latents are quantised with TEST_STEP for both.

        Returns: the number of images and their mean PSNR, LPIPS and DISTS, the last two if their
        weights are given; {} without test images.
        """
        if not self.paths.test:
            return {}
        encode = self.file_latents.last_encoder if self.file_latents else self.teacher_encoder
        decode, step = self.decoders[0], 0.0
        if self.is_encoder:
            encode = trained[name if name in self.names_in_turn else self.config.preset]
        if registry.MODELS[name].kind == "decoder":
            decode, step = trained[name], TEST_STEP
        elif isinstance(model := trained[name], Autoencoder):
            encode, decode, step = model.encoder, model.decoder, TEST_STEP

        def reconstruct(image: Tensor) -> Tensor:
            latents = encode(image.to(self.device))
            decoded: Tensor = decode(*rounded(latents, step))
            return decoded.cpu()

        return evaluate(
            reconstruct, self.paths.test, load_distances(self.paths.lpips, self.paths.vgg)
        )

    def export(self) -> dict[str, float]:
        """Measure and write the averaged weights with their provenance; return the figures."""
        networks = self.averaged()
        figures = {name: self.figures(name, networks) for name in networks}
        for name, model in networks.items():
            start = self.starts[name]
            loading.save_weights(
                model.state_dict(),
                self.exports[name],
                {
                    "model": name,
                    "start": start.name if start else "none",
                    "steps": str(self.step),
                    **origin(self.config, self.paths, len(self.batches.crops), figures[name]),
                },
            )
        return figures[self.config.preset]

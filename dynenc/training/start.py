"""The initial weights of a run: a linear fit, given weights, or those of another latent space.

A network of another space keeps its body, as far as both have the same blocks. Its layer next to
the latents, the encoder's last one or the decoder's first, is solved by least squares: the encoder
then makes the latents of the teacher, and the decoder's body sees in them what it saw in latents of
its own space.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc import registry
from dynenc.errors import WeightsError
from dynenc.networks import loading
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.encoder import Encoder, to_floats
from dynenc.registry import Model
from dynenc.training.crops import Crops
from dynenc.training.widen import widen

BATCHES, CROPS = 64, 16  # that the layers are fitted to
RIDGE = 1e-4  # added to the mean square of each input, relative to it
UNTRAINED = 0.1  # of the head's random weights, next to a linear map that is fitted


class LeastSquares:
    """The linear map, with a bias, of inputs [N, K] to targets [N, M] with the least error."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.moment: Tensor | float = 0.0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take maps [B, K, h, w] and [B, M, h, w] into account."""
        rows = inputs.movedim(1, 0).flatten(1).double()
        rows = torch.cat([rows, torch.ones_like(rows[:1])])
        self.gram = self.gram + rows @ rows.T
        self.moment = self.moment + rows @ targets.movedim(1, 0).flatten(1).double().T

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weight [M, K] and bias [M], float32."""
        gram = torch.as_tensor(self.gram)
        gram = gram + RIDGE * gram.diagonal().diag()
        found = torch.linalg.solve(gram, torch.as_tensor(self.moment)).float()
        return found[:-1].T, found[-1]


class Initializer:
    """Makes the networks that a training begins with.

    Args:
        target: the teacher's encoder, images [B, 3, H, W] -> latents.
        random: draws the crops that layers are fitted to.
    """

    def __init__(
        self,
        crops: Crops,
        target: Callable[[Tensor], Tensor],
        random: np.random.Generator,
    ) -> None:
        self._crops, self._target, self._random = crops, target, random

    @cached_property
    def _samples(self) -> list[tuple[Tensor, Tensor]]:
        """Crops [B, 3, S, S] uint8, and the teacher's latents of them."""
        drawn = [self._crops.sample(CROPS, self._random) for _ in range(BATCHES)]
        return [(pixels, self._target(to_floats(pixels)).cpu()) for pixels in drawn]

    def network(self, model: Model, path: Path | None) -> nn.Module:
        """A network of a model, ready to train.

        Args:
            path: weights of the model, or of the one that is the same in another space; None: an
                encoder starts from the linear map of patches to latents, and a decoder at random.
                `fine` can also start from weights of the embedded decoder, see `widen`.
        Raises: WeightsError.
        """
        if path is None:
            network = loading.build(model)
            encoder = getattr(network, "encoder", network)
            if isinstance(encoder, Encoder):
                self._fit_encoder(encoder, has_body=False)
            return network
        given, name = loading.load_path(path).requires_grad_(True), loading.model_name(path)
        if name == model.name:
            return given
        network = loading.build(model)
        is_widened = (name, model.name) == ("embedded", "fine")
        if not (is_widened or registry.is_same_network(name, model.name)):
            raise WeightsError(
                f"{path} has the weights of {name}, from which {model.name} cannot start"
            )
        if isinstance(network, Encoder) and isinstance(given, Encoder):
            _copy_all_but(("head.", "linear."), given, network)
            self._fit_encoder(network, has_body=True)
        elif isinstance(network, EmbeddedDecoder) and isinstance(given, EmbeddedDecoder):
            if is_widened:
                widen(given, network)
                return network
            _copy_all_but(("layers.0.",), given, network)
            self._fit_decoder(network, given, registry.MODELS[name])
        return network

    @torch.no_grad()
    def _fit_encoder(self, encoder: Encoder, *, has_body: bool) -> None:
        """Solve for the linear map of patches to latents, with a trained body also for the head."""
        fit, side = LeastSquares(), encoder.linear.kernel_size[0]
        for pixels, latents in self._samples:
            image = to_floats(pixels)
            inputs = F.pixel_unshuffle(image, side)
            if has_body:
                inputs = torch.cat([inputs, encoder.head_inputs(image)], 1)
            fit.add(inputs, latents)
        weight, bias = fit.solution()
        linear, head = weight.tensor_split([encoder.linear.weight[0].numel()], 1)
        encoder.linear.weight.copy_(linear.view_as(encoder.linear.weight))
        encoder.get_parameter("linear.bias").copy_(bias)
        if has_body:
            encoder.head.weight.copy_(head.view_as(encoder.head.weight))
            encoder.get_parameter("head.bias").zero_()
        else:
            for parameter in encoder.head.parameters():
                parameter.mul_(UNTRAINED)

    @torch.no_grad()
    def _fit_decoder(self, decoder: EmbeddedDecoder, body: EmbeddedDecoder, model: Model) -> None:
        """Solve for the first layer, so that it gives what a body's gives of its own latents.

        The largest of dynenc's encoders of the body's space makes the body's latents.
        """
        encode = loading.load_encoder(registry.encoders(model.space)[-1])
        fit, first = LeastSquares(), body.get_submodule("layers.0")
        for pixels, latents in self._samples:
            padded = F.pad(latents, [1, 1, 1, 1], mode="replicate")
            inputs = F.unfold(padded, 3).unflatten(2, latents.shape[2:])
            fit.add(inputs, first(encode(pixels)))
        weight, bias = fit.solution()
        own = decoder.get_parameter("layers.0.weight")
        own.copy_(weight.view_as(own))
        decoder.get_parameter("layers.0.bias").copy_(bias)


def _copy_all_but(prefixes: tuple[str, ...], given: nn.Module, to: nn.Module) -> None:
    state = {k: v for k, v in given.state_dict().items() if not k.startswith(prefixes)}
    to.load_state_dict(state, strict=False)

"""Networks and their weight files: safetensors only, float32 in memory.

On disk, weights are float16, or integers for the integer decoder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dynenc import registry
from dynenc.arguments import StrPath, checked_name
from dynenc.errors import WeightsError, with_name
from dynenc.io.writing import writing
from dynenc.latent_space import SD1, LatentSpace
from dynenc.networks import integer_tensors, published
from dynenc.networks.autoencoder import Autoencoder
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.encoder import Encoder
from dynenc.networks.perceptual_network import PerceptualNetwork
from dynenc.registry import Model

N = TypeVar("N", bound=nn.Module)
AnyNetwork = Encoder | EmbeddedDecoder | Autoencoder | PerceptualNetwork


def build(model: Model) -> AnyNetwork:
    """A new network of a model's architecture: float32, on the CPU, whatever torch's defaults."""
    builders: dict[str, Callable[..., AnyNetwork]] = {
        "autoencoder": Autoencoder,
        "encoder": Encoder,
        "decoder": EmbeddedDecoder,
        "thumbnail": EmbeddedDecoder,
        "perceptual": PerceptualNetwork,
    }
    of_latents = {} if model.kind == "perceptual" else {"channels": model.space.channels}
    with torch.random.fork_rng([]), torch.device("cpu"):  # initial weights are drawn, then replaced
        network = builders[model.kind](**model.arguments, **of_latents)
    return network.float()


@overload
def load_named(name: str, kind: Literal["encoder"]) -> Encoder: ...
@overload
def load_named(name: str, kind: Literal["decoder"]) -> EmbeddedDecoder: ...
@overload
def load_named(name: str, kind: Literal["perceptual"]) -> PerceptualNetwork: ...
def load_named(name: str, kind: registry.Kind) -> nn.Module:
    """A network with the shipped weights, ready to run; of an autoencoder, the half asked for.

    Raises: WeightsError if the model is unknown, or its file is missing or altered.
    """
    model = registry.named(name, kind)
    network = _with_weights(build(model), registry.read_file(model), model.file)
    return network.get_submodule(kind) if isinstance(network, Autoencoder) else network


def load_encoder(
    name: StrPath = registry.DEFAULT_ENCODER, space: LatentSpace | None = None
) -> Encoder | published.PublishedEncoder:
    """An encoder: image [B, 3, H, W] in [-1, 1] -> latents [B, C, H/8, W/8], scaled.

    Args:
        name: one of `registry.names("encoder")`, or a .safetensors file for `load_path`.
            "autoencoder" has its own latent space.
        space: of the latents; None: that of the named encoder.
    H and W must be multiples of 8. Raises: WeightsError, UsageError.
    """
    name = checked_name("an encoder", name)
    if registry.encoder_model(name).kind != "imported":
        return load_named(registry.encoder_of_space(name, space).name if space else name, "encoder")
    network = load_path(Path(name), space)
    if not isinstance(network, Encoder | published.PublishedEncoder):
        raise WeightsError(f"{name} has no encoder of SD latents: use another file")
    return network


def load_path(path: Path, space: LatentSpace | None = None) -> nn.Module:
    """A network from a file written by `save_weights` or `dynenc import-checkpoint`.

    Args:
        space: of the latents that it has to be for; None: any.
    Raises: WeightsError.
    """
    try:
        metadata, data = registry.metadata_of(path), path.read_bytes()
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc}") from exc
    name = metadata.get("model", "")
    model = registry.MODELS.get(name)
    own = model.space if model else SD1
    if space and own is not space:
        raise WeightsError(
            f"{path} is for {own.title} latents: use a network of {space.title} latents"
        )
    if name == published.MODEL:
        return published.load_imported(data, metadata, str(path))
    if model is None or model.kind == "coder":
        raise WeightsError(f"{path} does not name a model of this dynenc: train it again")
    return _with_weights(build(model), data, str(path))


def model_name(path: Path) -> str:
    """The name of the model whose weights a file of `save_weights` holds. Raises: WeightsError."""
    return registry.metadata_of(path).get("model", "")


def _with_weights(module: N, data: bytes, name: str) -> N:
    try:
        state = load(data)
        if isinstance(module, EmbeddedDecoder) and integer_tensors.are_integers(state):
            integers = {key: value.numpy() for key, value in state.items()}
            state = {
                key: torch.from_numpy(value)
                for key, value in integer_tensors.to_floats(integers, module.sizes).items()
            }
        module.load_state_dict({key: value.float() for key, value in state.items()})
    except WeightsError as exc:
        raise with_name(exc, name) from exc
    except (SafetensorError, RuntimeError, KeyError, TypeError) as exc:
        raise WeightsError(f"{name} does not have the weights of this network: {exc}") from exc
    module = module.eval().requires_grad_(False)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stubs lack it


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state dict as float16 safetensors, with its provenance as metadata."""
    half = {name: t.detach().cpu().to(torch.float16).contiguous() for name, t in state.items()}
    with writing(str(path), overwrite=True) as file:
        file.write(save(half, metadata))

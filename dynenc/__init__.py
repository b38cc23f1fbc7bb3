"""dynenc: an image codec in the latent space of Stable Diffusion, with a tiny encoder."""

from typing import TYPE_CHECKING, Any

from dynenc.errors import DynencError

if TYPE_CHECKING:
    from dynenc.autoencoder import vae
    from dynenc.codec import Codec
    from dynenc.dataset import LatentDataset
    from dynenc.decoder import load_decoder
    from dynenc.folders import convert
    from dynenc.layers import DynamicConv, HybridDense
    from dynenc.weights import load_encoder

__version__ = "0.1.0"

__all__ = [
    "Codec",
    "DynamicConv",
    "DynencError",
    "HybridDense",
    "LatentDataset",
    "convert",
    "load_decoder",
    "load_encoder",
    "vae",
]

# torch takes seconds to import: what needs it is looked up when first asked for
_HOMES = {
    "Codec": "codec",
    "DynamicConv": "layers",
    "HybridDense": "layers",
    "LatentDataset": "dataset",
    "convert": "folders",
    "load_decoder": "decoder",
    "load_encoder": "weights",
    "vae": "autoencoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dynenc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"dynenc.{_HOMES[name]}"), name)

"""dynenc: an image codec in the latent space of Stable Diffusion, with a tiny encoder."""

from typing import TYPE_CHECKING, Any

from dynenc.errors import DynencError

if TYPE_CHECKING:
    from dynenc.batch.cache import make_cache
    from dynenc.batch.convert import convert
    from dynenc.codec import Codec
    from dynenc.interop.diffusers_vae import vae
    from dynenc.interop.torch_dataset import LatentDataset, SameSizeBatches
    from dynenc.networks.decoders import load_decoder
    from dynenc.networks.layers import DynamicConv, HybridDense
    from dynenc.networks.loading import load_encoder

__version__ = "1.0.0"

__all__ = [
    "Codec",
    "DynamicConv",
    "DynencError",
    "HybridDense",
    "LatentDataset",
    "SameSizeBatches",
    "convert",
    "load_decoder",
    "load_encoder",
    "make_cache",
    "vae",
]

# torch takes seconds to import, so names that need it are imported on first use
_HOMES = {
    "Codec": "codec",
    "DynamicConv": "networks.layers",
    "HybridDense": "networks.layers",
    "LatentDataset": "interop.torch_dataset",
    "SameSizeBatches": "interop.torch_dataset",
    "convert": "batch.convert",
    "load_decoder": "networks.decoders",
    "load_encoder": "networks.loading",
    "make_cache": "batch.cache",
    "vae": "interop.diffusers_vae",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dynenc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"dynenc.{_HOMES[name]}"), name)

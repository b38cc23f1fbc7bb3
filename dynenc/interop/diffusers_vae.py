"""dynenc in the place of a diffusers `AutoencoderKL`: what pipelines and trainers use of it.

This module and `networks.vae_files` are the only ones that import diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from dynenc import registry
from dynenc.arguments import checked_name
from dynenc.errors import WeightsError
from dynenc.imaging import tensors
from dynenc.latent_space import SD1
from dynenc.latent_space import named as space_named
from dynenc.networks import compat, loading
from dynenc.networks.checks import check_batch
from dynenc.networks.decoders import load_decoder
from dynenc.networks.encoder import to_floats
from dynenc.networks.tiling import SMALL_TILES


class Vae(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """An encoder and a decoder of dynenc with the interface of diffusers' `AutoencoderKL`.

    As there, latents are raw: pipelines multiply them by `config.scaling_factor`. The encoder gives
    one answer and no distribution, so `latent_dist.sample()` is its `mode()`. Pipelines save and
    load it like their other models.

    Args:
        encoder_name: 'nano', 'light', 'base' or a .safetensors file.
        decoder_name: see `load_decoder`.
        space: of the latents, of `latent_space.SPACES`.
    The other arguments only describe the VAE for pipelines; see `vae`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        encoder_name: str = registry.DEFAULT_ENCODER,
        decoder_name: str = "embedded",
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = SD1.channels,
        # their number tells pipelines that sides shrink by 8
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        sample_size: int = 512,
        scaling_factor: float = SD1.scale,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = False,
        space: str = SD1.name,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._space = space_named(space)
        self.encoder: nn.Module = loading.load_encoder(encoder_name, self._space)
        self.decoder: Any = load_decoder(decoder_name, "cpu", self._space)
        self.use_slicing = False
        self.gradient_checkpointing = False  # accepted, as trainers switch it on; saves nothing
        self._tiles = self.decoder.tiles

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load what pipelines saved; arguments and result are those of diffusers' `ModelMixin`.

        diffusers would ignore the dtype, as the networks are made in float32 whatever the default,
        and its older versions do not know the name `dtype`.
        """
        dtypes = [kwargs.pop(name, None) for name in ("torch_dtype", "dtype")]
        found = super().from_pretrained(*args, **kwargs)
        for dtype in dtypes:
            if isinstance(dtype, torch.dtype):
                nn.Module.to(found[0] if isinstance(found, tuple) else found, dtype)
        return found

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images [B, 3, H, W] in [-1, 1] -> raw latents [B, C, H/8, W/8], sides rounded up.

        Returns: an object with `latent_dist`, or without `return_dict` a tuple of it.
        """
        check_batch("images", x, 3)
        with _weights_of(self.encoder) as device:
            images = to_floats(x.to(device)).to(self.dtype)
            mean = self._space.raw(self.encoder(tensors.pad(images)))
        moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        latent_dist = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=latent_dist) if return_dict else (latent_dist,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Raw latents [B, C, h, w] -> images [B, 3, 8h, 8w], about [-1, 1].

        Args:
            generator: as pipelines pass it; there is nothing random here.
        Returns: an object with `sample`, or without `return_dict` a tuple of it.
        """
        check_batch("latents", z, self._space.channels)
        parts = z.split(1) if self.use_slicing else [z]
        with _weights_of(self.decoder):
            images = [self.decoder(self._space.scaled(part)) for part in parts]
            sample = torch.cat(images).to(self.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, sample_posterior: bool = False) -> Any:
        """Encode and decode images [B, 3, H, W]; `sample_posterior` changes nothing."""
        return self.decode(self.encode(sample).latent_dist.mode())

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode in smaller tiles; latents too large for the decoder are tiled in any case."""
        side = min(self._tiles.side, SMALL_TILES.side) if use_tiling else self._tiles.side
        self.decoder.tiles = self._tiles._replace(side=side)

    def disable_tiling(self) -> None:
        """Decode in tiles only if latents are too large for the decoder."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Decode the images of a batch one by one."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the images of a batch together."""
        self.use_slicing = False


@contextmanager
def _weights_of(network: nn.Module) -> Iterator[torch.device]:
    """Hold a network's weights while it runs, where accelerate has offloaded them; their device.

    accelerate fetches the weights of a module for the time of its `forward`. Our networks use some
    weights outside of it, as several modules are computed as one product.
    """
    hooked: list[tuple[nn.Module, Any]] = [
        (m, m._hf_hook) for m in network.modules() if hasattr(m, "_hf_hook")
    ]
    try:
        for module, hook in hooked:
            hook.pre_forward(module)
        yield next(network.parameters()).device
    finally:
        for module, hook in hooked:
            hook.post_forward(module, None)


def vae(
    encoder: str = registry.DEFAULT_ENCODER,
    decoder: str = "embedded",
    device: str | torch.device = "auto",
    *,
    space: str = SD1.name,
) -> Vae:
    """A stand-in for the VAE of diffusers pipelines: `pipe.vae = dynenc.vae("light")`.

    Args:
        encoder: 'nano', 'light' or 'base'.
        decoder: see `decoders.load_decoder`.
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', or a `torch.device`.
        space: of the pipeline's latents: 'sd1', 'sdxl', 'flux1' or 'sd3'.
    Raises: WeightsError if dynenc has no such networks for the space; DeviceError, UsageError.
    """
    own = space_named(space)
    where = compat.pick_device(device)
    encoder = checked_name("an encoder", encoder)
    decoder = checked_name("a decoder", decoder)
    if encoder in registry.names("autoencoder"):
        raise WeightsError(f"the latents of the {encoder} are not those of Stable Diffusion")
    made: Vae = Vae(
        encoder,
        decoder,
        latent_channels=own.channels,
        scaling_factor=own.scale,
        shift_factor=own.shift or None,
        space=space,
    )
    made.encoder.to(where)
    made.decoder = load_decoder(decoder, where, own) if where.type != "cpu" else made.decoder
    made.eval()
    return made

"""The encoders without hidden units in the native kernel: RGB pixels of 8 bits -> latents.

Layers multiply integers, and what is float in between is computed in one fixed order, so that the
latents are the same on every machine. Never imports torch.
"""

import ctypes
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors

from dynenc import registry, runtime
from dynenc.latent_space import SD1, latent_size
from dynenc.native import kernel
from dynenc.native.kernel import Bytes, Floats

WIDTHS = range(16, 257, 16)  # features that the kernel computes
MAX_BLOCKS = 16
MAX_CHANNELS = 16  # of the latents
LAYERS = ("norm", "spatial", "gate", "mix")  # of a block


def names(blocks: int) -> list[str]:
    """The names of an encoder's tensors, in the order of the kernel and of the state dict."""
    context = [f"context.{block}.{layer}" for block in range(blocks) for layer in LAYERS]
    layers = ["stem", *context, "linear", "head"]
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def flattened(tensors: Mapping[str, npt.NDArray[np.floating]], blocks: int) -> Floats:
    """All tensors of an encoder, concatenated, float32."""
    parts = [tensors[name].ravel() for name in names(blocks)]
    return np.concatenate(parts, dtype=np.float32)


def supports(hidden: int, width: int, blocks: int, channels: int) -> bool:
    """Whether the kernel can run an encoder with these arguments of `networks.encoder.Encoder`."""
    fits = width in WIDTHS and blocks <= MAX_BLOCKS and channels <= MAX_CHANNELS
    return hidden == 0 and fits


def runs_natively(model: registry.Model, device: object) -> bool:
    """Whether a model's encoder runs in the native kernel, so that encoding needs no torch."""
    # on the CPU it is faster than on a GPU, with start-up and transfers
    on_cpu = str(device) == "auto" or runtime.is_cpu(device)
    return (
        on_cpu
        and model.kind == "encoder"
        and supports(**model.arguments, channels=model.space.channels)
    )


def load(model: registry.Model) -> "Encoder":
    """The encoder of a model for which `supports` holds; raises WeightsError."""
    width, blocks = model.arguments["width"], model.arguments["blocks"]
    tensors = load_tensors(registry.read_file(model))
    return Encoder(flattened(tensors, blocks), width, blocks, model.space.channels)


class Encoder:
    """The weights of an encoder, packed; shared by all threads.

    Args:
        tensors: as `flattened` returns them.
        width: features, of `WIDTHS`.
        blocks: 0..`MAX_BLOCKS`.
        channels: of the latents, C, 1..`MAX_CHANNELS`.
    Raises: WeightsError if a weight is not finite or beyond 256.
    """

    def __init__(
        self, tensors: Floats, width: int, blocks: int, channels: int = SD1.channels
    ) -> None:
        self.tensors, self.blocks, self.channels = tensors, blocks, channels
        library, sizes = kernel.library(), (width, blocks, channels)
        size = kernel.checked(library.dynenc_encoder_size(*sizes))
        self._memory = kernel.Memory(size)
        place, values = self._memory.address, kernel.pointer(tensors)
        init = library.dynenc_encoder_init
        kernel.checked(init(place, size, *sizes, values, len(tensors)))

    def latents(self, pixels: Bytes) -> Floats:
        """Encode an RGB image; its edge is repeated up to whole patches.

        Args:
            pixels: [H, W, 3] uint8, sides of any length.
        Returns: [C, ceil(H / 8), ceil(W / 8)] float32, scaled.
        """
        pixels = kernel.with_contiguous_rows(pixels)
        height, width, _ = pixels.shape
        latents = np.empty((self.channels, *latent_size(height, width)), np.float32)
        encoder = self._memory.address
        size = kernel.checked(kernel.library().dynenc_latents_workspace(encoder, width))
        workspace = kernel.workspace(size)
        image = kernel.input_image(pixels, encoder, workspace)
        call = kernel.library().dynenc_latents
        kernel.checked(call(ctypes.byref(image), kernel.pointer(latents)))
        return latents

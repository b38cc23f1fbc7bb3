"""The paper's autoencoder: encoder and decoder of dynamic convolutions, with its own latents."""

from functools import partial

from torch import Tensor, nn

from dynenc.latent_space import AUTOENCODER
from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.encoder import Encoder
from dynenc.networks.layers import DynamicBlock, DynamicConv


class Autoencoder(nn.Module):
    """Image -> latents -> image, in its own latent space, not that of Stable Diffusion.

    The decoder shuffles the features of dynamic convolutions at 1/8, 1/4 and 1/2 of the size into
    pixels. Shapes: [B, 3, H, W] in [-1, 1] -> the same, about [-1, 1]; H and W multiples of 8.
    """

    def __init__(
        self,
        encoder: dict[str, int],
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        channels: int = AUTOENCODER.channels,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(**encoder, channels=channels)
        dynamic = partial(DynamicConv, hidden=1, batch_norm=False)
        self.decoder = EmbeddedDecoder(widths, blocks, dynamic, DynamicBlock, channels)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode: [B, 3, H, W] in [-1, 1] -> the same."""
        rebuilt: Tensor = self.decoder(self.encoder(image))
        return rebuilt

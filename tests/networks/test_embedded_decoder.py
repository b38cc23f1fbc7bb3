import torch

from dynenc.networks.embedded_decoder import DecoderBlock, EmbeddedDecoder
from dynenc.networks.encoder import Encoder


def test_what_is_flat_stays_flat_up_to_the_borders():
    torch.manual_seed(0)
    encoder, block = Encoder(hidden=1, width=16, blocks=2).eval(), DecoderBlock(4).eval()
    colour = torch.tensor([0.3, -0.9, 1.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        latents = encoder(colour.repeat(1, 1, 40, 32))
        decoded = block(latents)
    for flat in (latents, decoded):
        assert torch.allclose(flat, flat[:, :, :1, :1].expand_as(flat), atol=1e-5)


def test_any_latents_give_finite_pixels():
    decoder = EmbeddedDecoder((16, 8, 8), (8, 4, 2)).eval()
    with torch.no_grad():
        assert decoder(1e4 * torch.randn(1, 4, 6, 5)).isfinite().all()

"""The larger decoder that is part of dynenc: for GPUs, or where time does not matter."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.errors import WeightsError
from dynenc.networks.embedded_decoder import EdgeConv, Step, StepBias

CONVOLUTIONS = 3  # in a block
LIMIT = 3.0  # latents are squashed smoothly to this magnitude


class FineBlock(nn.Module):
    """Residual block of three 3x3 convolutions, whose input is padded once, with its edge.

    Shapes: [B, channels, h, w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(CONVOLUTIONS):
            layers += [nn.Conv2d(channels, channels, 3), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Apply the block: [B, channels, h, w] -> the same."""
        padded = F.pad(features, [CONVOLUTIONS] * 4, mode="replicate")
        return F.relu(features + self.conv(padded))


class FineDecoder(nn.Module):
    """Latents -> image: residual blocks at 1/8, 1/4, 1/2 and the whole of the image's size.

    The architecture, and the names of the weights, are those of TAESD's decoder (Bohan 2023, MIT;
    `DecoderTiny` of diffusers), so that training can start from it. It differs at the borders:
    convolutions repeat the edge instead of adding zeros, so a flat image stays flat. A term
    for the quantiser step is added, which is 0 when training starts.

    Shapes: [B, C, h, w] in the scale of the diffusion model -> [B, 3, 8h, 8w], about [-1, 1], not
    clamped. 270,000 multiplications per pixel with a width of 64.

    Args:
        width: channels of all layers.
        blocks: number of blocks at each size, from 1/8 to the whole.
        channels: of the latents.
    """

    takes_step = True

    def __init__(self, width: int, blocks: tuple[int, ...], channels: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [EdgeConv(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for number, count in enumerate(blocks):
            layers += [FineBlock(width) for _ in range(count)]
            if number + 1 < len(blocks):
                layers += [
                    nn.Upsample(scale_factor=2),
                    EdgeConv(width, width, 3, padding=1, bias=False),
                ]
        self.layers = nn.Sequential(*layers, EdgeConv(width, 3, 3, padding=1))
        self.step_bias = StepBias(width)

    def copy_weights_from(self, teacher: nn.Module) -> None:
        """Take over the weights of a decoder of the same architecture, one of AutoencoderTiny.

        Raises: WeightsError if it has another one.
        """
        try:
            slope = {"step_bias.slope": self.step_bias.slope}  # which it lacks
            self.load_state_dict(slope | teacher.state_dict())
        except RuntimeError as exc:
            raise WeightsError(
                "the teacher's decoder does not have the architecture of TAESD's: use TAESD",
                hint="or give --start",
            ) from exc

    def forward(self, latents: Tensor, step: Step = 0.0) -> Tensor:
        """Decode: [B, C, h, w] -> [B, 3, 8h, 8w], about [-1, 1].

        Args:
            step: quantiser step of the latents, or of each image [B]; 0: they were not quantised.
        """
        features = self.step_bias(self.layers[0](torch.tanh(latents / LIMIT) * LIMIT), step)
        image: Tensor = self.layers[1:](features)
        return image * 2 - 1

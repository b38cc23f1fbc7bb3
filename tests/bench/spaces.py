"""What latents of a space cost, and what rounding them loses.

    python tests/bench spaces IMAGES VAE SPACE [--every N] [--steps STEP ...]

IMAGES is a folder or tar shard, VAE an autoencoder of the SPACE in diffusers form. For each
quantiser step: bits per pixel by the entropy of the symbols of each image and channel (zero-order),
of whole files on the plain lattice, and on the trellis with a step 1.12 times as large; how much
smaller the latter are than float32 latents; the PSNR of the images it decodes, and what they
lose against latents that are not rounded.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from helpers.lat_files import zero_order_bits

from dynenc import metrics, registry
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.evaluation.curves import table
from dynenc.imaging import tensors
from dynenc.imaging.sources import iter_images
from dynenc.latent_space import PATCH, named
from dynenc.native.kernel import Floats
from dynenc.networks.decoders import load_autoencoder

STEPS = (0.1, 0.3, 0.5)
TRELLIS = 1.12  # step of the trellis with the same noise, relative to the plain lattice
FLOAT32 = 32  # bits of a value


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("space")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--steps", type=float, nargs="+", default=STEPS)
    arguments = parser.parse_args()
    space = named(arguments.space)
    model = registry.IMPORTED_MODELS[space.name]
    encode, decode = load_autoencoder(arguments.vae, space)
    found: dict[float, list[tuple[float, ...]]] = {step: [] for step in arguments.steps}
    for number, (_, image) in enumerate(iter_images(arguments.images)):
        if number % arguments.every:
            continue
        padded = tensors.pad(tensors.to_tensor(image))
        latents = encode(padded)[0].numpy()

        def psnr_db(values: Floats, original: torch.Tensor = padded) -> float:
            decoded = decode(torch.from_numpy(values)[None]).clamp(-1, 1)
            return metrics.psnr_db(decoded, original)

        ceiling = psnr_db(latents)
        for step in arguments.steps:
            files = []
            for has_trellis, factor in ((False, 1.0), (True, TRELLIS)):
                coder = load_coder(model.coder, has_trellis=has_trellis)
                step_q = round(step * factor * STEP_UNIT)
                symbols = to_symbols(latents, step_q, coder)
                size = padded.shape[3], padded.shape[2]
                files.append(LatFile.from_symbols(symbols, coder, size, step_q, model, []))
            bits = [
                zero_order_bits(np.rint(latents / step)),
                *(8 * len(f.to_bytes()) for f in files),
            ]
            bpp = [each / padded[0, 0].numel() for each in bits]
            found[step].append((*bpp, ceiling, psnr_db(files[1].latents)))
    heads = ["step", "zero-order, bpp", "plain", "trellis", "than float32", "PSNR", "loss"]
    rows = []
    for step, each in found.items():
        zero, plain, trellis, ceiling, reached = np.mean(each, 0)
        smaller = FLOAT32 * space.channels / PATCH**2 / trellis
        bpp = [f"{value:.3f}" for value in (zero, plain, trellis)]
        loss = f"{ceiling - reached:.2f} dB"
        rows.append([f"{step}", *bpp, f"{smaller:.1f}x", f"{reached:.2f} dB", loss])
    print(table(heads, rows))


if __name__ == "__main__":
    main()

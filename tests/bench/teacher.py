"""The latents of every encoder of a space, compared with those of a teacher, not quantised.

    python tests/bench teacher IMAGES TEACHER LPIPS [--space SPACE] [--encoder FILE ...]

IMAGES is a folder, TEACHER a TAESD or VAE of the space in diffusers form, whose decoder decodes
all latents, LPIPS the weights that `dynenc eval --lpips` takes. Whole files are measured by
`dynenc eval`, and by the benchmark quality.
"""

import argparse
from pathlib import Path

import torch

from dynenc import load_encoder, registry
from dynenc.evaluation.curves import table
from dynenc.evaluation.measure import Measure, load_distances, means
from dynenc.imaging import tensors
from dynenc.imaging.sources import iter_images
from dynenc.latent_space import SD1, named
from dynenc.networks.decoders import load_autoencoder


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("lpips", type=Path)
    parser.add_argument("--space", default=SD1.name)
    parser.add_argument("--encoder", nargs="+", help="weight files, instead of those of dynenc")
    parser.add_argument("--every", type=int, default=1, help="measure one of so many images")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    measure = Measure(load_distances(arguments.lpips))
    space = named(arguments.space)
    encode, decode = load_autoencoder(arguments.teacher, space)
    chosen = [image for _, image in iter_images(arguments.images)][:: arguments.every]
    images = [tensors.pad(tensors.to_tensor(image)) for image in chosen]
    targets = [encode(image) for image in images]
    rows = []
    names = arguments.encoder or registry.encoders(space)
    encoders = {Path(name).stem: load_encoder(name, space) for name in names}
    for name, encoder in {**encoders, "the teacher's own": encode}.items():
        latents = [encoder(image) for image in images]
        mean = means(
            [
                measure(tensors.to_image(decode(mine)), tensors.to_image(image))
                for mine, image in zip(latents, images, strict=True)
            ]
        )
        one, two = (torch.cat([t[0].flatten(1) for t in ts], 1) for ts in (latents, targets))
        pairs = (torch.stack(pair) for pair in zip(one, two, strict=True))
        correlation = " ".join(f"{torch.corrcoef(pair)[0, 1].item():.2f}" for pair in pairs)
        distance = f"{(one - two).abs().mean():.3f}"
        rows.append(
            [name, f"{mean['psnr-rgb']:.2f}", f"{mean['lpips']:.3f}", distance, correlation]
        )
    print(table(["encoder", "PSNR", "LPIPS", "L1 to the teacher", "correlation"], rows))

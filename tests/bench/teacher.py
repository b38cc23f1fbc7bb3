"""Latents beside a teacher's: `python tests/bench/quality.py PICTURES TEACHER LPIPS`.

Every encoder's latents, not quantised, through the teacher's decoder. PICTURES is a folder
(Kodak's 24 for the README), TEACHER a TAESD or SD VAE in diffusers form, LPIPS the weights that
`dynenc train --lpips` takes. Prints Markdown. Whole files are measured by `dynenc eval`.
"""

import argparse
from pathlib import Path

import torch

from dynenc import load_encoder, registry
from dynenc.evaluation.benchmark import distortion
from dynenc.evaluation.lpips import LPIPS
from dynenc.imaging import image
from dynenc.imaging.sources import iter_images
from dynenc.networks.external_vae import load_teacher


@torch.inference_mode()
def through_teacher(arguments: argparse.Namespace, perceptual: LPIPS) -> None:
    """Latents that are not quantised, through the teacher's decoder."""
    encode, decode = load_teacher(arguments.teacher)
    pictures = [image.pad(image.to_tensor(p)) for _, p in iter_images(arguments.pictures)]
    targets = [encode(picture) for picture in pictures]
    print("| encoder, not quantised | PSNR | LPIPS | L1 to the teacher's latents | correlation |")
    print("|---|---|---|---|---|")
    encoders = {name: load_encoder(name) for name in registry.sd_encoders()}
    for name, encoder in {**encoders, "the teacher's own": encode}.items():
        latents = [encoder(picture) for picture in pictures]
        figures = [
            distortion(image.to_picture(decode(mine)), image.to_picture(picture), perceptual)
            for mine, picture in zip(latents, pictures, strict=True)
        ]
        psnr, lpips = (
            sum(one[name] for one in figures) / len(figures) for name in ("psnr-rgb", "lpips")
        )
        one, two = (torch.cat([t[0].flatten(1) for t in ts], 1) for ts in (latents, targets))
        pairs = (torch.stack(pair) for pair in zip(one, two, strict=True))
        similar = " ".join(f"{torch.corrcoef(pair)[0, 1].item():.2f}" for pair in pairs)
        print(
            f"| {name} | {psnr:.2f} | {lpips:.3f} | {(one - two).abs().mean():.3f} | {similar} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("lpips", type=Path)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    through_teacher(arguments, LPIPS(arguments.lpips))


if __name__ == "__main__":
    main()

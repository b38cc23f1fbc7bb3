"""The README's tables: `python tests/bench/quality.py encoders|files PICTURES TEACHER LPIPS`.

`encoders` measures latents, not quantised, through the teacher's decoder; `files` whole files.
PICTURES is a folder (Kodak's 24 for the README), TEACHER a TAESD or SD VAE in diffusers form, LPIPS
the weights that `dynenc train --lpips` takes. Prints Markdown.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from dynenc import Codec, image, load_encoder, metrics, models, rate
from dynenc.codec import read_latents
from dynenc.data import iter_images
from dynenc.decoder import load_teacher
from dynenc.lpips import LPIPS


@torch.inference_mode()
def through_teacher(arguments: argparse.Namespace, perceptual: LPIPS) -> None:
    """Latents that are not quantised, through the teacher's decoder."""
    encode, decode = load_teacher(arguments.teacher)
    pictures = [image.pad(image.to_tensor(p)) for _, p in iter_images(arguments.pictures)]
    targets = [encode(picture) for picture in pictures]
    print("| encoder, not quantised | PSNR | LPIPS | L1 to the teacher's latents | correlation |")
    print("|---|---|---|---|---|")
    encoders = {name: load_encoder(name) for name in models.names("encoder")}
    for name, encoder in {**encoders, "the teacher's own": encode}.items():
        latents = [encoder(picture) for picture in pictures]
        figures = [
            measure(decode(mine), picture, perceptual)
            for mine, picture in zip(latents, pictures, strict=True)
        ]
        psnr, _, lpips = torch.tensor(figures).mean(0).tolist()
        one, two = (torch.cat([t[0].flatten(1) for t in ts], 1) for ts in (latents, targets))
        pairs = (torch.stack(pair) for pair in zip(one, two, strict=True))
        similar = " ".join(f"{torch.corrcoef(pair)[0, 1].item():.2f}" for pair in pairs)
        print(
            f"| {name} | {psnr:.2f} | {lpips:.3f} | {(one - two).abs().mean():.3f} | {similar} |",
            flush=True,
        )


def measure(decoded: Tensor, original: Tensor, perceptual: LPIPS) -> tuple[float, float, float]:
    """PSNR in dB, MS-SSIM and LPIPS of a decoded picture, rounded to 8 bits and cropped."""
    height, width = original.shape[-2:]
    rebuilt = image.to_tensor(image.to_picture(decoded[..., :height, :width]))
    similarity = metrics.ms_ssim(rebuilt, original) or math.nan
    return metrics.psnr_db(rebuilt, original), similarity, perceptual(rebuilt, original).item()


@torch.inference_mode()
def whole_files(arguments: argparse.Namespace, perceptual: LPIPS) -> None:
    """Whole .lat files, through the embedded and the teacher's decoder."""
    print("| encoder | quality | bpp | embedded decoder: PSNR / MS-SSIM / LPIPS | teacher's |")
    print("|---|---|---|---|---|")
    _, decode = load_teacher(arguments.teacher)
    pictures = [picture for _, picture in iter_images(arguments.pictures)]
    names = models.names("encoder")
    points = [(name, rate.DEFAULT_QUALITY) for name in names]
    points += [(names[-1], quality) for quality in arguments.quality]
    for name, quality in points:
        codec = Codec(name, "embedded", "cpu")
        rows = []
        for picture in pictures:
            original = image.to_tensor(picture)
            blob = codec.encode(picture, quality=quality)
            _, latents = read_latents(blob)
            row = [metrics.bpp(len(blob), *picture.size)]
            for decoder in (codec.decoder, decode):
                row += measure(decoder(latents), original, perceptual)
            rows.append(row)
        bpp, *ours, psnr, _, lpips = torch.tensor(rows).mean(0).tolist()
        print(
            f"| {name} | {quality:g} | {bpp:.3f} | {ours[0]:.2f} / {ours[1]:.3f} / "
            f"{ours[2]:.3f} | {psnr:.2f} / {lpips:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["encoders", "files"])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("lpips", type=Path)
    parser.add_argument("--quality", type=float, nargs="+", default=[20, 80])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    perceptual = LPIPS(arguments.lpips)
    (through_teacher if arguments.table == "encoders" else whole_files)(arguments, perceptual)


if __name__ == "__main__":
    main()

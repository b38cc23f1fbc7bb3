"""The codec: image -> tensor -> latents -> symbols -> bytes, and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dynenc import metrics, registry, runtime
from dynenc.coding import bitstream, quantize, rate_control
from dynenc.coding.bitstream import Chunk
from dynenc.coding.lat_file import LatFile
from dynenc.coding.rate_control import Goal
from dynenc.errors import DeviceError, OtherLatents, UsageError
from dynenc.imaging import extras, image, pixels, tensors
from dynenc.imaging.tensors import Picture
from dynenc.latent_space import SD1
from dynenc.networks import loading
from dynenc.networks.compat import cpu_dtype
from dynenc.networks.encoder import Encoder
from dynenc.networks.published import PublishedEncoder
from dynenc.refine import STAGES, OnStep, Refiner

if TYPE_CHECKING:
    from dynenc.networks.tiling import Decoder

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "light"
FEATURE_ENCODER = "base"  # whose features refinement compares
TILE = 176  # patches; larger tiles need more memory and, as it is mapped anew, more time


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device of 'cpu', 'cuda', 'cuda:1', 'mps', or 'auto': a GPU if there is one.

    Raises: DeviceError if there is no such device; UsageError if DYNENC_CPU_DTYPE has no valid
        value.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    counts = {"cuda": max(1, torch.cuda.device_count()) if cuda else 0, "mps": int(mps), "cpu": 1}
    if device == "auto":
        device = next(kind for kind, count in counts.items() if count)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or (chosen.index or 0) >= counts.get(chosen.type, 0):
        raise DeviceError(f"there is no device {str(device)!r}", hint="use --device cpu or auto")
    if chosen.type == "cpu":
        cpu_dtype()  # so that a wrong setting is noticed before any work
    return chosen


@dataclass(frozen=True)
class Encoded:
    """An encoded image."""

    file: LatFile
    note: str = ""  # that a target was missed, for the user

    @cached_property
    def blob(self) -> bytes:
        """The bytes of the .lat file."""
        return self.file.to_bytes()

    @property
    def quality(self) -> float:
        """The quality of the file, 0..100; with a target the one that was found."""
        return self.file.quality


class Codec:
    """Image <-> bytes of a .lat file. Encoder and decoder are loaded when first used.

    Args:
        encoder: a name of `registry.names("encoder")`, such as 'light', or a .safetensors file that
            `loading.load_path` reads.
        decoder: 'auto', 'embedded', 'sd-vae', a hub id or a path; see `load_decoder`. Files of the
            autoencoder are decoded by its own decoder, which 'auto' and 'embedded' stand for.
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', or a `torch.device`.
    Raises: WeightsError if there is no such encoder, DeviceError.
    """

    def __init__(
        self,
        encoder: str | Path = DEFAULT_ENCODER,
        decoder: str | Path = "auto",
        device: str | torch.device = "auto",
    ) -> None:
        for name in (encoder, decoder):
            if not isinstance(name, str | Path):
                raise UsageError(f"{name!r} is not a name or path of an encoder or decoder")
        self.encoder_name, self.decoder_name = str(encoder), str(decoder)
        self.model = registry.encoder_model(self.encoder_name)
        self.device = pick_device(device)
        self._own_decoders: dict[str, Decoder] = {}

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | Path = DEFAULT_ENCODER,
        decoder: str | Path = "embedded",
        device: str | torch.device = "auto",
    ) -> Codec:
        """A codec with everything loaded, so that a missing part raises WeightsError at once."""
        codec = cls(encoder, decoder, device)
        _ = codec.encoder, codec.decoder_of(codec.model)
        return codec

    @cached_property
    @torch.inference_mode(False)  # first used within it, too, they are networks as any other
    def encoder(self) -> Encoder | PublishedEncoder:
        """Image [B, 3, H, W] in [-1, 1] -> latents [B, 4, H/8, W/8] in SD scale."""
        logger.debug("encoder: %s on %s", self.encoder_name, self.device)
        return loading.load_encoder(self.encoder_name).to(self.device)

    @cached_property
    @torch.inference_mode(False)
    def feature_encoder(self) -> Encoder:
        """The encoder whose features refinement compares."""
        return loading.load_named(FEATURE_ENCODER, "encoder").to(self.device)

    @cached_property
    @torch.inference_mode(False)
    def decoder(self) -> Decoder:
        """Latents [B, 4, h, w] in SD scale -> image [B, 3, 8h, 8w], about [-1, 1]."""
        from dynenc.networks.external_vae import load_decoder

        return load_decoder(self.decoder_name, self.device)

    @torch.inference_mode(False)
    def _own_decoder(self, model: registry.Model) -> Decoder:
        """The decoder of a model whose latent space is its own; loaded once."""
        from dynenc.networks.external_vae import load_decoder

        if model.name not in self._own_decoders:
            self._own_decoders[model.name] = load_decoder(model.name, self.device)
        return self._own_decoders[model.name]

    def decoder_of(self, model: registry.Model) -> Decoder:
        """The decoder for the latents of a model; raises OtherLatents if another one is chosen."""
        name = self.decoder_name
        if model.space is not SD1:
            if name not in ("auto", "embedded", model.name):
                raise OtherLatents(
                    f"the latents are those of {model.space.title}, which decoder {name} cannot "
                    "read",
                    hint="leave out --decoder",
                )
            return self._own_decoder(model)
        if name in registry.names("autoencoder"):
            raise OtherLatents(
                f"the latents are those of Stable Diffusion, which the {name} cannot read",
                hint="leave out --decoder",
            )
        return self.decoder

    @torch.inference_mode()
    def encode(
        self,
        picture: Picture | str | Path,
        *,
        quality: float | None = None,
        target_bpp: float | None = None,
        target_size: int | str | None = None,
        target_psnr: float | None = None,
        strict: bool = False,
        effort: int = 0,
        keep_metadata: bool = False,
    ) -> bytes:
        """Compress one image to the bytes of a .lat file.

        Args:
            picture: path of an image file, Pillow image of any mode, array [H, W, 3] uint8, or
                tensor [1, 3, H, W] (or [3, H, W]), uint8, or float in [-1, 1].
            quality: 0..100, higher is better and larger; 50 if no target is given. See
                `quantize.quality_to_step`.
            target_bpp: the largest file of at most so many bits per pixel.
            target_size: the largest file of at most so many bytes; "5KB" works, too.
            target_psnr: the smallest file that the codec's decoder decodes with so many dB.
            strict: raise TargetMissed if no file meets the target.
            effort: 0..9; above 0 the latents are refined through the codec's decoder, which takes
                time: a better image in no more bytes. See refine.py.
            keep_metadata: keep `exif`, `xmp` and `icc_profile` of the image's `info`.
        At most one of quality and the targets may be given. A target that cannot be reached is
        missed by as little as possible, which is logged, unless it is `strict`.
        Raises: ImageError if the image cannot be read, has a side of 0 or above 65,535 px, or
            another shape or dtype; UsageError if an argument is out of range; OutOfMemory if there
            is too little for the effort.
        Warns: PictureWarning of what cannot be kept; see `pixels.to_plain`, `metadata.of`.
        """
        goal = rate_control.goal(
            quality,
            target_bpp=target_bpp,
            target_size=target_size,
            target_psnr=target_psnr,
            strict=strict,
        )
        if isinstance(picture, str | Path):
            picture = image.open_image(Path(picture), keep_metadata=keep_metadata)
        [encoded] = self.encode_batch([picture], goal, effort, keep_metadata=keep_metadata)
        if encoded.note:
            logger.info(encoded.note)
        return encoded.blob

    @torch.inference_mode()
    def encode_batch(
        self,
        pictures: Sequence[Picture],
        goal: Goal,
        effort: int = 0,
        *,
        keep_metadata: bool = False,
        on_step: OnStep | None = None,
    ) -> list[Encoded]:
        """As `encode`, for images that have the same size once padded; the encoder runs once.

        Args:
            on_step: called after each step of refinement with its number and the total.
        """
        if effort not in range(len(STAGES) + 1):
            raise UsageError(f"effort {effort!r} is not a whole number within 0..{len(STAGES)}")
        pictures = [pixels.to_plain(p) if isinstance(p, Image.Image) else p for p in pictures]
        chunks = [
            extras.to_chunks(extras.of(picture, keep_metadata=keep_metadata))
            if isinstance(picture, Image.Image)
            else []
            for picture in pictures
        ]
        checked = [tensors.checked(picture) for picture in pictures]
        height, width = tensors.size_of(checked[0])
        with runtime.threads_for(height * width):
            latents = self._latents(checked).split(1)
            return [
                _Encoding(self, *each, effort, on_step).for_goal(goal)
                for each in zip(latents, checked, chunks, strict=True)
            ]

    def _latents(self, pictures: list[Image.Image | Tensor]) -> Tensor:
        """Latents [B, C, h, w] of equally large images, tile by tile.

        A tile is encoded with the patches around it that its latents depend on, so the result
        equals that of the whole.
        """
        height, width = SD1.size(*tensors.size_of(pictures[0]))
        size = len(pictures), SD1.channels, height, width
        latents = torch.empty(size, dtype=torch.float32, device=self.device)
        reach = self.encoder.reach
        for top, left in product(range(0, height, TILE), range(0, width, TILE)):
            first, start = max(0, top - reach), max(0, left - reach)
            edges = start, first, left + TILE + reach, top + TILE + reach
            box = [SD1.patch * edge for edge in edges]
            tiles = tensors.batch([tensors.part_of(picture, *box) for picture in pictures])
            part = self.encoder(tiles.to(self.device))[:, :, top - first :, left - start :]
            latents[:, :, top : top + TILE, left : left + TILE] = part[:, :, :TILE, :TILE]
        return latents

    def decode(
        self, file: bytes | str | Path | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS
    ) -> Image.Image:
        """Decode a .lat file: RGB, or RGBA, L or LA if the image was; 8 bits, sRGB.

        Metadata that was kept is in its `info`; with `icc_profile` the pixels are of that profile.

        Args:
            file: the bytes of a .lat file, its path, or what `LatFile.parse` returned.
            max_pixels: refuse files that declare more pixels.
        Raises: BitstreamError, WeightsError.
        """
        parsed = parse(file, max_pixels=max_pixels)
        found = extras.from_chunks(parsed.chunks, parsed.header.width, parsed.header.height)
        [picture] = self.decode_batch([parsed])
        return extras.restore(picture, found)

    @torch.inference_mode()
    def decode_batch(self, files: Sequence[LatFile]) -> list[Image.Image]:
        """The colours of files of one shape and model, in one pass: RGB.

        Of a large image only a band is held as floats at any time.
        """
        pictures = [Image.new("RGB", (f.header.width, f.header.height)) for f in files]
        top = 0
        latents = torch.stack([torch.from_numpy(file.latents) for file in files])
        with runtime.threads_for(pictures[0].width * pictures[0].height):
            for band in self.decoder_of(files[0].model).bands(latents):
                for picture, rows in zip(pictures, band.split(1), strict=True):
                    picture.paste(tensors.to_picture(rows), (0, top))  # clips the padding
                top += band.shape[2]
        return pictures

    @torch.inference_mode()
    def decode_tensor(
        self, file: bytes | str | Path | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS
    ) -> Tensor:
        """The colours alone, as [1, 3, H, W] float32 in [-1, 1] on the codec's device.

        The arguments and errors are those of `decode`.
        """
        parsed = parse(file, max_pixels=max_pixels)
        latents = torch.from_numpy(parsed.latents)[None]
        decoded: Tensor = self.decoder_of(parsed.model)(latents)
        return decoded[..., : parsed.header.height, : parsed.header.width].clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class _Encoding:
    """One image on its way to a file: latents that can be quantised with any step."""

    codec: Codec
    latents: Tensor  # [1, C, h, w]
    picture: Image.Image | Tensor  # checked
    chunks: list[Chunk]
    effort: int
    on_step: OnStep | None

    def for_goal(self, goal: Goal) -> Encoded:
        """The file that comes nearest to a goal."""
        if goal.kind == "quality":
            has_trellis = self.codec.model.has_trellis
            step_q = quantize.quality_to_step(goal.value, has_trellis=has_trellis)
            return Encoded(self._refined(self._file(step_q)))
        if goal.kind == "dB":
            return self._for_psnr(goal)
        height, width = tensors.size_of(self.picture)
        max_bytes = goal.value * (height * width / 8 if goal.kind == "bpp" else 1)
        files: dict[int, LatFile] = {}

        def measure(step_q: int) -> float:
            files[step_q] = self._file(step_q)
            n_bytes = len(files[step_q].to_bytes())
            return metrics.bpp(n_bytes, width, height) if goal.kind == "bpp" else n_bytes

        step_q, reached = rate_control.search(measure, goal.value, at_most=True)
        return Encoded(self._refined(files[step_q], max_bytes), goal.note(reached))

    def _for_psnr(self, goal: Goal) -> Encoded:
        original = tensors.to_tensor(self.picture).cpu()
        files: dict[int, LatFile] = {}

        def measure(step_q: int) -> float:
            files[step_q] = self._refined(self._file(step_q))
            [decoded] = self.codec.decode_batch([files[step_q]])
            return metrics.psnr_db(tensors.to_tensor(decoded), original)

        step_q, reached = rate_control.search(measure, goal.value, at_most=False)
        return Encoded(files[step_q], goal.note(reached))

    def _file(self, step_q: int) -> LatFile:
        height, width = tensors.size_of(self.picture)
        latents = self.latents[0].float().cpu().numpy()
        return LatFile.of_latents(latents, (width, height), step_q, self.codec.model, self.chunks)

    def _refined(self, file: LatFile, max_bytes: float = math.inf) -> LatFile:
        """The file after the effort; as large as it is if max_bytes is less."""
        if not self.effort:
            return file
        codec = self.codec
        decoder = codec.decoder_of(codec.model)
        refiner = Refiner(codec.feature_encoder, decoder, self.effort, self.on_step)
        original = tensors.to_tensor(self.picture).to(codec.device)
        return refiner.refine(file, self.latents, original, max_bytes)


def parse(file: bytes | str | Path | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS) -> LatFile:
    """The .lat file of some bytes or at a path, or one parsed before; raises BitstreamError."""
    if isinstance(file, LatFile):
        return file
    if isinstance(file, str | Path):
        return LatFile.open(str(file), max_pixels=max_pixels)
    if not isinstance(file, bytes | bytearray | memoryview):
        raise UsageError(f"a {type(file).__name__} is not a .lat file: pass its bytes or its path")
    return LatFile.parse(bytes(file), max_pixels=max_pixels)


def require_sd(file: LatFile) -> None:
    """Raise OtherLatents unless the latents of a file are those of Stable Diffusion."""
    if file.model.space is not SD1:
        raise OtherLatents(
            f"the latents are those of {file.model.space.title}, not of Stable Diffusion: decode "
            "the file"
        )

"""The codec: image -> tensor -> latents -> symbols -> bytes, and back. No paths here."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dynenc import metrics, registry
from dynenc.coding import bitstream, quantize, rate_control
from dynenc.coding.bitstream import Chunk, Header
from dynenc.coding.entropy import EntropyModel
from dynenc.coding.rate_control import Goal
from dynenc.errors import DeviceError, OtherLatents, UnknownModel
from dynenc.imaging import extras, image
from dynenc.imaging.extras import Extras
from dynenc.imaging.image import Picture
from dynenc.latent_space import SD1
from dynenc.networks import loading
from dynenc.networks.encoder import Encoder
from dynenc.networks.published import PublishedEncoder
from dynenc.refine import STAGES, refine

if TYPE_CHECKING:
    from dynenc.networks.external_vae import Decoder

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "light"
EYE = "base"  # the encoder that sees most
PLAIN_CODER = "plain"  # of efforts, whose descent chooses how to round, and of flat pictures
FLAT = 1.5  # bits a latent; below, it may be that plain rounding costs less, as constants repeat
WORTH = 0.09  # squared error, in steps, that a bit is worth between coders: the slope of fine steps
TILE = 176  # patches; larger tiles need more memory and, as it is mapped anew, more time


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of 'cpu', 'cuda', 'mps' or 'auto', a GPU if there is one.

    Raises: DeviceError if it is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if not there.get(name, False):
        raise DeviceError(f"there is no device {name!r} here", hint="use --device cpu or auto")
    return torch.device(name)


@cache
def entropy_model(name: str) -> EntropyModel:
    """The entropy coder of a name in `registry.MODELS`; raises WeightsError."""
    return EntropyModel.load(registry.read_file(registry.named(name, "coder")))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A .lat file, and what its maker should know."""

    blob: bytes
    note: str = ""  # that a target was missed


class Codec:
    """Picture <-> bytes of a .lat file. Encoder and decoder are loaded when first used.

    Args:
        encoder: a name of `models.names("encoder")`, such as 'light', or a .safetensors file that
            `weights.load_path` reads.
        decoder: 'auto', 'embedded', 'sd-vae', a hub id or a path; see `decoder.load_decoder`.
            Files of the autoencoder are decoded by its own, which 'auto' and 'embedded' stand for.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
    Raises: WeightsError if there is no such encoder.
    """

    def __init__(
        self, encoder: str = DEFAULT_ENCODER, decoder: str = "auto", device: str = "auto"
    ) -> None:
        self.model = registry.chosen(encoder)
        self.encoder_name = encoder
        self.decoder_name = decoder
        self.device = pick_device(device)

    @classmethod
    def from_pretrained(
        cls, encoder: str = DEFAULT_ENCODER, decoder: str = "embedded", device: str = "auto"
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
    def eye(self) -> Encoder:
        """The encoder whose features tell an effort what looks alike."""
        return loading.load_named(EYE, "encoder").to(self.device)

    @cached_property
    @torch.inference_mode(False)
    def decoder(self) -> Decoder:
        """Latents [B, 4, h, w] in SD scale -> image [B, 3, 8h, 8w], about [-1, 1]."""
        from dynenc.networks.external_vae import load_decoder

        return load_decoder(self.decoder_name, self.device)

    @cached_property
    @torch.inference_mode(False)
    def own_decoder(self) -> Decoder:
        """The decoder of the autoencoder's latents."""
        from dynenc.networks.external_vae import load_decoder

        return load_decoder("autoencoder", self.device)

    def decoder_of(self, model: registry.Model) -> Decoder:
        """The decoder for the latents of a model; raises OtherLatents if it is not as asked for."""
        asked = self.decoder_name
        if model.kind == "autoencoder":
            if asked not in ("auto", "embedded", model.name):
                raise OtherLatents(
                    f"the latents are those of the {model.name}, which decoder {asked} cannot "
                    "read: leave the decoder to dynenc"
                )
            return self.own_decoder
        if asked in registry.names("autoencoder"):
            raise OtherLatents(
                f"the latents are those of Stable Diffusion, which the {asked} cannot read: "
                "leave the decoder to dynenc"
            )
        return self.decoder

    @torch.inference_mode()
    def encode(
        self,
        picture: Picture,
        *,
        quality: float | None = None,
        target_bpp: float | None = None,
        target_size: int | str | None = None,
        target_psnr: float | None = None,
        effort: int = 0,
        keep_metadata: bool = False,
    ) -> bytes:
        """Compress one picture to the bytes of a .lat file.

        At most one of the next four is given; without any the quality is 50.

        Args:
            picture: Pillow image of any mode, array [H, W, 3] uint8, or tensor [1, 3, H, W] (or
                [3, H, W]), uint8, or float in [-1, 1].
            quality: 0..100, higher is better and larger; see `quantize.quality_to_step`.
            target_bpp, target_size: the largest file of at most so many bits per pixel, or bytes
                ("5KB" does too).
            target_psnr: the smallest file that the codec's decoder rebuilds with so many dB.
            effort: 0..9; above 0 the latents are refined through the codec's decoder, which takes
                time: a better picture in no more bytes. See `refine`.
            keep_metadata: keep `exif`, `xmp` and `icc_profile` of the image's `info`.
        A target that cannot be reached is missed by as little as possible, and the log says so.
        Raises: ImageError if a side is 0 or above 65,535 px or the picture has another shape,
            ValueError if quality or effort is out of range, UsageError if targets make no sense,
            OutOfMemory if there is too little for the effort.
        Warns: PictureWarning of what cannot be kept; see `image.to_plain`, `metadata.of`.
        """
        goal = rate_control.goal(
            quality, target_bpp=target_bpp, target_size=target_size, target_psnr=target_psnr
        )
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
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Encoded]:
        """As `encode`, for pictures that are equally large once padded, in one pass.

        Args:
            on_step: called after each step of an effort with its number and that of all.
        """
        if not 0 <= effort <= len(STAGES):
            raise ValueError(f"effort {effort} is not within 0..{len(STAGES)}")
        pictures = [image.to_plain(p) if isinstance(p, Image.Image) else p for p in pictures]
        chunks = [
            extras.to_chunks(extras.of(picture, keep_metadata=keep_metadata))
            if isinstance(picture, Image.Image)
            else []
            for picture in pictures
        ]
        checked = [image.checked(picture) for picture in pictures]
        latents = self._latents(checked).split(1)
        return [
            self._encoded(*each, goal, effort, on_step)
            for each in zip(latents, checked, chunks, strict=True)
        ]

    def _encoded(
        self,
        latents: Tensor,
        picture: Image.Image | Tensor,
        chunks: list[Chunk],
        goal: Goal,
        effort: int,
        on_step: Callable[[int, int], None] | None,
    ) -> Encoded:
        """The file of one checked picture and its latents that comes nearest to a goal."""
        height, width = image.size_of(picture)
        coder = entropy_model(self.model.coder)

        @cache
        def file(step_q: int, effort: int = 0, most_bytes: float = math.inf) -> bytes:
            blob = write_latents(latents, width, height, step_q, self.model, chunks)
            if not effort:
                return blob
            original = image.to_tensor(picture).to(self.device)
            networks = self.eye, self.decoder_of(self.model)
            return refined(blob, latents, original, effort, *networks, most_bytes, on_step)

        def bytes_or_bpp(step_q: int) -> float:
            blob = file(step_q)
            return metrics.bpp(len(blob), width, height) if goal.kind == "bpp" else len(blob)

        def psnr_db(step_q: int) -> float:
            read = read_latents(file(step_q, effort), max_pixels=sys.maxsize)
            [rebuilt] = self.decode_batch([read])
            return metrics.psnr_db(image.to_tensor(rebuilt), image.to_tensor(picture).cpu())

        if goal.kind == "quality":
            return Encoded(file(quantize.quality_to_step(goal.value, coder), effort))
        if goal.kind == "dB":
            step_q, reached = rate_control.search(psnr_db, goal.value, at_most=False)
            return Encoded(file(step_q, effort), goal.note(reached))
        step_q, reached = rate_control.search(bytes_or_bpp, goal.value, at_most=True)
        most_bytes = goal.value * (height * width / 8 if goal.kind == "bpp" else 1)
        return Encoded(file(step_q, effort, most_bytes), goal.note(reached))

    def _latents(self, pictures: list[Image.Image | Tensor]) -> Tensor:
        """Latents [B, 4, h, w] of equally large pictures, tile by tile.

        A tile is read with the patches around it that its latents depend on, and equals the same
        part of the whole.
        """
        height, width = SD1.size(*image.size_of(pictures[0]))
        latents = torch.empty(len(pictures), SD1.channels, height, width, device=self.device)
        reach = self.encoder.reach
        for top, left in product(range(0, height, TILE), range(0, width, TILE)):
            first, start = max(0, top - reach), max(0, left - reach)
            edges = start, first, left + TILE + reach, top + TILE + reach
            box = [SD1.patch * edge for edge in edges]
            tiles = image.batch([image.part_of(picture, *box) for picture in pictures])
            part = self.encoder(tiles.to(self.device))[:, :, top - first :, left - start :]
            latents[:, :, top : top + TILE, left : left + TILE] = part[:, :, :TILE, :TILE]
        return latents

    def decode(self, blob: bytes, *, max_pixels: int = bitstream.MAX_PIXELS) -> Image.Image:
        """Rebuild the picture of a .lat file: RGB, or RGBA, L or LA if it was; 8 bits, sRGB.

        Metadata that was kept is in its `info`; with `icc_profile` the pixels are of that profile.
        Raises: BitstreamError or WeightsError.
        """
        [picture] = self.decode_batch([read_latents(blob, max_pixels=max_pixels)])
        return extras.restore(picture, read_extras(blob))

    @torch.inference_mode()
    def decode_batch(self, read: Sequence[tuple[Header, Tensor]]) -> list[Image.Image]:
        """The colours of what `read_latents` gave, of one shape and encoder, in one pass: RGB.

        Only a band of a large picture is there as floats at any time.
        """
        pictures = [Image.new("RGB", (header.width, header.height)) for header, _ in read]
        top = 0
        decoder = self.decoder_of(maker(read[0][0]))
        for band in decoder.bands(torch.cat([latents for _, latents in read])):
            for picture, rows in zip(pictures, band.split(1), strict=True):
                picture.paste(image.to_picture(rows), (0, top))  # the padding falls off
            top += band.shape[2]
        return pictures

    @torch.inference_mode()
    def decode_tensor(self, blob: bytes, *, max_pixels: int = bitstream.MAX_PIXELS) -> Tensor:
        """The colours alone, as [1, 3, H, W] float32 in [-1, 1] on the codec's device."""
        header, latents = read_latents(blob, max_pixels=max_pixels)
        decoded: Tensor = self.decoder_of(maker(header))(latents)
        return decoded[..., : header.height, : header.width].clamp(-1, 1)


def write_latents(
    latents: Tensor,
    width: int,
    height: int,
    step_q: int,
    made_by: registry.Model,
    chunks: Sequence[Chunk] = (),
    *,
    rounded: bool = False,
) -> bytes:
    """The .lat file of latents, which are rounded here.

    Args:
        latents: [1, 4, h, w] float in SD scale; h and w are the picture's sides / 8, rounded up.
        width, height: of the picture, px, 1..65535.
        step_q: quantiser step in 1/1024 of a latent unit, 1..65535.
        made_by: one of `models.MAKERS`.
        chunks: of `extras.to_chunks`.
        rounded: they were rounded with this step before, by some coder, and stay as they are.
    """
    if rounded:
        name, symbols = _as_rounded(latents, step_q, made_by.coder)
        payload = entropy_model(name).encode(symbols, step_q)
    else:
        name, payload = _coded(latents, step_q, made_by.coder)
    header = Header(width, height, step_q, made_by.number, registry.named(name, "coder").number)
    return bitstream.write(header, payload, chunks)


def _as_rounded(latents: Tensor, step_q: int, coder: str) -> tuple[str, quantize.Ints]:
    """The coder whose lattices rounded latents are on, and their symbols.

    Of equals it is the given one, or else the newest.
    """
    choices = [
        (name, quantize.to_symbols(latents, step_q, entropy_model(name), 0))
        for name in dict.fromkeys((coder, *registry.names("coder")[::-1]))
    ]
    return min(choices, key=lambda choice: _squared_error(latents, step_q, *choice))


def _coded(latents: Tensor, step_q: int, coder: str) -> tuple[str, bytes]:
    """The payload of latents and its coder: of flat latents the plain one if cheaper."""

    def by(name: str) -> tuple[str, quantize.Ints, bytes]:
        model = entropy_model(name)
        symbols = quantize.to_symbols(latents, step_q, model)
        return name, symbols, model.encode(symbols, step_q)

    def cost(choice: tuple[str, quantize.Ints, bytes]) -> float:
        name, symbols, payload = choice
        return _squared_error(latents, step_q, name, symbols) + WORTH * 8 * len(payload)

    best = by(coder)
    if entropy_model(coder).is_dependent and 8 * len(best[2]) < FLAT * latents.numel():
        best = min(best, by(PLAIN_CODER), key=cost)
    name, _, payload = best
    return name, payload


def _squared_error(latents: Tensor, step_q: int, coder: str, symbols: quantize.Ints) -> float:
    """How far a coder's symbols are from latents, in steps: the sum of squares."""
    again = quantize.from_symbols(symbols, step_q, entropy_model(coder))
    error = (again - latents.cpu()) * (quantize.STEP_UNIT / step_q)
    return error.square().sum().item()


def refined(
    blob: bytes,
    latents: Tensor,
    picture: Tensor,
    effort: int,
    eye: Encoder,
    decoder: Decoder,
    most_bytes: float = math.inf,
    on_step: Callable[[int, int], None] | None = None,
) -> bytes:
    """A .lat file with a better picture than another, or that one if none is found: see `refine`.

    Args:
        blob: the file that `write_latents` made of the latents.
        picture: [1, 3, H, W] in [-1, 1], on the decoder's device.
        effort: 1..9.
        most_bytes: of the new file; infinite, or fewer than the other has: as many as it has.
    """
    header, plain = read_latents(blob, max_pixels=sys.maxsize)
    _, payload, chunks = bitstream.read_all(blob, sys.maxsize)
    most_payload = len(payload)
    if math.isfinite(most_bytes):
        most_payload += max(0, int(most_bytes) - len(blob))
    coder = entropy_model(PLAIN_CODER)
    networks = coder, eye, decoder
    symbols = refine(
        latents, plain, picture, header.step_q, effort, *networks, most_payload, on_step
    )
    if symbols is None:
        return blob
    header = replace(header, coder_id=registry.named(PLAIN_CODER, "coder").number, flags=0)
    return bitstream.write(header, coder.encode(symbols, header.step_q), chunks)


def read_latents(blob: bytes, *, max_pixels: int = bitstream.MAX_PIXELS) -> tuple[Header, Tensor]:
    """The header and the latents [1, 4, h, w] float32 in SD scale of a .lat file.

    Integers alone decide how the payload is read, so the latents are the same on every machine.
    Raises: BitstreamError and nothing else, whatever the bytes.
    """
    header, payload = bitstream.read(blob, max_pixels)
    maker(header)
    coder = registry.numbered(header.coder_id, "coder")
    if coder is None:
        raise UnknownModel(
            f"the file was written with entropy coder {header.coder_id}, unknown: update dynenc"
        )
    height, width = SD1.size(header.height, header.width)
    model = entropy_model(coder.name)
    symbols = model.decode(payload, height, width, header.step_q)
    return header, quantize.from_symbols(symbols, header.step_q, model)


def require_sd(header: Header) -> None:
    """Raise OtherLatents unless the latents of a file are those of Stable Diffusion."""
    model = maker(header)
    if model.space is not SD1:
        raise OtherLatents(
            f"the latents are those of the {model.name}, not of Stable Diffusion: decode the file"
        )


def maker(header: Header) -> registry.Model:
    """What made the latents of a file; raises UnknownModel."""
    model = registry.maker(header.model_id)
    if model is None:
        raise UnknownModel(
            f"the file was written by encoder {header.model_id}, unknown here: update dynenc"
        )
    return model


def read_extras(blob: bytes) -> Extras:
    """What the picture of a .lat file that `read_latents` has read has beside its colours.

    Raises: Corrupt if a chunk that this dynenc knows is damaged.
    """
    header, _, chunks = bitstream.read_all(blob, sys.maxsize)
    return extras.from_chunks(chunks, header.width, header.height)

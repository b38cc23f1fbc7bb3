"""Decoders of SD 1.x latents: the embedded one, and the autoencoders that others trained.

With `autoencoder` the only module that knows `diffusers`, which is imported when a foreign decoder
is loaded and not before. A name of a decoder is one of

    auto       an SD VAE that is already on this disk, else the embedded decoder; never downloads
    embedded   the small decoder that travels with dynenc
    autoencoder   that of the autoencoder, for its own latents only
    sd-vae     the SD VAE; downloaded from the Hugging Face hub if it is not on this disk
    anything else: a folder in diffusers form (or with one in `vae/`), a .safetensors file in
               diffusers' or CompVis' naming, or a hub id such as stabilityai/sd-vae-ft-mse
"""

import itertools
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dynenc import registry
from dynenc.errors import WeightsError
from dynenc.latent_space import SD1, SDXL
from dynenc.networks import loading
from dynenc.networks.compat import fast_dtype, in_bfloat16
from dynenc.networks.embedded_decoder import Cut, EmbeddedDecoder

logger = logging.getLogger(__name__)

SDXL_NAME = re.compile("sd[-_]?xl|diffusion-xl", re.IGNORECASE)
OVERLAP = 24  # latents that neighbouring tiles share
MARGIN = 4  # of them, at each tile's edge, not used: padding spoils them
EMBEDDED_TILES = {  # equal the whole: of its reach of 13 latents the outer 7 change no 8 bits
    "tile": 116,  # larger ones are slower: glibc maps tensors of over 32 MB anew every time
    "margin": 6,
    "overlap": 13,
}
LIMIT = 16.0  # magnitude at which latents are clamped; encoders write up to 3.2 of photographs,
# 6.2 of synthetic patterns (the autoencoder 6.7 and 8.3), and TAESD 6.3
# bfloat16 keeps pixels 50 dB from those in float32 for at least so many positions of latents (one
# level of one pixel weighs too much in fewer), of at most this root mean square and magnitude
BFLOAT16_LEAST, BFLOAT16_RMS, BFLOAT16_MOST = 64, 2.0, 8.0
LARGE_TILE, SMALL_TILE = 256, 96  # latents, side of a tile of a small and of a big decoder

VARIABLE = "DYNENC_SD_VAE"  # environment: path or hub id of the SD VAE to use
SD_VAES = (  # the first is downloaded if asked for; all are looked for in the hub cache
    "stabilityai/sd-vae-ft-mse",
    "stabilityai/sd-vae-ft-ema",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PARTS = ("encoder.", "quant_conv.", "decoder.", "post_quant_conv.")  # of an autoencoder
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which decoder a name stands for, on this machine and now."""

    name: str  # for messages and reports: "embedded", a hub id or a path
    note: str  # why this one, and how to get the other
    path: Path | None = None  # on this disk; None: the embedded one, or still to be downloaded


class Decoder(nn.Module):
    """A decoder of SD latents, whatever its own scale, in tiles if the latents are large.

    Latents are first clamped to -LIMIT..LIMIT, far beyond what encoders write: what networks make
    of larger ones depends on the last bit of the arithmetic, hence on the machine.

    Shapes: [B, 4, h, w] in SD scale, any device and dtype -> [B, 3, 8h, 8w] float32, about [-1, 1],
    on the network's device. Gradient flows through it.

    Args:
        name: for messages and reports.
        network: what decodes a tile, [B, 4, h, w] -> [B, 3, 8h, 8w].
        scale, shift: of its own latents, times SD's.
        tile: side of a tile, in latents, more than 2 * margin + 1.
        margin: latents at a tile's inner edges that are not used, as padding spoils them: tiles
            equal the whole if no pixel depends on latents farther away.
        overlap: latents that neighbouring tiles share, more than 2 * margin; they blend linearly
            over the rest.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        tile: int = LARGE_TILE,
        margin: int = MARGIN,
        overlap: int = OVERLAP,
    ) -> None:
        super().__init__()
        self.name, self.network = name, network
        self.scale, self.shift = scale, shift
        self.tile, self.margin, self.overlap = tile, margin, overlap
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode: [B, 4, h, w] in SD scale -> [B, 3, 8h, 8w], about [-1, 1]."""
        bands = list(self.bands(latents))
        return bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    def bands(self, latents: Tensor) -> Iterator[Tensor]:
        """As `forward`, but bands [B, 3, rows, 8w] from top to bottom, one in memory at a time.

        Tiles are equally large, overlap, and are blended linearly: diffusers' own tiling leaves a
        narrow strip as the last tile, whose statistics are its own.
        """
        latents = latents.clamp(-LIMIT, LIMIT)
        precise = not _suit_bfloat16(latents)
        rows, columns = (
            _spans(side, self.tile, self.margin, self.overlap) for side in latents.shape[-2:]
        )
        if len(rows) == len(columns) == 1:
            yield self._decode(latents, precise)
            return
        like = next(self.network.parameters())
        width = latents.shape[3] * SD1.patch
        begun = torch.zeros(len(latents), 3, 0, width, dtype=torch.float32, device=like.device)
        for row, below in itertools.zip_longest(rows, rows[1:]):
            weight_y = row.weight.to(like.device)[:, None]
            band = F.pad(begun, (0, 0, 0, len(weight_y) - begun.shape[2]))
            for column in columns:
                tile = latents[..., row.latents, column.latents]
                part = self._decode(tile, precise, (*column.cut, *row.cut))
                band[..., column.pixels] += part * weight_y * column.weight.to(like.device)
            done = below.pixels.start - row.pixels.start if below else band.shape[2]
            begun = band[:, :, done:].clone()
            yield band[:, :, :done]

    def _decode(self, latents: Tensor, precise: bool, cut: Cut = (0, 0, 0, 0)) -> Tensor:
        """Decode one tile, and cut off the pixels of some latents at its edges.

        With `precise`, the embedded decoder computes in float32 everywhere.
        If the result is not finite in half precision, the network stays in float32 from then on.
        """
        like = next(self.network.parameters())
        inputs = latents.to(like.device, torch.float32) / self.scale + self.shift
        inputs = inputs.to(like.dtype, memory_format=torch.channels_last)
        image: Tensor
        if isinstance(self.network, EmbeddedDecoder):
            with nullcontext() if precise else in_bfloat16(inputs):
                image = self.network(inputs, cut).float()
        else:
            image = F.pad(self.network(inputs).float(), [-SD1.patch * count for count in cut])
        if like.dtype != torch.float32 and not image.isfinite().all():
            with torch.inference_mode(False):  # else no gradient could ever flow through it again
                self.network.float()
            return self._decode(latents, precise, cut)
        return image


def _suit_bfloat16(latents: Tensor) -> bool:
    """Whether pixels stay 50 dB from those in float32 if [B, 4, h, w] are decoded in bfloat16."""
    if latents.device.type != "cpu" or torch.compiler.is_compiling():
        return True  # not decided here
    pictures = latents.detach().float().flatten(1)
    largest, rms = pictures.abs().amax(), pictures.square().mean(1).sqrt().amax()
    few = latents.shape[-2] * latents.shape[-1] < BFLOAT16_LEAST
    return not few and bool(largest <= BFLOAT16_MOST) and bool(rms <= BFLOAT16_RMS)


@dataclass(frozen=True, slots=True)
class _Span:
    """A tile along one side of the latents."""

    latents: slice  # what the network sees
    cut: tuple[int, int]  # of them at both ends, what is not used
    pixels: slice  # of the image, what the rest stands for
    weight: Tensor  # of each of these pixels; those of all tiles sum to 1


def _spans(length: int, tile: int, margin: int = MARGIN, overlap: int = OVERLAP) -> list[_Span]:
    """Tiles along one side, equally long and at most `tile`.

    The weight of a tile is its own ramp less that of the next tile.
    """
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [i * (length - size) // max(1, count - 1) for i in range(count)]
    pixel = torch.arange(length * SD1.patch, dtype=torch.float32, device="cpu") + 0.5
    ramp = (overlap - 2 * margin) * SD1.patch
    rises = [((pixel - (start + margin) * SD1.patch) / ramp).clamp(0, 1) for start in starts]
    rises = [torch.ones_like(pixel), *rises[1:], torch.zeros_like(pixel)]
    spans = []
    for i, start in enumerate(starts):
        cut = (margin if i > 0 else 0, margin if i + 1 < count else 0)
        pixels = slice((start + cut[0]) * SD1.patch, (start + size - cut[1]) * SD1.patch)
        weight = (rises[i] - rises[i + 1])[pixels]
        spans.append(_Span(slice(start, start + size), cut, pixels, weight))
    return spans


def resolve(name: str = "auto") -> Choice:
    """Say which decoder a name stands for, without loading or downloading anything.

    Raises: WeightsError if the name, or the one in DYNENC_SD_VAE, cannot be a decoder.
    """
    if name in registry.names("autoencoder"):
        return Choice(name, "as asked")
    if name == "embedded":
        return Choice(name, "as asked")
    if name not in ("auto", "sd-vae"):
        return Choice(name, "as asked", _on_disk(name))
    if own := os.environ.get(VARIABLE):
        try:
            path = _on_disk(own)
        except WeightsError as exc:
            raise WeightsError(f"{VARIABLE} is set, but {exc}") from exc
        if path is None and name == "auto":
            raise WeightsError(
                f"{own}, named by {VARIABLE}, is not on this disk",
                hint=f"download it once with --decoder {own}, or unset {VARIABLE}",
            )
        return Choice(own, f"named by {VARIABLE}; the embedded decoder is faster", path)
    for repository in SD_VAES:
        if path := _from_hub(repository, download=False):
            note = "found in the hub cache; the embedded decoder is faster"
            return Choice(repository, note, path)
    if name == "sd-vae":
        return Choice(SD_VAES[0], "from the Hugging Face hub; the embedded decoder is faster")
    note = "no SD VAE is on this disk; sd-vae, a 335 MB download, gives finer detail"
    return Choice("embedded", note)


def load_decoder(name: str | Choice = "auto", device: torch.device | str = "cpu") -> Decoder:
    """Load a decoder by name (see the top of this module) or as `resolve` chose it.

    Foreign decoders run in float16 on an accelerator, in bfloat16 on a CPU made for it, else in
    float32; the embedded one keeps float32 weights, and computes as `layers.in_bfloat16` says.

    Raises: WeightsError if there is no such decoder, it cannot be read, or is not for SD latents.
    """
    choice = resolve(name) if isinstance(name, str) else name
    device = torch.device(device)
    if name == "auto":
        logger.info("decoder: %s, %s", choice.name, choice.note)
    else:
        logger.debug("decoder: %s on %s", choice.name, device)
    if choice.name in registry.names("decoder"):
        network = loading.load_named(choice.name, "decoder")
        return Decoder(choice.name, network, **EMBEDDED_TILES).to(device)
    _diffusers(choice.name)
    path = choice.path or _from_hub(choice.name, download=True)
    if path is None:
        raise WeightsError(
            f"{choice.name} on the Hugging Face hub holds no {WEIGHTS[0]}, neither at its top nor "
            "in vae/: name another decoder"
        )
    decoder = _decoder(choice.name, _load(path, choice.name, PARTS[2:]))
    return decoder.to(device, fast_dtype(device))


def load_teacher(path: Path | str) -> tuple[nn.Module, Decoder]:
    """Load both halves of an autoencoder of SD latents that is on this disk, frozen, in float32.

    Returns: encoder, [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale, and `Decoder`.
    Raises: WeightsError as `load_decoder`.
    """
    found = _on_disk(str(path))
    if found is None:
        raise WeightsError(f"{path} is not on this disk: download it first")
    vae = _load(found, str(path), PARTS)
    decoder, encoder = _decoder(str(path), vae), vae.encoder
    if type(vae).__name__ == "AutoencoderKL":
        encoder = nn.Sequential(encoder, vae.quant_conv or nn.Identity())
        encoder = _MeanEncoder(encoder, decoder.scale, decoder.shift)
    return encoder.eval().requires_grad_(False), decoder


class _MeanEncoder(nn.Module):
    """The encoder of an AutoencoderKL: image -> mean of the posterior, in SD scale."""

    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale."""
        mean: Tensor = self.network(image).chunk(2, dim=1)[0]
        return (mean - self.shift) * self.scale


def _decoder(name: str, vae: Any) -> Decoder:
    """The decoding half of a diffusers autoencoder."""
    network, tile = vae.decoder, LARGE_TILE
    if type(vae).__name__ == "AutoencoderKL":
        network, tile = nn.Sequential(vae.post_quant_conv or nn.Identity(), network), SMALL_TILE
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    return Decoder(name, network, scale=scale, shift=shift, tile=tile)


def _on_disk(name: str) -> Path | None:
    """Where a named decoder lies on this disk; None for a hub id that is not in the hub cache."""
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{name} is a pickle, which can run any code when it is read: convert it to "
            ".safetensors and name that file"
        )
    if path.exists():
        return path
    if registry.is_weight_file(name) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise WeightsError(f"{name} does not exist: name a folder, a .safetensors file or a hub id")
    return _from_hub(name, download=False)


def _from_hub(repository: str, *, download: bool) -> Path | None:
    """Folder of the hub cache with a repository's autoencoder, first filled if allowed, or None."""
    for folder in ("vae/", ""):
        if config := _hub_file(repository, folder + "config.json", download):
            _check(_read_config(config), repository)  # before a large download
            for name in WEIGHTS:
                if file := _hub_file(repository, folder + name, download):
                    return file.parent
    return None


def _hub_file(repository: str, name: str, download: bool) -> Path | None:
    """A repository's file in the hub cache, first put there if allowed; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    try:
        with _silenced(logging):
            return Path(hf_hub_download(repository, name, local_files_only=not download))
    except Exception as exc:  # of huggingface_hub, or of its HTTP library, by version
        unreachable = isinstance(exc, LocalEntryNotFoundError)
        if not download or (isinstance(exc, EntryNotFoundError) and not unreachable):
            return None
        why = "the Hugging Face hub cannot be reached" if unreachable else _first_line(exc)
        raise WeightsError(
            f"{repository} is not on this disk and could not be downloaded ({why})",
            hint="check the name and the connection, or use --decoder embedded",
        ) from exc


def _load(path: Path, name: str, parts: tuple[str, ...]) -> Any:
    """Load some parts of a diffusers autoencoder from a folder or a file; the rest has no data."""
    diffusers = _diffusers(name)
    config, file = _find(path)
    try:
        state = _read(file)
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{file} cannot be read as safetensors ({exc}): get it anew") from exc
    config = config or _architecture(state, file)
    _check(config, name)
    try:
        with _silenced(diffusers.utils.logging), torch.device("meta"):
            vae = getattr(diffusers, config["_class_name"]).from_config(config)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise WeightsError(f"the config of {name} is not valid: {_first_line(exc)}") from exc
    if len(vae.config.block_out_channels) != 4:
        raise WeightsError(f"{name} does not enlarge by 8: name a decoder of SD 1.x latents")
    expected = {key: t.shape for key, t in vae.state_dict().items() if key.startswith(parts)}
    shapes = {key: tensor.shape for key, tensor in state.items() if key.startswith(parts)}
    if wrong := sorted(key for key, _ in expected.items() ^ shapes.items()):
        raise WeightsError(
            f"{file} does not fit its architecture: {len(set(wrong))} tensors are missing, "
            f"of another shape or unknown, {wrong[0]} among them"
        )
    filled = {key: state[key].float() for key in expected}
    vae.load_state_dict(filled, strict=False, assign=True)
    return vae


def _diffusers(name: str) -> Any:
    try:
        import diffusers
    except ImportError as exc:
        raise WeightsError(
            f"{name} needs diffusers, which cannot be imported ({_first_line(exc)}): reinstall it"
        ) from exc
    return diffusers


def _find(path: Path) -> tuple[dict[str, Any], Path]:
    """Config and weight file of a path; an empty config if a file has none beside it."""
    if path.is_file():
        folder, files = path.parent, [path]
        if path.name not in WEIGHTS or not (folder / "config.json").exists():
            return {}, path
    else:
        folder = path / "vae" if (path / "vae" / "config.json").exists() else path
        files = [folder / file for file in WEIGHTS if (folder / file).exists()]
    config = _read_config(folder / "config.json")
    if not files:
        pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        why = f", only {pickles[0]}, a pickle, which can run any code" if pickles else ""
        raise WeightsError(f"{folder} holds no {WEIGHTS[0]}{why}: convert or download it")
    return config, files[0]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as exc:
        raise WeightsError(
            f"{file} is missing or not JSON: name a folder of an autoencoder in diffusers form"
        ) from exc


def _read(file: Path) -> dict[str, Tensor]:
    """Read the autoencoder of a .safetensors file, under the names that diffusers uses now."""
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
        if any(key.startswith("conditioner.") for key in keys):
            raise WeightsError(f"{file} is for SDXL latents: name a decoder of SD 1.x latents")
        prefixes = ("first_stage_model.", "vae.", "")  # of a whole checkpoint
        prefix = next(
            (p for p in prefixes if any(key.startswith(p + "decoder.") for key in keys)), ""
        )
        named = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
        state = {
            short: tensors.get_tensor(key)
            for short, key in named.items()
            if short.startswith(PARTS)
        }
    if any(key.startswith("decoder.up.") for key in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        blocks = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}  # only counted
        return dict(convert_ldm_vae_checkpoint(state, blocks))  # type: ignore[no-untyped-call]
    pattern = re.compile(rf"(?<=attentions\.0\.)({'|'.join(OLD_ATTENTION)})(?=\.)")
    return {pattern.sub(lambda m: OLD_ATTENTION[m[0]], key): t for key, t in state.items()}


def _architecture(state: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """The config of a file without one, from the shapes of its tensors."""
    try:
        if (first := state.get("decoder.layers.0.weight")) is not None:
            return {"_class_name": "AutoencoderTiny", "latent_channels": first.shape[1]}
        widths = [len(state[f"decoder.up_blocks.{i}.resnets.0.conv1.bias"]) for i in (3, 2, 1, 0)]
        channels = state["decoder.conv_in.weight"].shape[1]
    except KeyError as exc:
        raise WeightsError(
            f"{file} is not an autoencoder in diffusers' or CompVis' naming: no {exc.args[0]}"
        ) from exc
    except (IndexError, TypeError) as exc:  # of a tensor with fewer dimensions
        raise WeightsError(f"{file} is not an autoencoder: a weight has no shape") from exc
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
    }


def _check(config: dict[str, Any], name: str) -> None:
    """Raise WeightsError unless a config is of a decoder of SD 1.x latents."""
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise WeightsError(f"{name} is of class {kind}: name an AutoencoderKL or AutoencoderTiny")
    right = 1.0 if kind == "AutoencoderTiny" else SD1.scale
    scale, channels = (
        config.get("scaling_factor", right),
        config.get("latent_channels", SD1.channels),
    )
    names = f"{Path(name).name} {config.get('_name_or_path')}"  # taesdxl has no other mark
    why = None
    if scale == SDXL.scale or SDXL_NAME.search(names):
        why = "is for SDXL latents"
    elif channels != SD1.channels:
        why = f"is for latents of {channels} channels, not {SD1.channels}"
    elif scale != right:
        why = f"is for latents times {scale}, not {right}"
    if why:
        raise WeightsError(f"{name} {why}: name a decoder of SD 1.x latents")


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


@contextmanager
def _silenced(logging: Any) -> Iterator[None]:
    """Let a library log errors only, for a while."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

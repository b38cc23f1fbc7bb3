"""The checkpoints that the author of "Mind Your Own Kernels" published: read safely, run as meant.

They are whole pickled modules, which `torch.load` would execute. Here a restricted unpickler knows
tensors, a few containers and the names of the author's and torch's classes, for which it builds
inert stand-ins; whatever else a file asks for is refused by name. What they compute is written
below, with what sets it apart from `layers.DynamicConv`:

- one row of `view(-1, size)` holds neighbouring patches of one channel, not a patch of all channels
- batch normalisation runs on the statistics of the picture at hand, as the files were saved
- padding "same" adds a row above and a column to the left for the patches, torch's for the rest

A patch meets only its own part of the kernel that its row predicts, so no kernel is built here
either: mean((W h + b) * p) = (h . W^T p + b . p) / size of p.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dynenc.errors import WeightsError
from dynenc.io.writing import writing
from dynenc.latent_space import SD1
from dynenc.networks.encoder import to_floats
from dynenc.networks.layers import EPSILON

MODEL = "imported"  # in the metadata of a converted file
LARGEST = 2**20  # of any number that describes a layer
NORM_EPSILON = 1e-5
AUTHORS = ("encoder", "decoder", "Autoencoder", "DynamicConv", "HybridDense")
TORCHS = {
    "torch.nn.modules.conv": ("Conv2d",),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.container": ("ModuleList", "Sequential"),
    "torch.nn.modules.batchnorm": ("BatchNorm1d",),
    "torch.nn.modules.instancenorm": ("InstanceNorm2d",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
    "torch.nn.modules.pixelshuffle": ("PixelShuffle",),
}
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
}


class StandIn:
    """What a pickled module becomes: its attributes, and nothing that could run."""

    def __init__(self) -> None:
        self.__dict__: dict[str, Any] = {}

    def part(self, *names: str) -> Any:
        """A submodule, parameter or attribute of a submodule ...; raises KeyError."""
        found: Any = self
        for name in names:
            state = found.__dict__
            tables = [state.get(key, {}) for key in ("_modules", "_parameters")]
            found = next((t[name] for t in tables if name in t), None)
            if found is None:
                found = state[name]
        return found


class _Rebuild:
    """torch._utils._rebuild_tensor_v2; a view beyond its storage is refused by torch."""

    __slots__ = ()  # as with the classes below, no pickle can change it for the next one

    def __call__(
        self, values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        view = torch.as_strided(values, size, stride, offset)
        if view.numel() > values.numel():
            raise ValueError("a tensor is larger than what is stored of it")
        return view.clone()


class _Parameter:
    """torch._utils._rebuild_parameter, without the gradient."""

    __slots__ = ()

    def __call__(self, values: Tensor, *_: Any) -> Tensor:
        return values


def _known() -> dict[tuple[str, str], Any]:
    """All that a checkpoint may name; classes made anew, as a pickle can write on them."""
    names = [(module, name) for module in ("__main__", "hybrids") for name in AUTHORS]
    names += [(module, name) for module, classes in TORCHS.items() for name in classes]
    return {
        **{(module, name): type(name, (StandIn,), {}) for module, name in names},
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
        ("collections", "OrderedDict"): OrderedDict,
        ("__builtin__", "set"): set,
        ("builtins", "set"): set,
        ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
        ("torch._utils", "_rebuild_parameter"): _Parameter(),
    }


class _Reader(pickle.Unpickler):
    """An unpickler for which only the names of `_known` exist."""

    def __init__(self, archive: zipfile.ZipFile, member: str) -> None:
        super().__init__(io.BytesIO(_bytes(archive, member)))
        self.known = _known()
        self.archive, self.folder = archive, member.removesuffix("data.pkl") + "data/"

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise WeightsError(f"it asks for {module}.{name}, which no network needs") from None

    def persistent_load(self, identity: Any) -> Tensor:
        _, dtype, key, _, count = identity
        data = bytearray(_bytes(self.archive, f"{self.folder}{key}"))
        if not data or len(data) != count * dtype.itemsize:
            raise ValueError(f"tensor {key} is cut short")
        return torch.frombuffer(data, dtype=dtype)


def _bytes(archive: zipfile.ZipFile, member: str) -> bytes:
    if archive.getinfo(member).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member} is compressed, which torch never does")
    return archive.read(member)


def read_checkpoint(path: Path) -> StandIn:
    """The pickled module of a checkpoint as stand-ins; nothing in the file is executed.

    Raises: WeightsError if it cannot be read, or asks for anything but tensors and known classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _Reader(archive, members[0]).load() if members else None
    except WeightsError as exc:
        raise WeightsError(f"{path} is refused: {exc}") from exc
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:  # whatever a pickle of a stranger provokes
        raise WeightsError(f"{path} is no checkpoint that torch.save wrote: {exc}") from exc
    if not isinstance(found, StandIn):
        raise WeightsError(f"{path} holds no pickled module of the author's: name another file")
    return found


class PublishedConv(nn.Module):
    """The author's DynamicConv, whose arguments these are; without `static`, no `similar_conv`.

    Shapes: [1, in_channels, H, W] -> [1, out_channels, H', W'].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int | str,
        hidden: int,
        static: bool,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        area = kernel_size**2
        shapes = {
            "first_weight": (hidden, in_channels * area),
            "second_weight": (hidden, hidden),
            "last_weight": (in_channels * area, hidden),
            "last_bias": (in_channels * area,),
        }
        for layer in ("first", "second"):
            for name in ("bias", "power", "scale", "norm_weight", "norm_bias"):
                shapes[f"{layer}_{name}"] = (hidden,)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(out_channels, *shape)))
        self.static = nn.Conv2d(in_channels, out_channels, kernel_size, stride) if static else None

    def forward(self, image: Tensor) -> Tensor:
        """Convolve: [1, in_channels, H, W] -> [1, out_channels, H', W']."""
        k = self.kernel_size
        if self.padding == "same":
            patches, padded = F.pad(image, (1, 0, 1, 0)), F.pad(image, ((k - 1) // 2, k // 2) * 2)
        else:
            patches = padded = F.pad(image, (int(self.padding),) * 4)
        patches = patches.unfold(2, k, self.stride).unfold(3, k, self.stride)
        _, channels, height, width, *_ = patches.shape
        rows = patches.transpose(4, 5).reshape(-1, channels, k * k)  # [patches, part, values]
        flat = rows.flatten(1)
        outputs = []
        for channel in range(len(self.get_parameter("first_weight"))):
            weights = {name: p[channel] for name, p in self.named_parameters(recurse=False)}
            hidden = _dense(flat, weights, "first")
            hidden = _dense(hidden, weights, "second")
            values = torch.einsum(
                "nps,psh->nph", rows, weights["last_weight"].unflatten(0, (channels, k * k))
            )
            constant = (rows * weights["last_bias"].view(channels, k * k)).sum(2)
            parts = ((values @ hidden[:, :, None])[..., 0] + constant) / k**2
            outputs.append(parts.reshape(channels, height, width).mean(0))  # the author's order
        dynamic = torch.stack(outputs)[None]
        return dynamic if self.static is None else dynamic + self.static(padded)


def _dense(rows: Tensor, weights: dict[str, Tensor], layer: str) -> Tensor:
    """HybridDense and batch normalisation by the rows' own statistics: [N, in] -> [N, hidden]."""
    z = F.linear(rows, weights[f"{layer}_weight"], weights[f"{layer}_bias"])
    power = weights[f"{layer}_scale"] * (F.relu(z) + EPSILON) ** weights[f"{layer}_power"]
    y = torch.copysign(power, z).nan_to_num()
    variance, mean = torch.var_mean(y, dim=0, correction=0)
    normal = (y - mean) / (variance + NORM_EPSILON).sqrt()
    return normal * weights[f"{layer}_norm_weight"] + weights[f"{layer}_norm_bias"]


class PublishedEncoder(nn.Module):
    """One of the author's encoders: its layers see the features before them and the pooled picture.

    The code of the deeper one was never published; that its layers are joined so is what the
    statistics kept in its file fit best. They were trained on pictures in [0, 1], and one of them
    gives better latents of pictures in [-1, 1].

    Shapes: [B, 3, H, W] in [-1, 1], or uint8 in 0..255, -> [B, 4, H/8, W/8] in SD scale; H and W
    multiples of 8.
    """

    reach = 2**16  # patches that a latent depends on: all, by their statistics

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PublishedConv(**layer) for layer in layers)

    def forward(self, image: Tensor) -> Tensor:
        """Encode each picture by its own statistics, whatever stands beside it in the batch."""
        pictures = to_floats(image)
        return SD1.scale * torch.cat([self.latents(one[None]) for one in pictures])

    def latents(self, image: Tensor) -> Tensor:
        """One picture [1, 3, H, W] of any range -> [1, 4, H/8, W/8], in the scale of the author."""
        features = image
        for number, layer in enumerate(self.layers):
            if number:
                pooled = F.max_pool2d(image, image.shape[-1] // features.shape[-1])
                features = torch.cat([features, pooled], dim=1)
            features = layer(features)
        return features


class PublishedAutoencoder(nn.Module):
    """The author's autoencoder, trained on pictures in [0, 1]; its latents are its own.

    Shapes: [B, 3, H, W] in [-1, 1] -> the same; H and W multiples of 8.
    """

    def __init__(self, layers: list[dict[str, Any]], decoder: list[dict[str, Any]]) -> None:
        super().__init__()
        self.encoder = PublishedEncoder(layers)
        self.decoder = nn.ModuleList(PublishedConv(**layer) for layer in decoder)

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode: [B, 3, H, W] in [-1, 1] -> the same, clamped."""
        return torch.cat([self._one(one[None]) for one in image])

    def _one(self, image: Tensor) -> Tensor:
        features = self.encoder.latents((image + 1) / 2)
        for layer in self.decoder:
            features = layer(features)
        return F.pixel_shuffle(features, SD1.patch).clamp(0, 1) * 2 - 1


Published: TypeAlias = PublishedEncoder | PublishedAutoencoder


def convert(root: StandIn) -> tuple[str, dict[str, Tensor]]:
    """Arguments, as JSON, and state of the network that a checkpoint's stand-ins describe.

    Raises: WeightsError if they describe none that is known.
    """
    try:
        if type(root).__name__ == "Autoencoder":
            [encoder], [decoder] = root.part("encs"), root.part("decs")
            described = {"layers": _layers(encoder), "decoder": _layers(decoder)}
        else:
            described = {"layers": _layers(root)}
        prefix = "encoder.layers" if "decoder" in described else "layers"
        state: dict[str, Tensor] = {}
        for name, layers in ((prefix, described["layers"]), ("decoder", described.get("decoder"))):
            for number, layer in enumerate(layers or []):
                state.update(_state(layer.pop("module"), f"{name}.{number}."))
        return json.dumps(described), state
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as exc:
        raise WeightsError(f"the checkpoint is none of the author's networks: {exc}") from exc


def _layers(module: StandIn) -> list[dict[str, Any]]:
    layers = []
    for conv in module.__dict__["_modules"].values():
        if type(conv).__name__ == "DynamicConv":
            first = conv.part("predictors", "0", "0")
            layers.append(
                {
                    "in_channels": conv.part("in_channels"),
                    "out_channels": conv.part("out_channels"),
                    "kernel_size": conv.part("kernel_size"),
                    "stride": conv.part("stride"),
                    "padding": conv.part("padding"),
                    "hidden": first.part("out_features"),
                    "static": "similar_conv" in conv.__dict__["_modules"],
                    "module": conv,
                }
            )
    return layers


def _state(conv: StandIn, prefix: str) -> dict[str, Tensor]:
    """The tensors of one DynamicConv, stacked over its predictors."""
    state: dict[str, list[Tensor]] = {}
    for predictor in conv.part("predictors").__dict__["_modules"].values():
        for layer, number in (("first", 0), ("second", 2)):
            names = {"weight": "weight", "bias": "bias", "power": "powers", "scale": "muls"}
            for ours, theirs in names.items():
                tensor = predictor.part(str(number), theirs)
                state.setdefault(f"{layer}_{ours}", []).append(tensor)
            for name in ("weight", "bias"):
                tensor = predictor.part(str(number + 1), name)
                state.setdefault(f"{layer}_norm_{name}", []).append(tensor)
        for name in ("weight", "bias"):
            state.setdefault(f"last_{name}", []).append(predictor.part("4", name))
    stacked = {prefix + name: torch.stack(tensors).float() for name, tensors in state.items()}
    if "similar_conv" in conv.__dict__["_modules"]:
        for name in ("weight", "bias"):
            stacked[f"{prefix}static.{name}"] = conv.part("similar_conv", name).float()
    return stacked


def import_checkpoint(source: Path, target: Path, *, overwrite: bool = False) -> Published:
    """Convert a checkpoint to safetensors that `weights.load_path` reads; returns the network.

    Raises: WeightsError as `read_checkpoint` and `convert`, OutputExists, OutputError.
    """
    described, state = convert(read_checkpoint(source))
    metadata = {"model": MODEL, "network": described, "source": source.name}
    data = save(state, metadata)
    network = load_imported(data, metadata, str(source))
    with writing(str(target), overwrite) as file:
        file.write(data)
    return network


def load_imported(data: bytes, metadata: dict[str, str], name: str) -> Published:
    """The network of a file that `import_checkpoint` wrote; raises WeightsError."""
    try:
        described = json.loads(metadata["network"])
        for layer in [*described["layers"], *described.get("decoder", [])]:
            numbers = [value for value in layer.values() if isinstance(value, int)]
            if any(value < 0 or value > LARGEST for value in numbers):
                raise ValueError("a number of a layer is out of range")
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be right
            kind = PublishedAutoencoder if "decoder" in described else PublishedEncoder
            network: Published = kind(**described)
        network.load_state_dict(load(data), assign=True)
        network = network.eval().requires_grad_(False)
        encoder = network.encoder if isinstance(network, PublishedAutoencoder) else network
        shapes = [tuple(net(torch.zeros(1, 3, 32, 40)).shape) for net in (encoder, network)]
        if shapes[0] != (1, SD1.channels, 4, 5) or shapes[1] not in (shapes[0], (1, 3, 32, 40)):
            raise ValueError("its latents are not 4 of 8x8 pixels")
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise WeightsError(f"{name} does not hold a network of the author's: {exc}") from exc
    return network

"""The paper author's checkpoints, which are whole pickled modules: read without running anything.

`torch.load` would execute them. Here a restricted unpickler knows tensors, a few containers and the
names of the author's and torch's classes, for which it builds inert stand-ins; a file that asks for
anything else is refused by name. `networks.published` computes what the stand-ins describe.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dynenc.errors import WeightsError
from dynenc.io.writing import writing
from dynenc.networks.published import MODEL, Published, load_imported

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
STATIC = ("static.weight", "static.bias")  # parts of a layer that are not one for each predictor
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
}


class StandIn:
    """An inert stand-in for a pickled module: its attributes only."""

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
        return view


class _Parameter:
    """torch._utils._rebuild_parameter, without the gradient."""

    __slots__ = ()

    def __call__(self, values: Tensor, *_: Any) -> Tensor:
        return values


def _known() -> dict[tuple[str, str], Any]:
    """The names that a checkpoint may use; fresh classes, because a pickle can modify them."""
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
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise WeightsError(f"it references {module}.{name}, which is not allowed") from None

    def persistent_load(self, identity: Any) -> Tensor:
        _, dtype, key, _, count = identity
        if key not in self.storages:
            data = bytearray(_bytes(self.archive, f"{self.folder}{key}"))
            if not data or len(data) != count * dtype.itemsize:
                raise ValueError(f"tensor {key} is cut short")
            self.storages[key] = torch.frombuffer(data, dtype=dtype)
        return self.storages[key]


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
        raise WeightsError(f"{path} is not a checkpoint written by torch.save: {exc}") from exc
    if not isinstance(found, StandIn):
        raise WeightsError(f"{path} holds no pickled module of the author's: name another file")
    return found


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
        state, size, stored, storages = dict[str, Tensor](), 0, 0, set[int]()
        for name, tensors in _all_parts(described):
            for tensor in tensors:
                size += tensor.nbytes
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in storages:
                    storages.add(storage.data_ptr())
                    stored += storage.nbytes()
            if size > stored:  # else a small file takes much memory
                raise ValueError("its tensors overlap in storage")
            whole = tensors[0] if name.endswith(STATIC) else torch.stack(tensors)
            state[name] = whole.float()
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


def _all_parts(described: dict[str, Any]) -> Iterator[tuple[str, list[Tensor]]]:
    """The tensors of all layers by name, each layer without its "module" from then on."""
    prefix = "encoder.layers" if "decoder" in described else "layers"
    for name, layers in ((prefix, described["layers"]), ("decoder", described.get("decoder"))):
        for number, layer in enumerate(layers or []):
            for part, tensors in _parts(layer.pop("module")).items():
                yield f"{name}.{number}.{part}", tensors


def _parts(conv: StandIn) -> dict[str, list[Tensor]]:
    """The tensors of one DynamicConv by name: one for each predictor, or the one of `STATIC`."""
    parts: dict[str, list[Tensor]] = {}
    for predictor in conv.part("predictors").__dict__["_modules"].values():
        for layer, number in (("first", 0), ("second", 2)):
            names = {"weight": "weight", "bias": "bias", "power": "powers", "scale": "muls"}
            for ours, theirs in names.items():
                tensor = predictor.part(str(number), theirs)
                parts.setdefault(f"{layer}_{ours}", []).append(tensor)
            for name in ("weight", "bias"):
                tensor = predictor.part(str(number + 1), name)
                parts.setdefault(f"{layer}_norm_{name}", []).append(tensor)
        for name in ("weight", "bias"):
            parts.setdefault(f"last_{name}", []).append(predictor.part("4", name))
    if "similar_conv" in conv.__dict__["_modules"]:
        for part in STATIC:
            name = part.removeprefix("static.")
            parts[part] = [conv.part("similar_conv", name)]
    return parts


def import_checkpoint(source: Path, target: Path, *, overwrite: bool = False) -> Published:
    """Convert a checkpoint to a file for `networks.loading.load_path`; returns the network.

    Raises: WeightsError as `read_checkpoint` and `convert`, OutputExists, OutputError.
    """
    described, state = convert(read_checkpoint(source))
    metadata = {"model": MODEL, "network": described, "source": source.name}
    data = save(state, metadata)
    network = load_imported(data, metadata, str(source))
    with writing(str(target), overwrite) as file:
        file.write(data)
    return network

"""Containers of tensors: safetensors, .npz and .pt files, read whole and written.

Nothing is ever unpickled: of a .pt file, torch's `weights_only` reads tensors and plain values.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from dynenc.coding.bitstream import MAGIC
from dynenc.errors import LatentsError, first_line
from dynenc.io.storage import Readable
from dynenc.native.kernel import Floats

Array = npt.NDArray[Any]

MAX_CONTAINER_BYTES = 2**28  # of a file, unpacked; the latents of the largest image take 180 MB
HEADER_LENGTH_BYTES = 8  # bytes, of the length of a safetensors file's header
ZIP, GZIP, PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80"
DTYPES = {  # safetensors' names of them; numpy has no bfloat16
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "|b1",
}
NAMES = {numpy: name for name, numpy in reversed(DTYPES.items()) if name != "BF16"}
FLOATS = ("F16", "BF16", "F32", "F64")
METADATA = "__metadata__"  # of texts, among the names of tensors in a safetensors file
VALUE_BYTES = 1024  # that a plain value counts for, besides its text
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor of any dtype, as its bytes."""

    dtype: str  # of DTYPES
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def from_array(cls, array: Array, dtype: str = "") -> RawTensor:
        """The tensor of an array, whose floats are rounded to a dtype if one is given."""
        shape = array.shape
        if dtype == "BF16":  # to the nearest, ties to even
            bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
            bits = bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)
            return cls(dtype, shape, (bits >> 16).astype("<u2").tobytes())
        kept = array.astype(DTYPES[dtype]) if dtype else array.astype(array.dtype.newbyteorder("<"))
        return cls(dtype or NAMES[kept.dtype.str], shape, kept.tobytes())

    @property
    def array(self) -> Array:
        """Its values; bfloat16 as float32."""
        values = np.frombuffer(self.data, DTYPES[self.dtype]).reshape(self.shape)
        if self.dtype != "BF16":
            return values
        # without an axis, the shift is no array, and before NumPy 2 by a plain 16 of 64 bits
        bits = np.asarray(values.astype(np.uint32) << np.uint32(16))
        return bits.view(np.float32)

    @property
    def floats(self) -> Floats:
        """Its values, which are floats, as float32."""
        with np.errstate(over="ignore"):
            return self.array.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Container:
    """The contents of a file: tensors by name and metadata."""

    tensors: dict[str, RawTensor]
    metadata: dict[str, Any] = field(default_factory=dict)  # texts; in .pt files, plain values
    format_name: str = "safetensors"  # or "npz" or "pt", of LATENT_FORMATS


def read(data: bytes, name: str) -> Container:
    """The tensors of a file, told apart by its content.

    Args:
        name: of the file, for messages.
    Raises: LatentsError if it is no such file, is damaged, unpacks to more than
        MAX_CONTAINER_BYTES, or holds anything but tensors and plain values.
    """
    if not data:
        raise LatentsError(f"{name} is empty")
    try:
        return _read(data, name)
    except LatentsError:
        raise
    except zipfile.BadZipFile as exc:
        raise LatentsError(f"{name} is cut short or damaged: {exc}") from exc
    except pickle.UnpicklingError as exc:  # whose text advises to unpickle it
        raise LatentsError(
            f"{name} holds pickled objects, which can run any code: save its tensors alone"
        ) from exc
    except Exception as exc:  # these libraries raise whatever a damaged file makes them trip over
        raise LatentsError(f"{name} cannot be read as latents: {first_line(exc)}") from exc


def _read(data: bytes, name: str) -> Container:
    if data.startswith(GZIP):  # SimpleTuner's, if so configured
        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(MAX_CONTAINER_BYTES + 1)
        if len(data) > MAX_CONTAINER_BYTES:
            raise _too_large(name)
    if not data.startswith(ZIP):
        if data[8:9] != b"{":
            if data.startswith(MAGIC):
                raise LatentsError(f"{name} is already a .lat file: decode or export it")
            if data.startswith(PICKLE):
                raise LatentsError(
                    f"{name} is a pickle, as old .pt files are, which can run any code: save it "
                    "again with torch.save"
                )
            raise LatentsError(
                f"{name} is not a file of latents: use .safetensors, .npz, .pt or .latent"
            )
        return _read_safetensors(data, name)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_CONTAINER_BYTES:
            raise _too_large(name)
        if any(member.filename.endswith("/data.pkl") for member in members):
            return _read_pt(data, name)
        return Container(
            {
                member.filename.removesuffix(".npy"): _npy(archive.read(member), member.filename)
                for member in members
            },
            format_name="npz",
        )


def _too_large(name: str) -> LatentsError:
    return LatentsError(f"{name} unpacks to more than the limit of {MAX_CONTAINER_BYTES} bytes")


def _read_safetensors(data: bytes, name: str) -> Container:
    tensors = {}
    for key, tensor in dict(safetensors.deserialize(data)).items():  # type: ignore[no-untyped-call]
        if tensor["dtype"] not in DTYPES:
            raise LatentsError(f"{name} holds {key} of type {tensor['dtype']}: save it as float32")
        tensors[key] = RawTensor(tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return Container(tensors, outline(io.BytesIO(data)).metadata)


def outline(file: Readable) -> Container:
    """The names of the tensors in a safetensors file and the metadata, without values.

    Raises: any exception if it is no such file.
    """
    length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
    header = json.loads(file.read(min(length, MAX_CONTAINER_BYTES)))
    metadata = header.pop(METADATA, None) or {}
    tensors = {
        key: RawTensor(tensor["dtype"], tuple(tensor["shape"]), b"")
        for key, tensor in header.items()
    }
    return Container(tensors, metadata)


def _npy(data: bytes, name: str) -> RawTensor:
    """The array of a .npy file. numpy would allocate what its header claims, so that is checked."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = header[version[0]](file)
    if dtype.hasobject:
        raise LatentsError(f"{name} is a pickle, which can run any code: it is not read")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise LatentsError(f"{name} is cut short, or claims to be larger than it is")
    if dtype.newbyteorder("<").str not in NAMES:
        raise LatentsError(f"{name} is of type {dtype}: save it as float32")
    file.seek(0)
    return RawTensor.from_array(np.lib.format.read_array(file, allow_pickle=False))


def _read_pt(data: bytes, name: str) -> Container:
    import torch

    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        content = {"": content}  # it has no name
    if not isinstance(content, dict):
        raise LatentsError(f"{name} holds a {type(content).__name__} and no latents")
    tensors, metadata, budget = {}, {}, _Budget(name)
    for key, value in content.items():
        _check_key(key, f"{name} holds")
        if not isinstance(value, torch.Tensor):
            metadata[key] = _plain(value, f"{name} holds under {key!r}", budget)
            continue
        what = f"{name} holds {key}" if key else f"{name} holds a tensor"
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise LatentsError(f"{what} of another layout: save it dense, as float32")
        if value.is_meta:
            raise LatentsError(f"{what} without data: save it again from the CPU")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise LatentsError(f"{name} claims to hold more latents than it does")
        budget.spend(value.numel() * value.element_size())  # which tensors may share in the file
        array = value.detach().contiguous()
        if value.dtype == torch.bfloat16:
            tensors[key] = RawTensor.from_array(array.float().numpy(), "BF16")
        elif value.is_floating_point() and value.itemsize == 1:
            raise LatentsError(f"{what} of type {value.dtype}: save it as float32")
        else:
            tensors[key] = RawTensor.from_array(array.numpy())
    return Container(tensors, metadata, "pt")


class _Budget:
    """The bytes that may still be unpacked of a file whose values can refer to one another."""

    def __init__(self, name: str) -> None:
        self.name, self.left = name, MAX_CONTAINER_BYTES

    def spend(self, n_bytes: int) -> None:
        """Raise LatentsError if that is too much."""
        self.left -= n_bytes
        if self.left < 0:
            raise _too_large(self.name)


def _plain(value: Any, where: str, budget: _Budget) -> Any:
    """A value as JSON has it; raises LatentsError if it is not plain."""
    budget.spend(VALUE_BYTES + (len(value) if isinstance(value, str) else 0))
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each, where, budget) for each in value]
    if isinstance(value, Mapping):
        for key in value:
            _check_key(key, where)
        return {key: _plain(each, where, budget) for key, each in value.items()}
    kind = type(value).__name__
    raise LatentsError(f"{where} a {kind}, which is not a plain value: save it without")


def _check_key(key: Any, where: str) -> None:
    """Raise LatentsError if the key of a dict is not text, as JSON would make it."""
    if not isinstance(key, str):
        raise LatentsError(f"{where} the key {key!r:.40}, which is not text: save it under a text")


def to_safetensors(container: Container) -> bytes:
    """A safetensors file of a container whose metadata are texts."""
    header: dict[str, Any] = {METADATA: container.metadata} if container.metadata else {}
    end = 0
    for key, tensor in container.tensors.items():
        begin, end = end, end + len(tensor.data)
        header[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.data for tensor in container.tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def to_npz(container: Container) -> bytes:
    """A .npz file, which holds no metadata."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # np.savez does not take every name
        for key, tensor in container.tensors.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor.array, allow_pickle=False)
    return file.getvalue()


def to_pt(container: Container) -> bytes:
    """A .pt file, for `torch.load(..., weights_only=True)`: a dict of tensors and metadata.

    A tensor without a name is all that the file holds.
    """
    import torch

    file = io.BytesIO()
    tensors = {}
    for key, tensor in container.tensors.items():
        values = torch.from_numpy(tensor.array.copy())
        tensors[key] = values.bfloat16() if tensor.dtype == "BF16" else values
    torch.save(tensors.get("", {**tensors, **container.metadata}), file)
    return file.getvalue()

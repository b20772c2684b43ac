"""Read a PyTorch checkpoint without PyTorch, and without running what stands in it.

A checkpoint is a pickle, and a pickle is a program: the ordinary reader calls whatever the file names. The reader here
knows four names, all of them answered with plain constructors of this module, and refuses every other one. What comes
out is arrays.

The layout is PyTorch's serialization before 1.6 (`torch/serialization.py`, `_legacy_save`): four small pickles (magic
number, protocol, the writer's integer sizes, the object), a fifth with the storages' keys in order, and then for each
key an int64 count and the raw values.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.dataset import DatasetError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_BYTES = 512 * 1024 * 1024
_COUNT_BYTES = 8
_PERSISTENT_FIELDS = 6

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _StorageKind:
    dtype: str


@dataclass(frozen=True, slots=True)
class _StorageRef:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class _TensorRef:
    storage: _StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _State(dict[str, Any]):
    """A state dictionary; the pickle hangs notes of its own on it."""


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _TensorRef:
    numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
    if not isinstance(storage, _StorageRef) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor is not described by a storage and by numbers")
    return _TensorRef(storage, offset, shape, strides)


_NAMES: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _State,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch", "FloatStorage"): _StorageKind("<f4"),
    ("torch", "LongStorage"): _StorageKind("<i8"),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need") from None

    def persistent_load(self, pid: Any) -> _StorageRef:
        if isinstance(pid, tuple) and len(pid) == _PERSISTENT_FIELDS:
            word, kind, key, _, count, view = pid
            if word == "storage" and isinstance(kind, _StorageKind) and type(count) is int and view is None:
                return _StorageRef(str(key), kind.dtype, count)
        raise pickle.UnpicklingError("a storage is not described as PyTorch describes one")


def read_torch_weights(path: Path) -> dict[str, Array]:
    """Read the arrays of a checkpoint, by their names.

    Raises:
        DatasetError: the file is missing, cut short, not such a checkpoint, or asks for anything but arrays.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: is larger than {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    stream = io.BytesIO(data)
    try:
        if (_Reader(stream).load(), _Reader(stream).load()) != (MAGIC, PROTOCOL):
            raise DatasetError(f"{path}: is not a PyTorch checkpoint of protocol {PROTOCOL}")
        _Reader(stream).load()
        state = _Reader(stream).load()
        keys = _Reader(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as exc:
        raise DatasetError(f"{path}: is refused: {exc}") from exc
    if not isinstance(state, _State) or not all(isinstance(item, _TensorRef) for item in state.values()):
        raise DatasetError(f"{path}: does not hold a plain table of tensors")
    if not isinstance(keys, list):
        raise DatasetError(f"{path}: does not name its storages")
    storages = _read_storages(data, stream.tell(), keys, {ref.storage.key: ref.storage for ref in state.values()}, path)
    return {str(name): _view(storages[ref.storage.key], ref, f"{path}: {name}") for name, ref in state.items()}


def _read_storages(
    data: bytes, position: int, keys: list[Any], wanted: Mapping[str, _StorageRef], path: Path
) -> dict[str, Array]:
    storages: dict[str, Array] = {}
    for key in keys:
        ref = wanted.get(key) if isinstance(key, str) else None
        if ref is None:
            raise DatasetError(f"{path}: holds a storage {key!r} that no tensor uses")
        count = int.from_bytes(data[position : position + _COUNT_BYTES], "little")
        position += _COUNT_BYTES
        size = ref.count * np.dtype(ref.dtype).itemsize
        if count != ref.count or position + size > len(data):
            raise DatasetError(f"{path}: storage {key} is not of {ref.count} values; the file is cut short or altered")
        storages[key] = np.frombuffer(data, ref.dtype, ref.count, position)
        position += size
    if position != len(data) or set(storages) != set(wanted):
        raise DatasetError(f"{path}: its storages are not the {len(wanted)} that its tensors use")
    return storages


def _view(storage: Array, ref: _TensorRef, where: str) -> Array:
    """The tensor as an array of its own; the strides, in values, may be in any order."""
    last = ref.offset + sum((edge - 1) * stride for edge, stride in zip(ref.shape, ref.strides, strict=True))
    if len(ref.shape) != len(ref.strides) or 0 in ref.shape or last >= len(storage):
        raise DatasetError(f"{where}: reaches beyond its storage")
    strides = tuple(stride * storage.itemsize for stride in ref.strides)
    view = np.lib.stride_tricks.as_strided(storage[ref.offset :], ref.shape, strides, writeable=False)
    return np.array(view, np.int64) if storage.dtype.kind == "i" else np.array(view, np.float32)

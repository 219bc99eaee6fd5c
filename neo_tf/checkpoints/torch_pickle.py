"""Reading pytorch_model.bin without PyTorch, with a restricted unpickler that can build nothing but tensors.

The format is torch.save's: a zip file of one pickle, whose tensors refer to storages, and a file for each storage.
"""

import pickle
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from neo_tf.checkpoints.checkpoint import LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES
from neo_tf.errors import CheckpointError
from neo_tf.git_lfs import WHAT_IT_IS, is_pointer

_STORAGES = {
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


# These are tuples because a pickle can change the attributes of most objects that it builds, but not those of a tuple.
class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Builder:
    """A function that a pickle calls to make a tensor. It has no attributes that a pickle could set."""

    __slots__ = ()
    __setstate__ = None

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError


class _RebuildTensor(_Builder):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor without a storage, or with strides for other dimensions")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"a tensor with offset, shape and strides {numbers}")
        if any(stride == 0 and size > 1 for size, stride in zip(shape, strides, strict=True)):
            raise ValueError("a tensor that repeats its elements")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter(_Builder):
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


def read_torch_file(path: Path | str) -> dict[str, LazyTensor]:
    """The tensors of a torch.save file, by name. When one is read, its checksum is compared.

    Raises:
        CheckpointError: The file is damaged, has torch's format from before 2020, or holds something else than tensors
            under names. Or its pickle asks for a global that is not a part of a tensor; the message names the global,
            which is not called.
    """
    path = Path(path)
    values, root = _load(path)
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, not tensors under names")
    tensors = {}
    for name, tensor in values.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
        tensors[name] = LazyTensor(tensor.shape, tensor.storage.dtype, partial(_read, path, root, tensor, name))
    return tensors


def _load(path: Path) -> tuple[Any, str]:
    """The value that the pickle builds, and the folder inside the zip file that holds the pickle and the storages."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickled) != 1:
                raise CheckpointError(f"{path}: not a file that torch.save wrote")
            root = pickled[0].removesuffix("data.pkl")
            with archive.open(pickled[0]) as file:
                values = _Unpickler(file, path).load()
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise CheckpointError(f"{path}: big-endian files are not supported")
            return values, root
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: {_what_is_wrong(path, error)}") from None
    except Exception as error:  # whatever a damaged or malicious pickle makes the unpickler raise
        raise CheckpointError(f"{path}: its pickle is damaged: {error}") from None


class _Unpickler(pickle.Unpickler):
    """An unpickler that refuses every global which is not a part of a tensor."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _BUILDERS:
            return _BUILDERS[name]
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise CheckpointError(
            f"{self._path}: its pickle asks for {module}.{name}, which is no part of a tensor: refused"
        )

    def persistent_load(self, identifier: Any) -> _Storage:
        kind, storage_type, key, *_ = identifier
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise CheckpointError(f"{self._path}: its pickle refers to {kind!r}, not to a storage")
        return _Storage(storage_type.dtype, key)


_BUILDERS: dict[str, _Builder] = {
    "_rebuild_tensor_v2": _RebuildTensor(),
    "_rebuild_tensor": _RebuildTensor(),
    "_rebuild_parameter": _RebuildParameter(),
}


def _read(path: Path, root: str, tensor: _Tensor, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            stored = archive.read(f"{root}data/{tensor.storage.key}")  # compares the checksum
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}") from None
    values = np.frombuffer(stored, tensor.storage.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or min((*tensor.strides, 0)) < 0 or (0 not in tensor.shape and last >= values.size):
        raise CheckpointError(f"{path}: {name} reaches beyond its storage")
    strides = [stride * values.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.array(view)


def _what_is_wrong(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "no such file"
    with open(path, "rb") as file:
        start = file.read(2)
    if is_pointer(path):
        return WHAT_IT_IS
    if start == b"PK":
        return f"the file is cut short or damaged: {error}"
    if start[:1] == b"\x80":
        return "torch's format from before 2020: load it with PyTorch and save it again"
    return "not a file that torch.save wrote"

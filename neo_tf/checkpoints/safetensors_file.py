"""One safetensors file, read and written tensor by tensor."""

import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from neo_tf.checkpoints.checkpoint import LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES, dtype_name
from neo_tf.errors import CheckpointError
from neo_tf.git_lfs import refuse_pointer
from neo_tf.progress import Progress

_DTYPES = {
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F64": np.dtype(np.float64),
    # Types that no model is read from: they have their names here, so that a message can name them.
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_UNKNOWN_DTYPE = np.dtype(np.void)


def read_safetensors(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, by the names that they have there.

    A Checkpoint refuses tensors of a type that is neither in DTYPES nor float64. One that numpy has no name for gets
    the type void.

    Raises:
        CheckpointError: The file is missing, cut short or damaged.
    """
    with _open(file) as handle:
        tensors = {}
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            view = handle.get_slice(name)
            dtype = _DTYPES.get(view.get_dtype(), _UNKNOWN_DTYPE)
            tensors[name] = LazyTensor(tuple(view.get_shape()), dtype, partial(_read, file, name))
        return tensors


def write_safetensors(tensors: Mapping[str, LazyTensor], file: Path, progress: Progress) -> None:
    """Writes tensors with one of them in memory at a time.

    Args:
        tensors: The tensors, by the names that they get in the file.
        file: The file to write.
        progress: Called as progress(bytes, name) after each tensor.
    """
    # The library's own writer wants all tensors in memory. The format is a length, a JSON header, and the bytes.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _FORMAT_NAMES[dtype_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name, tensor in tensors.items():
            value = tensor.read()
            out.write(value.reshape(-1).view(np.uint8).data)
            progress(value.nbytes, name)
            del value


def _read(file: Path, name: str) -> np.ndarray:
    # The file is opened anew for each tensor: an open file stays mapped, and all of it would count as used memory.
    with _open(file) as handle:
        try:
            return handle.get_tensor(name)
        except Exception as error:
            raise CheckpointError(f"{file}: {name} cannot be read: {error}") from None


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        refuse_pointer(file)
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from None

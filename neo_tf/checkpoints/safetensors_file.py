"""One safetensors file, read and written tensor by tensor."""

import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
}
_FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_UNKNOWN_DTYPE = np.dtype(np.void)


def read_safetensors(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, by the names that they have there.

    A tensor of a type that is neither in DTYPES nor float64 gets the type void, which a Checkpoint refuses.

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

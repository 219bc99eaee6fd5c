"""Keras folders: `config.json` and `model.weights.h5`, which keras.Model.load_weights reads as it is."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor, narrowed
from neo_tf.checkpoints.dtypes import DTYPES
from neo_tf.checkpoints.model_files import read_files, write_files
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, MissingExtraError, first_line
from neo_tf.file_names import CONFIG_FILE
from neo_tf.git_lfs import refuse_pointer
from neo_tf.json_files import write_json
from neo_tf.progress import Progress
from neo_tf.variables import canonical_name, storage_name

WEIGHTS_FILE = "model.weights.h5"
# Where GPTNeo.save_own_variables puts its variables: `vars/` and the canonical name.
_GROUP = "vars"
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises over a damaged file


def is_keras(folder: Path | str) -> bool:
    """Whether a folder holds Keras weights."""
    return (Path(folder) / WEIGHTS_FILE).is_file()


def read_keras(path: Path | str, tokenizer: Path | str | None = None, config: Path | str | None = None) -> Checkpoint:
    """Opens a folder that write_keras or GPTNeo.save_weights wrote.

    Args:
        path: The folder.
        tokenizer: As in read_files.
        config: The config, where it is not the folder's config.json.

    Raises:
        CheckpointError: The weights are cut short or do not fit the config.
        ConfigError: config.json is missing or malformed.
        MissingExtraError: h5py is not installed.
    """
    h5py = _import_h5py()
    folder = Path(path)
    params = GPTNeoConfig.from_file(config or folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    tensors = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = DTYPES["bfloat16"] if item.attrs.get("dtype") == "bfloat16" else item.dtype
            tensors[canonical_name(name)] = LazyTensor(item.shape, dtype, partial(_read, file, name, dtype))

    try:
        with h5py.File(file) as store:
            if _GROUP in store:
                store[_GROUP].visititems(visit)
    except _READ_ERRORS as error:
        refuse_pointer(file)
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from None
    tensors = narrowed(folder, tensors)
    return Checkpoint(folder, "keras", params, tensors, read_files("keras", folder, params, tokenizer))


def write_keras(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Writes config.json, model.weights.h5 and the model's files.

    Args:
        checkpoint: The checkpoint.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor.

    Raises:
        MissingExtraError: h5py is not installed.
        OSError: A file cannot be written.
    """
    h5py = _import_h5py()
    write_json(folder / CONFIG_FILE, checkpoint.config.replace(precision=checkpoint.dtype).to_original())
    write_files("keras", checkpoint, folder)
    with _RecordingFile(folder / WEIGHTS_FILE, "w+b") as file:
        with h5py.File(file, "w") as store:
            group = store.create_group(_GROUP)
            for name, tensor in checkpoint.tensors.items():
                dataset = group.create_dataset(storage_name(name), data=tensor.read())
                if tensor.dtype == DTYPES["bfloat16"]:
                    dataset.attrs["dtype"] = "bfloat16"  # Keras marks it so, as HDF5 has no such type
                progress(tensor.nbytes, name)
                if file.error:
                    break
        if file.error:
            raise file.error


class _RecordingFile(io.FileIO):
    """A file that keeps its first error and does not raise it, because HDF5 crashes the process over a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes the data, or keeps the error."""
        try:
            view = memoryview(data).cast("B")
            done = 0
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size, or keeps the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _read(file: Path, name: str, dtype: np.dtype) -> np.ndarray:
    h5py = _import_h5py()
    try:
        with h5py.File(file) as store:
            value = store[_GROUP][name][()]
    except _READ_ERRORS as error:
        raise CheckpointError(f"{file}: {name} cannot be read: {first_line(error)}") from None
    return np.asarray(value).view(dtype) if value.dtype != dtype else value


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("Keras weights need h5py: install it with `pip install 'neo-tf[tensorflow]'`") from None
    return h5py

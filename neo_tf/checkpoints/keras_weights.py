"""Keras folders: `config.json` and `model.weights.h5`, which keras.Model.load_weights reads as it is."""

import io
import json
from pathlib import Path

import numpy as np

from neo_tf.checkpoints.checkpoint import DTYPES, Checkpoint, LazyTensor
from neo_tf.checkpoints.tokenizer_files import find_tokenizer
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, MissingExtraError, first_line
from neo_tf.variables import canonical_name, storage_name

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
# Where GPTNeo.save_own_variables puts its variables: `vars/` and the canonical name.
_GROUP = "vars"
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError)  # h5py's, for damaged files


def is_keras(folder):
    """Whether a folder holds Keras weights."""
    return (Path(folder) / WEIGHTS_FILE).is_file()


def read_keras(path, tokenizer=None, config=None):
    """Opens a folder that write_keras or GPTNeo.save_weights wrote.

    Raises:
        CheckpointError: the weights are cut short or do not fit.
        ConfigError: config.json is missing or malformed.
    """
    h5py = _import_h5py()
    folder = Path(path)
    config = GPTNeoConfig.from_file(config or folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    tensors = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            dtype = DTYPES["bfloat16"] if item.attrs.get("dtype") == "bfloat16" else item.dtype
            tensors[canonical_name(name)] = LazyTensor(item.shape, dtype, lambda: _read(file, name, dtype))

    try:
        with h5py.File(file) as store:
            if _GROUP in store:
                store[_GROUP].visititems(visit)
    except _READ_ERRORS as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from None
    return Checkpoint(folder, "keras", config, tensors, find_tokenizer(folder, config.n_vocab, tokenizer))


def write_keras(checkpoint, folder, progress):
    """Writes config.json, model.weights.h5 and tokenizer.json.

    Args:
        checkpoint: a Checkpoint.
        folder: an existing Path.
        progress: called as progress(name, bytes) after each tensor.
    """
    h5py = _import_h5py()
    params = checkpoint.config.replace(precision=checkpoint.dtype).to_original()
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
    with _RecordingFile(folder / WEIGHTS_FILE, "w+b") as file:
        with h5py.File(file, "w") as store:
            group = store.create_group(_GROUP)
            for name, tensor in checkpoint.tensors.items():
                dataset = group.create_dataset(storage_name(name), data=tensor.read())
                if tensor.dtype == DTYPES["bfloat16"]:
                    dataset.attrs["dtype"] = "bfloat16"  # as Keras marks it: HDF5 has no such type
                progress(name, tensor.nbytes)
                if file.error:
                    break
        if file.error:
            raise file.error


class _RecordingFile(io.FileIO):
    """A file that keeps its first error and says nothing of it: HDF5 crashes the process over a full disk."""

    error = None

    def write(self, data):
        """Writes, or remembers why not."""
        try:
            view = memoryview(data).cast("B")
            done = 0
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size=None):
        """Sets the size, or remembers why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size


def _read(file, name, dtype):
    h5py = _import_h5py()
    try:
        with h5py.File(file) as store:
            value = store[_GROUP][name][()]
    except _READ_ERRORS as error:
        raise CheckpointError(f"{file}: {name} cannot be read: {first_line(error)}") from None
    return np.asarray(value).view(dtype) if value.dtype != dtype else value


def _import_h5py():
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("Keras weights need h5py: install it with `pip install 'neo-tf[tensorflow]'`") from None
    return h5py

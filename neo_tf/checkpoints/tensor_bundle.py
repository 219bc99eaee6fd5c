"""TensorFlow's checkpoint files, which the original writes: `model.ckpt-N.index` and its data shards."""

import atexit
import glob
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.checkpoints.checkpoint import LazyTensor
from neo_tf.errors import CheckpointError, first_line
from neo_tf.git_lfs import refuse_pointer
from neo_tf.keras_backend import import_tensorflow

_SHARD_BYTES = 256_000_000
_READ_ERRORS = (ValueError, RuntimeError, IndexError)  # what tf.train's reader raises


def find_prefix(path: Path | str) -> Path | None:
    """Finds the `…/model.ckpt-N` prefix of a checkpoint.

    Args:
        path: The prefix itself, its .index file, or a folder. In a folder the file `checkpoint` names the prefix;
            without that file it is the one with the highest step.

    Returns:
        The prefix, or None where the path leads to no such checkpoint.
    """
    path = Path(str(path).removesuffix(".index"))
    if Path(f"{path}.index").is_file():
        return path
    if not path.is_dir():
        return None
    state = path / "checkpoint"
    if state.is_file():
        found = re.search(r'^model_checkpoint_path:\s*"(.+)"', state.read_text(errors="replace"), re.MULTILINE)
        # The path may be that of the machine that trained the model: only its last part counts.
        if found and (path / (Path(found[1]).name + ".index")).is_file():
            return path / Path(found[1]).name
    indices = [(step_of(found.stem), found) for found in path.glob("*.index")]
    return max(indices)[1].with_suffix("") if indices else None


def has_shards(prefix: Path) -> bool:
    """Whether data shards lie beside the index of a checkpoint."""
    return len(_files_of(prefix)) > 1


def read_variables(prefix: Path) -> dict[str, LazyTensor]:
    """All variables of a checkpoint, {name: LazyTensor}, sorted by name.

    Raises:
        CheckpointError: The index is damaged. Reading a tensor raises it where a shard is.
        MissingExtraError: TensorFlow is not installed.
    """
    reader = _open(prefix)
    shapes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
    return {
        name: LazyTensor(
            tuple(shapes[name]), np.dtype(dtypes[name].as_numpy_dtype), partial(_read, reader, prefix, name)
        )
        for name in sorted(shapes)
    }


class ShardWriter:
    """Writes variables in shards, so that only one shard is in memory, and merges the shards by name at the end.

    Args:
        prefix: The `model.ckpt-N` prefix of the merged checkpoint.

    Raises:
        OSError: A file cannot be written. Every method can raise it.
    """

    def __init__(self, prefix: Path) -> None:
        self._tf = import_tensorflow()
        if not _is_utf8(prefix):
            raise OSError(0, "TensorFlow writes only where the path is UTF-8", str(prefix.parent))
        self._prefix = prefix
        self._written: list[str] = []
        self._values: dict[str, Any] = {}
        self._size = 0  # bytes of the variables that are in memory

    def make_room(self, nbytes: int) -> None:
        """Writes a shard where `nbytes` more bytes would make it too large."""
        if self._size and self._size + nbytes > _SHARD_BYTES:
            self._write_shard()

    def add(self, name: str, value: np.ndarray) -> None:
        """Adds a variable to the current shard."""
        self._values[name] = self._tf.constant(value)
        self._size += value.nbytes

    def finish(self) -> None:
        """Writes the last shard and merges all."""
        self._write_shard()
        try:
            self._tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=self._written, destination_prefix=str(self._prefix), delete_old_dirs=False
            )
        except self._tf.errors.OpError as error:
            raise OSError(0, _reason(error), str(self._prefix)) from None

    def _write_shard(self) -> None:
        shard = str(self._prefix.parent / f"shard-{len(self._written)}")
        names = list(self._values)
        values = list(self._values.values())
        try:
            self._tf.raw_ops.SaveV2(
                prefix=shard, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
            )
        except self._tf.errors.OpError as error:
            raise OSError(0, _reason(error), str(self._prefix)) from None
        self._written.append(shard)
        self._values.clear()
        self._size = 0


def check_shards(prefix: Path) -> None:
    """Raises a CheckpointError where data shards are missing."""
    pattern = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-(\d{5})")
    counts = {int(found[1]) for file in prefix.parent.iterdir() if (found := pattern.fullmatch(file.name))}
    if not counts:
        raise CheckpointError(f"{prefix}: no data shards beside the index")
    if len(counts) > 1:
        raise CheckpointError(f"{prefix}: shards of different counts beside the index")
    count = counts.pop()
    for number in range(count):
        shard = f"{prefix.name}.data-{number:05d}-of-{count:05d}"
        if not (prefix.parent / shard).is_file():
            raise CheckpointError(f"{prefix.parent}: shard {shard} is missing")


def _open(prefix: Path) -> Any:
    tf = import_tensorflow()
    for file in _files_of(prefix):
        refuse_pointer(file)
    try:
        return tf.train.load_checkpoint(str(_readable(prefix)))
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise CheckpointError(f"{prefix}.index: cannot be read: {_reason(error)}") from None


def _files_of(prefix: Path) -> list[Path]:
    """The index and the data shards of a checkpoint."""
    name = glob.escape(prefix.name)
    return [prefix.with_name(f"{prefix.name}.index"), *sorted(prefix.parent.glob(f"{name}.data-*"))]


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _readable(prefix: Path) -> Path:
    """The prefix, or one through links to its files where TensorFlow cannot take its path.

    TensorFlow takes brackets for a pattern, and wants UTF-8.
    """
    if not set("[\\") & set(str(prefix)) and _is_utf8(prefix):
        return prefix
    folder = Path(tempfile.mkdtemp(prefix="neo-tf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the reader opens the shards when it needs them
    for file in _files_of(prefix):
        (folder / f"model.ckpt{file.name.removeprefix(prefix.name)}").symlink_to(file.absolute())
    return folder / "model.ckpt"


def _read(reader: Any, prefix: Path, name: str) -> np.ndarray:
    tf = import_tensorflow()
    try:
        return reader.get_tensor(name)
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise CheckpointError(f"{prefix}: {name} cannot be read, the shard is damaged: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """TensorFlow's message without what it wraps it in: {{function_node …}} … [Op:SaveV2] name:"""
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\].*", "", str(getattr(error, "message", None) or error))
    return first_line(text if text.strip() else error)


def step_of(name: str) -> int:
    """The step in a name such as model.ckpt-1000, or -1."""
    found = re.search(r"-(\d+)$", name)
    return int(found[1]) if found else -1

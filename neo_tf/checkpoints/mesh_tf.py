"""The original's checkpoints: `model.ckpt-N.index` and its data shards, as mesh_tensorflow's saver writes them."""

import atexit
import glob
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES, dtype_name
from neo_tf.checkpoints.model_files import read_files, write_files
from neo_tf.checkpoints.tokenizer_files import read_dataset_config, with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import OTHER_ACTIVATIONS
from neo_tf.errors import CheckpointError, ConfigError, first_line
from neo_tf.file_names import CONFIG_FILE, TOKENIZER_FILE
from neo_tf.git_lfs import refuse_pointer
from neo_tf.json_files import read_json, write_json
from neo_tf.keras_backend import import_tensorflow
from neo_tf.progress import Progress

GLOBAL_STEP = "global_step"
# Adam writes `<variable>/adam_m`, Adafactor `<variable>_slot_v`: no variable of the model has such an ending.
_SLOT = re.compile(r"(/adam_[mv]|_slot_(v|vr|vc|m))$")
_SHARD_BYTES = 256_000_000
_READ_ERRORS = (ValueError, RuntimeError, IndexError)  # what tf.train's reader raises

# The training keys of the original's own configs. With them the original's main.py starts on a folder written here.
_TRAINING_DEFAULTS: dict[str, Any] = {
    "lr": 0.0002,
    "lr_decay": "cosine",
    "warmup_steps": 3000,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "opt_name": "adam",
    "weight_decay": 0.1,
    "train_batch_size": 8,
    "train_steps": 600000,
    "eval_batch_size": 8,
    "eval_steps": 10,
    "predict_batch_size": 1,
    "predict_steps": 0,
    "iterations": 500,
    "datasets": [],
    "model_path": "",
    "scale_by_depth": True,
    "scale_by_in": False,
    "mesh_shape": "x:1",
    "layout": "batch:x",
    "recompute_grad": False,
    "gradient_clipping": 1.0,
}


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
    indices = [(_step(found.stem), found) for found in path.glob("*.index")]
    return max(indices)[1].with_suffix("") if indices else None


def has_shards(prefix: Path) -> bool:
    """Whether data shards lie beside the index of a checkpoint."""
    return len(_files_of(prefix)) > 1


def read_mesh_tf(
    path: Path | str,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
    moe_policy: str | None = None,
) -> Checkpoint:
    """Opens a checkpoint of the original code. Optimizer slots and global_step are not among its tensors.

    Args:
        path: A folder, or a `model.ckpt-N` prefix.
        tokenizer: As in read_files.
        config: The path of the original's JSON config, where it is not beside the weights.
        moe_policy: As in open_checkpoint.

    Raises:
        CheckpointError: A shard is missing or damaged, or the variables do not fit the config.
        ConfigError: The config is missing or does not fit the weights.
        MissingExtraError: TensorFlow is not installed.
    """
    prefix = find_prefix(path)
    if prefix is None:
        raise CheckpointError(f"{path}: no model.ckpt-N.index here")
    _check_shards(prefix)
    folder = prefix.parent
    # The dataset config lies beside the weights, or beside a config that lies elsewhere.
    home = Path(config).parent if config is not None and not read_dataset_config(folder) else folder
    params = with_token_ids(GPTNeoConfig.from_file(config or _find_config(folder), moe_policy), home)

    reader = _open(prefix)
    shapes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
    tensors = {}
    others = []
    for name in sorted(shapes):
        if name == GLOBAL_STEP or _SLOT.search(name):
            others.append(name)
        else:
            dtype = np.dtype(dtypes[name].as_numpy_dtype)
            tensors[name] = LazyTensor(tuple(shapes[name]), dtype, partial(_read, reader, prefix, name))

    def verify() -> None:
        for name in others:
            _read(reader, prefix, name)

    if GLOBAL_STEP in shapes:
        step = int(_read(reader, prefix, GLOBAL_STEP))
        params = params.replace(training=params.training | {GLOBAL_STEP: step})
    if params.huggingface_keys:
        params = params.replace(training=_without_defaults(params.training))
    return Checkpoint(prefix, "mesh-tf", params, tensors, read_files("mesh-tf", home, params, tokenizer), verify)


def write_mesh_tf(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Writes a folder that the original code restores: the checkpoint, its config and its dataset config.

    The original has one type for all variables, bfloat16 or float32. float16 and mixed types are widened to float32.

    Args:
        checkpoint: The checkpoint.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor.

    Raises:
        ConfigError: The original has no key for an option that the model uses.
        MissingExtraError: TensorFlow is not installed.
        OSError: A file cannot be written.
    """
    tf = import_tensorflow()
    if not _is_utf8(folder):
        raise OSError(0, "TensorFlow writes only where the path is UTF-8", str(folder))
    _write_configs(checkpoint, folder)  # first, because it refuses what the original has no key for
    dtype = _master_dtype(checkpoint)
    step = int(checkpoint.config.training.get(GLOBAL_STEP, 0))
    prefix = folder / f"model.ckpt-{step}"
    shards = _ShardWriter(prefix, step)
    try:
        for name, tensor in checkpoint.tensors.items():
            shards.make_room(tensor.nbytes)
            shards.add(name, tensor.read().astype(dtype, copy=False))
            progress(tensor.nbytes, name)
        shards.finish()
    except tf.errors.OpError as error:
        raise OSError(0, _reason(error), str(prefix)) from None
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    )


class _ShardWriter:
    """Writes variables in shards, so that only one shard is in memory, and merges the shards by name at the end.

    Args:
        prefix: The `model.ckpt-N` prefix of the merged checkpoint.
        step: The value of global_step, which goes into the first shard.
    """

    def __init__(self, prefix: Path, step: int) -> None:
        self._tf = import_tensorflow()
        self._prefix = prefix
        self._written: list[str] = []
        self._values: dict[str, Any] = {GLOBAL_STEP: self._tf.constant(step, self._tf.int64)}
        self._size = 0  # bytes of the model's variables that are in memory

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
        self._tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=self._written, destination_prefix=str(self._prefix), delete_old_dirs=False
        )

    def _write_shard(self) -> None:
        shard = str(self._prefix.parent / f"shard-{len(self._written)}")
        names = list(self._values)
        self._tf.raw_ops.SaveV2(
            prefix=shard, tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(self._values.values())
        )
        self._written.append(shard)
        self._values.clear()
        self._size = 0


def _master_dtype(checkpoint: Checkpoint) -> np.dtype:
    """The one type of all variables in the original: bfloat16 where all have it, else float32, which holds any type."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return DTYPES["bfloat16"] if dtypes == {DTYPES["bfloat16"]} else DTYPES["float32"]


def _write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    config = checkpoint.config
    params = config.to_original()
    params["precision"] = dtype_name(_master_dtype(checkpoint))
    # The original has no names for these: its dataset config holds the end-of-text id and the padding id. Without an
    # end-of-text id there is no dataset config, and the padding id stays where it is.
    eos = params.pop("eos_token_id", None)
    padding = params.get("pad_token_id")
    if eos is not None:
        params.pop("pad_token_id", None)
    params.pop(GLOBAL_STEP, None)
    for key in ("n_inner", "layer_norm_epsilon", "untied_lm_head"):
        if key in params:
            raise ConfigError(f"the original has no key for {key} = {params[key]}: it cannot hold this model")
    write_json(folder / CONFIG_FILE, _TRAINING_DEFAULTS | params)
    if config.activation_fn in OTHER_ACTIVATIONS:
        raise ConfigError(f"the original has no activation_fn {config.activation_fn}: it cannot hold this model")
    dataset = {"n_vocab": config.n_vocab, "path": "", "eval_path": ""}
    write_files("mesh-tf", checkpoint, folder)
    if TOKENIZER_FILE in checkpoint.files:
        dataset["tokenizer_path"] = TOKENIZER_FILE
    if eos is not None:
        dataset["eos_id"] = eos
        dataset["padding_id"] = config.n_vocab if padding is None else padding
        write_json(folder / "dataset.json", dataset)


def _without_defaults(training: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face model's training keys, without those that _write_configs added for the original's sake."""
    added = _TRAINING_DEFAULTS | {GLOBAL_STEP: 0}
    return {key: value for key, value in training.items() if key not in added or value != added[key]}


def _find_config(folder: Path) -> Path:
    """config.json, or the only JSON file in the folder that looks like a model's config.

    Raises:
        ConfigError: The folder holds no such file, or several.
    """
    if (folder / CONFIG_FILE).is_file():
        return folder / CONFIG_FILE
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            values = read_json(path)
        except ConfigError:
            continue
        if isinstance(values, dict) and "n_embd" in values:
            found.append(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder}: several configs ({names}): name one with --config")
    raise ConfigError(f"{folder}: no config.json beside the weights")


def _check_shards(prefix: Path) -> None:
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


def _step(name: str) -> int:
    """The step in a name such as model.ckpt-1000, or -1."""
    found = re.search(r"-(\d+)$", name)
    return int(found[1]) if found else -1

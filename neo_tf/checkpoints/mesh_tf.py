"""The original's checkpoints: `model.ckpt-N.index` and its data shards, as mesh_tensorflow's saver writes them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES, dtype_name
from neo_tf.checkpoints.model_files import read_files, write_files
from neo_tf.checkpoints.tensor_bundle import ShardWriter, check_shards, find_prefix, read_variables
from neo_tf.checkpoints.tokenizer_files import read_dataset_config, with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import OTHER_ACTIVATIONS
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.file_names import CONFIG_FILE, TOKENIZER_FILE
from neo_tf.json_files import read_json, write_json
from neo_tf.progress import Progress

GLOBAL_STEP = "global_step"
# Adam writes `<variable>/adam_m`, Adafactor `<variable>_slot_v`: no variable of the model has such an ending.
_SLOT = re.compile(r"(/adam_[mv]|_slot_(v|vr|vc|m))$")

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


def is_slot(name: str) -> bool:
    """Whether a variable of a checkpoint is an optimizer's slot."""
    return _SLOT.search(name) is not None


def read_mesh_tf(
    path: Path | str,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
    moe_policy: str | None = None,
    needs_tokenizer: bool = True,
) -> Checkpoint:
    """Opens a checkpoint of the original code. Optimizer slots and global_step are not among its tensors.

    Args:
        path: A folder, or a `model.ckpt-N` prefix.
        tokenizer: As in read_files.
        config: The path of the original's JSON config, where it is not beside the weights.
        moe_policy: As in open_checkpoint.
        needs_tokenizer: As in read_files.

    Raises:
        CheckpointError: A shard is missing or damaged, or the variables do not fit the config.
        ConfigError: The config is missing or does not fit the weights.
        MissingExtraError: TensorFlow is not installed.
    """
    prefix = find_prefix(path)
    if prefix is None:
        raise CheckpointError(f"{path}: no model.ckpt-N.index here")
    check_shards(prefix)
    folder = prefix.parent
    # The dataset config lies beside the weights, or beside a config that lies elsewhere.
    home = Path(config).parent if config is not None and not read_dataset_config(folder) else folder
    params = with_token_ids(GPTNeoConfig.from_file(config or find_config(folder), moe_policy), home)

    stored = read_variables(prefix)
    others = [name for name in stored if name == GLOBAL_STEP or is_slot(name)]
    tensors = {name: tensor for name, tensor in stored.items() if name not in others}

    def verify() -> None:
        for name in others:
            stored[name].read()

    if GLOBAL_STEP in stored:
        step = int(stored[GLOBAL_STEP].read())
        params = params.replace(training=params.training | {GLOBAL_STEP: step})
    if params.huggingface_keys:
        params = params.replace(training=_without_defaults(params.training))
    files = read_files("mesh-tf", home, params, tokenizer, needs_tokenizer)
    return Checkpoint(prefix, "mesh-tf", params, tensors, files, verify)


def read_slots(prefix: Path) -> dict[str, LazyTensor]:
    """The slots of the optimizer that a checkpoint of the original code was trained with, under the original's names.

    Raises:
        CheckpointError: The index is damaged. Reading a tensor raises it where a shard is.
        MissingExtraError: TensorFlow is not installed.
    """
    return {name: tensor for name, tensor in read_variables(prefix).items() if is_slot(name)}


def write_mesh_tf(
    checkpoint: Checkpoint, folder: Path, progress: Progress, slots: Mapping[str, LazyTensor] | None = None
) -> None:
    """Writes a folder that the original code restores: the checkpoint, its config and its dataset config.

    The original has one type for all variables, bfloat16 or float32. float16 and mixed types are widened to float32.

    Args:
        checkpoint: The checkpoint.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor, slots included.
        slots: An optimizer's slots, under the original's names. Without them the original evaluates and predicts with
            the checkpoint, but cannot go on training.

    Raises:
        ConfigError: The original has no key for an option that the model uses.
        MissingExtraError: TensorFlow is not installed.
        OSError: A file cannot be written.
    """
    step = int(checkpoint.config.training.get(GLOBAL_STEP, 0))
    shards = ShardWriter(folder / f"model.ckpt-{step}")
    _write_configs(checkpoint, folder)  # before the weights, because it refuses what the original has no key for
    dtype = _master_dtype(checkpoint)
    shards.add(GLOBAL_STEP, np.asarray(step, np.int64))
    stored = [(name, tensor, dtype) for name, tensor in checkpoint.tensors.items()]
    stored += [(name, tensor, DTYPES["float32"]) for name, tensor in (slots or {}).items()]
    for name, tensor, stored_dtype in stored:
        shards.make_room(tensor.nbytes)
        shards.add(name, tensor.read().astype(stored_dtype, copy=False))
        progress(tensor.nbytes, name)
    shards.finish()
    prefix = folder / f"model.ckpt-{step}"
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    )


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


def find_config(folder: Path) -> Path:
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

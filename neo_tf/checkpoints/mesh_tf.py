"""The original's checkpoints: what mesh_tensorflow's saver wrote, `model.ckpt-N.index` and its data shards."""

import json
import re
from pathlib import Path

import numpy as np

from neo_tf.checkpoints.checkpoint import DTYPES, Checkpoint, LazyTensor
from neo_tf.checkpoints.tokenizer_files import find_tokenizer, read_dataset_config, with_token_ids
from neo_tf.config import GPTNeoConfig, read_json
from neo_tf.errors import CheckpointError, ConfigError, first_line
from neo_tf.keras_backend import import_tensorflow

CONFIG_FILE = "config.json"
GLOBAL_STEP = "global_step"
# Adam writes `<variable>/adam_m`, Adafactor `<variable>_slot_v`: no variable of the model ends so.
_SLOT = re.compile(r"(/adam_[mv]|_slot_(v|vr|vc|m))$")
_SHARD_BYTES = 256_000_000
_READ_ERRORS = (ValueError, RuntimeError, IndexError)  # as tf.train's reader translates its own

# What the original's own configs say of everything that is not the model: enough for its main.py to start.
_TRAINING_DEFAULTS = {
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


def find_prefix(path):
    """The `…/model.ckpt-N` prefix that a path means, or None: the prefix itself, its .index, or a folder.

    In a folder the file `checkpoint` decides, else the highest step.
    """
    path = Path(str(path).removesuffix(".index"))
    if Path(f"{path}.index").is_file():
        return path
    if not path.is_dir():
        return None
    state = path / "checkpoint"
    if state.is_file():
        found = re.search(r'^model_checkpoint_path:\s*"(.+)"', state.read_text(errors="replace"), re.MULTILINE)
        # The path may be that of the machine that trained the model: its last part counts.
        if found and (path / (Path(found[1]).name + ".index")).is_file():
            return path / Path(found[1]).name
    indices = [(_step(found.stem), found) for found in path.glob("*.index")]
    return max(indices)[1].with_suffix("") if indices else None


def read_mesh_tf(path, tokenizer=None, config=None, moe_policy=None):
    """Opens an original checkpoint: its folder, or its prefix. Optimizer slots and global_step are left out.

    Args:
        path: a folder or a `model.ckpt-N` prefix.
        tokenizer: see find_tokenizer.
        config: path of the original's JSON config, where it is not beside the weights.
        moe_policy: see open_checkpoint.

    Raises:
        CheckpointError: shards that are missing or damaged, variables that do not fit.
        ConfigError: the config is missing or does not fit the weights.
    """
    prefix = find_prefix(path)
    if prefix is None:
        raise CheckpointError(f"{path}: no model.ckpt-N.index here")
    _check_shards(prefix)
    folder = prefix.parent
    # The dataset config lies beside the weights, or beside a config that lies elsewhere.
    home = Path(config).parent if config is not None and not read_dataset_config(folder) else folder
    config = with_token_ids(GPTNeoConfig.from_file(config or _find_config(folder), moe_policy), home)

    reader = _open(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    tensors, others = {}, []
    for name in sorted(shapes):
        if name == GLOBAL_STEP or _SLOT.search(name):
            others.append(name)
        else:
            dtype = np.dtype(dtypes[name].as_numpy_dtype)
            tensors[name] = LazyTensor(tuple(shapes[name]), dtype, lambda name=name: _read(reader, prefix, name))

    def verify():
        for name in others:
            _read(reader, prefix, name)

    if GLOBAL_STEP in shapes:
        step = int(_read(reader, prefix, GLOBAL_STEP))
        config = config.replace(training=config.training | {GLOBAL_STEP: step})
    text = find_tokenizer(home, config.n_vocab, tokenizer, config.training.get("datasets"))
    return Checkpoint(prefix, "mesh-tf", config, tensors, text, verify)


def write_mesh_tf(checkpoint, folder, progress):
    """Writes a folder that the original code restores: the checkpoint, its config and its dataset config.

    Shards are written one after the other and merged by name, so only one is in memory. The original has one type for
    all variables, bfloat16 or float32: float16 and mixed ones are widened to float32.

    Args:
        checkpoint: a Checkpoint.
        folder: an existing Path.
        progress: called as progress(name, bytes) after each tensor.
    """
    tf = import_tensorflow()
    _write_configs(checkpoint, folder)  # first: it refuses what the original has no key for
    dtype = _master_dtype(checkpoint)
    step = int(checkpoint.config.training.get(GLOBAL_STEP, 0))
    target = str(folder / f"model.ckpt-{step}")
    shards, names, values, size = [], [GLOBAL_STEP], [tf.constant(step, tf.int64)], 0

    def flush():
        nonlocal names, values, size
        if names:
            shard = str(folder / f"shard-{len(shards)}")
            tf.raw_ops.SaveV2(prefix=shard, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
            shards.append(shard)
        names, values, size = [], [], 0

    try:
        for name, tensor in checkpoint.tensors.items():
            if size and size + tensor.nbytes > _SHARD_BYTES:
                flush()
            value = tensor.read().astype(dtype, copy=False)
            names.append(name)
            values.append(tf.constant(value))
            size += value.nbytes
            progress(name, tensor.nbytes)
            del value
        flush()
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=shards, destination_prefix=target, delete_old_dirs=False)
    except tf.errors.OpError as error:
        raise OSError(0, _reason(error), target) from None
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "model.ckpt-{step}"\nall_model_checkpoint_paths: "model.ckpt-{step}"\n'
    )


def _master_dtype(checkpoint):
    """The one type of all variables in the original: bfloat16 where all are, else float32, which holds any of them."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return DTYPES["bfloat16"] if dtypes == {DTYPES["bfloat16"]} else DTYPES["float32"]


def _write_configs(checkpoint, folder):
    config = checkpoint.config
    params = config.to_original()
    params["precision"] = "bfloat16" if _master_dtype(checkpoint) == DTYPES["bfloat16"] else "float32"
    # The original has no names for these: eos and padding belong to its dataset config.
    eos, padding = params.pop("eos_token_id", None), params.pop("pad_token_id", None)
    params.pop(GLOBAL_STEP, None)
    for key in ("n_inner", "layer_norm_epsilon", "untied_lm_head"):
        if key in params:
            raise ConfigError(f"the original has no key for {key} = {params[key]}: it cannot hold this model")
    (folder / CONFIG_FILE).write_text(json.dumps(_TRAINING_DEFAULTS | params, indent=2) + "\n")
    dataset = {"n_vocab": config.n_vocab, "path": "", "eval_path": ""}
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
        dataset["tokenizer_path"] = "tokenizer.json"
    if eos is not None:
        dataset |= {"eos_id": eos, "padding_id": config.n_vocab if padding is None else padding}
        (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n")


def _find_config(folder):
    """config.json, or the only JSON in the folder that looks like a model's config."""
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
    names = ", ".join(path.name for path in found)
    what = f"several configs ({names}): name one with --config" if found else "no config.json beside the weights"
    raise ConfigError(f"{folder}: {what}")


def _check_shards(prefix):
    pattern = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-(\d{5})")
    counts = {int(found[1]) for file in prefix.parent.iterdir() if (found := pattern.fullmatch(file.name))}
    if len(counts) != 1:
        raise CheckpointError(
            f"{prefix}: {'shards of different counts' if counts else 'no data shards'} beside the index"
        )
    count = counts.pop()
    for number in range(count):
        shard = f"{prefix.name}.data-{number:05d}-of-{count:05d}"
        if not (prefix.parent / shard).is_file():
            raise CheckpointError(f"{prefix.parent}: shard {shard} is missing")


def _open(prefix):
    tf = import_tensorflow()
    try:
        return tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise CheckpointError(f"{prefix}.index: cannot be read: {_reason(error)}") from None


def _read(reader, prefix, name):
    tf = import_tensorflow()
    try:
        return reader.get_tensor(name)
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise CheckpointError(f"{prefix}: {name} cannot be read, the shard is damaged: {_reason(error)}") from None


def _reason(error):
    # TensorFlow wraps its message: {{function_node …}} … [Op:SaveV2] name:
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\].*", "", str(getattr(error, "message", None) or error))
    return first_line(text if text.strip() else error)


def _step(name):
    found = re.search(r"-(\d+)$", name)
    return int(found[1]) if found else -1

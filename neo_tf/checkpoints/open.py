"""Opening a checkpoint in whatever format it has."""

from pathlib import Path

from neo_tf.checkpoints.huggingface import is_huggingface, read_huggingface
from neo_tf.checkpoints.keras_weights import is_keras, read_keras
from neo_tf.checkpoints.mesh_tf import find_prefix, read_mesh_tf
from neo_tf.errors import CheckpointError
from neo_tf.hub import download, is_hub_id


def open_checkpoint(path, tokenizer=None, config=None, revision=None, moe_policy=None):
    """Opens a checkpoint; tensors are read when they are asked for.

    Args:
        path: a folder of any format, the original's `model.ckpt-N` prefix, or a hub id.
        tokenizer: a tokenizer.json, or a folder that holds one; else see find_tokenizer.
        config: the JSON config, where it does not lie beside the weights.
        revision: of a hub id.
        moe_policy: replaces a mixture of experts' moe_second_policy_eval, whose default is random.

    Returns:
        A Checkpoint whose tensors fit its config.

    Raises:
        CheckpointError: nothing there, no checkpoint, or a damaged one.
        ConfigError: the config is missing, unsupported, or contradicts the weights.
    """
    if is_hub_id(path) and find_prefix(path) is None:
        path = download(path, revision)
    path = Path(path)
    if find_prefix(path) is not None:
        return read_mesh_tf(path, tokenizer, config, moe_policy)
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder, and no model.ckpt-N prefix")
    if is_huggingface(path):
        return read_huggingface(path, tokenizer, config)
    if is_keras(path):
        return read_keras(path, tokenizer, config)
    if path.is_dir() and any(path.glob("*.onnx")):
        raise CheckpointError(f"{path}: an ONNX folder, which can be run but not converted or exported again")
    raise CheckpointError(
        f"{path}: not a checkpoint: no model.ckpt-N.index, no model.safetensors, no pytorch_model.bin,"
        " no model.weights.h5 here"
    )

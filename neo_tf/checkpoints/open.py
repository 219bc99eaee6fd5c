"""Opening a checkpoint in whatever format it has."""

from pathlib import Path
from typing import TypedDict

from neo_tf.checkpoints.checkpoint import Checkpoint
from neo_tf.checkpoints.huggingface import is_huggingface, read_huggingface
from neo_tf.checkpoints.keras_weights import is_keras, read_keras
from neo_tf.checkpoints.mesh_tf import find_prefix, read_mesh_tf
from neo_tf.errors import CheckpointError
from neo_tf.hub import download, is_hub_id


class OpenOptions(TypedDict, total=False):
    """The optional arguments of open_checkpoint, for functions that pass them on."""

    tokenizer: Path | str | None
    config: Path | str | None
    revision: str | None
    moe_policy: str | None


def open_checkpoint(
    path: Path | str,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
    revision: str | None = None,
    moe_policy: str | None = None,
) -> Checkpoint:
    """Opens a checkpoint. Its tensors are read later, one at a time.

    Args:
        path: A folder of any format, the original's `model.ckpt-N` prefix, or a hub id.
        tokenizer: A tokenizer.json, or a folder that holds one. By default find_tokenizer looks for it.
        config: The JSON config, where it does not lie beside the weights.
        revision: The branch, tag or commit of a hub id.
        moe_policy: Replaces moe_second_policy_eval of a mixture of experts, whose default is random.

    Returns:
        A Checkpoint whose tensors fit its config.

    Raises:
        CheckpointError: Nothing lies there, or it is not a checkpoint, or a damaged one.
        ConfigError: The config is missing, unsupported, or contradicts the weights.
        MissingExtraError: The format needs the extra `tensorflow`, which is not installed.
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

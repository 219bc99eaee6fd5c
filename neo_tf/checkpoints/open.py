"""Opening a checkpoint in whatever format it has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from neo_tf.checkpoints.adapter import ADAPTER_CONFIG_FILE, base_of, is_adapter, merge_adapter, read_adapter
from neo_tf.checkpoints.checkpoint import Checkpoint
from neo_tf.checkpoints.huggingface import is_huggingface, read_huggingface
from neo_tf.checkpoints.keras_weights import is_keras, read_keras
from neo_tf.checkpoints.mesh_tf import read_mesh_tf
from neo_tf.checkpoints.tensor_bundle import find_prefix, has_shards
from neo_tf.errors import CheckpointError
from neo_tf.git_lfs import refuse_pointer
from neo_tf.hub import download, is_hub_id

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
# Weights in formats that are not read, for a message.
_FOREIGN = {
    "tf_model*.h5": "transformers' weights for TensorFlow",
    "flax_model*.msgpack": "transformers' weights for Flax",
    "*.gguf": "weights for llama.cpp",
}


class OpenOptions(TypedDict, total=False):
    """The optional arguments of open_checkpoint, for functions that pass them on."""

    tokenizer: Path | str | None
    config: Path | str | None
    revision: str | None
    moe_policy: str | None
    adapter: Path | str | None


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies.

    Args:
        path: The folder or the `model.ckpt-N` prefix of its weights.
        adapter: The folder of the LoRA adapter that is merged into them; None where there is none.
    """

    path: Path
    adapter: Path | None = None


def find_source(path: Path | str, revision: str | None = None, adapter: Path | str | None = None) -> Source:
    """Finds the weights that a name means, and the adapter that goes into them; both are downloaded where needed.

    The folder of an adapter stands for the base that it names, with the adapter. A folder that holds a whole model and
    an adapter stands for both, as in transformers.

    Args:
        path: As in open_checkpoint; also an adapter's folder or hub id.
        revision: As in open_checkpoint.
        adapter: As in open_checkpoint.

    Raises:
        CheckpointError: The hub does not give what was named, or an adapter's base is not there.
    """
    found = _located(path, revision)
    if adapter is not None:
        return Source(found, _adapter_folder(adapter))
    if not is_adapter(found):
        return Source(found)
    if is_huggingface(found):
        return Source(found, found)
    return Source(_base_of_adapter(found), found)


def _located(path: Path | str, revision: str | None = None) -> Path:
    if is_hub_id(path) and find_prefix(path) is None:
        return download(path, revision)
    return Path(path)


def _adapter_folder(adapter: Path | str) -> Path:
    folder = _located(adapter)
    if not is_adapter(folder):
        raise CheckpointError(
            f"{adapter}: not an adapter: no {ADAPTER_CONFIG_FILE} with adapter_model.safetensors here"
        )
    return folder


def _base_of_adapter(folder: Path) -> Path:
    base, revision = base_of(folder)
    if base is None:
        raise CheckpointError(
            f"{folder}: an adapter that does not name its base: give the base as the model, and this as --adapter"
        )
    if Path(base).exists():
        return Path(base)
    reason = "no such folder"
    if is_hub_id(base):
        try:
            return download(base, revision)
        except CheckpointError as error:
            reason = str(error)
    raise CheckpointError(
        f"{folder}: not a model but a LoRA adapter of {base}, which is not there ({reason}): "
        "give the base's folder as the model, and this one as --adapter"
    )


def open_checkpoint(
    path: Path | str,
    tokenizer: Path | str | None = None,
    config: Path | str | None = None,
    revision: str | None = None,
    moe_policy: str | None = None,
    adapter: Path | str | None = None,
) -> Checkpoint:
    """Opens a checkpoint. Its tensors are read later, one at a time.

    Args:
        path: A folder of any format, the original's `model.ckpt-N` prefix, or a hub id. The folder or hub id of a LoRA
            adapter stands for the base that it names, with the adapter.
        tokenizer: A tokenizer.json, or a folder that holds one. By default find_tokenizer looks for it.
        config: The JSON config, where it does not lie beside the weights.
        revision: The branch, tag or commit of a hub id.
        moe_policy: Replaces moe_second_policy_eval of a mixture of experts, whose default is random.
        adapter: The folder or hub id of a LoRA adapter, which is merged into the weights.

    Returns:
        A Checkpoint whose tensors fit its config.

    Raises:
        CheckpointError: Nothing lies there, or it is not a checkpoint, or a damaged one.
        ConfigError: The config is missing, unsupported, or contradicts the weights.
        MissingExtraError: The format needs the extra `tensorflow`, which is not installed.
    """
    source = find_source(path, revision, adapter)
    checkpoint = _read(source.path, tokenizer, config, moe_policy)
    if source.adapter is None:
        return checkpoint
    return merge_adapter(checkpoint, read_adapter(source.adapter), keep_tokenizer=tokenizer is not None)


def _read(path: Path, tokenizer: Path | str | None, config: Path | str | None, moe_policy: str | None) -> Checkpoint:
    """Opens the checkpoint at a path; see open_checkpoint."""
    if tokenizer is None:
        for name in _TOKENIZER_FILES:
            refuse_pointer(path / name)
    if _is_mesh_tf(path):
        return read_mesh_tf(path, tokenizer, config, moe_policy)
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder, and no model.ckpt-N prefix")
    if is_huggingface(path):
        return read_huggingface(path, tokenizer, config)
    if is_keras(path):
        return read_keras(path, tokenizer, config)
    raise CheckpointError(f"{path}: {_what_else(path)}")


def _is_mesh_tf(path: Path) -> bool:
    """Whether a path leads to a checkpoint of the original's, rather than to a stray index beside other weights."""
    prefix = find_prefix(path)
    if prefix is None:
        return False
    return has_shards(prefix) or not path.is_dir() or not (is_huggingface(path) or is_keras(path))


def _what_else(path: Path) -> str:
    """Why a path is not a checkpoint."""
    if not path.is_dir():
        return "a file, where a folder with a model is wanted"
    broken = next((link for link in sorted(path.iterdir()) if link.is_symlink() and not link.exists()), None)
    if broken is not None:
        return f"{broken.name} is a link to {broken.readlink()}, where no file is"
    if any(path.glob("*.onnx")):
        return "an ONNX folder, which can be run but not converted or exported again"
    for pattern, kind in _FOREIGN.items():
        found = next(path.glob(pattern), None)
        if found is not None:
            return f"holds {found.name}, {kind}, which neo-tf does not read: save it with transformers as safetensors"
    return (
        "not a checkpoint: no model.ckpt-N.index, no model.safetensors, no pytorch_model.bin, no model.weights.h5 here"
    )

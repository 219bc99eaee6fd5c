"""Downloading a model from the Hugging Face hub: only the files that are needed, into the hub's own cache."""

import logging
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from neo_tf.errors import CheckpointError, first_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIGS_AND_TOKENIZER = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
# An adapter beside a whole model is merged into it, so it is always downloaded, too.
_ALWAYS = (*_CONFIGS_AND_TOKENIZER, "adapter_model.safetensors", "adapter_model.bin")
_SUBFOLDER = "additional_chat_templates/"  # the only one with files that are read
# The kinds of weights in order of preference: the first kind that a model has is downloaded. A kind is a tuple of file
# patterns; a model has the kind when one of its files fits the first or the second pattern.
_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("model.ckpt-*", "model.ckpt-*", "checkpoint"),
    ("decoder.onnx", "decoder.onnx", "*.onnx", "model.onnx_data"),  # the other graphs, such as prefill.onnx, too
    ("adapter_model.safetensors", "adapter_model.safetensors"),
    ("adapter_model.bin", "adapter_model.bin"),
)


def is_hub_id(name: Path | str) -> bool:
    """Whether a name is a hub id: it has the form owner/model, and neither a path nor a folder `owner` exists."""
    text = str(name)
    if _ID.fullmatch(text) is None or text.startswith("."):
        return False
    return not Path(text).exists() and not Path(text).parent.is_dir()  # a typo in models/x is not taken for a hub id


def download(hub_id: Path | str, revision: str | None = None) -> Path:
    """Downloads a model, or finds it in the hub's cache where the hub cannot be reached.

    Args:
        hub_id: The model, as owner/name.
        revision: A branch, tag or commit. The default is the main branch.

    Returns:
        The model's folder in the cache.

    Raises:
        CheckpointError: The model can neither be reached nor is it in the cache. HF_HUB_OFFLINE is honoured.
    """
    from huggingface_hub import HfApi, snapshot_download

    _log_errors_alone()
    hub_id = str(hub_id)
    where = f"{hub_id} at {revision}" if revision else hub_id
    try:
        files = needed_files(HfApi().list_repo_files(hub_id, revision=revision))
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except Exception as error:  # offline, unreachable, unknown, or no right to read it
        folder = _cached(hub_id, revision)
        if folder is None:
            reason = first_line(error)
            raise CheckpointError(f"{where}: no such folder, and the hub did not give it: {reason}") from None
        return folder
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except Exception as error:  # the network broke off, or the disk is full
        raise CheckpointError(f"{where}: the download failed: {first_line(error)}") from None


def tokenizer_path(tokenizer: Path | str | None, revision: str | None = None) -> Path | str | None:
    """Where a tokenizer lies that is named by a path or by the hub id of a model, of which it is downloaded alone.

    Raises:
        CheckpointError: The hub does not give it, and it is not in the cache.
    """
    if tokenizer is None or Path(tokenizer).exists() or not is_hub_id(tokenizer):
        return tokenizer
    from huggingface_hub import snapshot_download

    _log_errors_alone()
    wanted = list(_CONFIGS_AND_TOKENIZER)
    name = str(tokenizer)
    for is_local in (False, True):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=is_local))
        except Exception as error:  # offline, unreachable, unknown, or no right to read it
            reason = first_line(error)
    raise CheckpointError(f"{tokenizer}: no such tokenizer here, and the hub did not give it: {reason}")


def _log_errors_alone() -> None:
    """Keeps the hub's client from logging every retry: the final error says enough."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder of an earlier download, or None."""
    from huggingface_hub import snapshot_download

    for patterns in _WEIGHTS:
        # The hub's client finds a cached folder only with patterns that it was downloaded with.
        wanted = [*_ALWAYS, *patterns]
        try:
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted, local_files_only=True))
        except Exception:  # it is not there, or not whole
            continue
        if any(path for pattern in patterns[:2] for path in folder.glob(pattern)):
            return folder
    return None


def needed_files(names: Iterable[str]) -> list[str]:
    """Picks the files that neo-tf reads: the configs, the tokenizer, and one kind of weights.

    Args:
        names: All files of a model, as paths below its folder.

    Raises:
        CheckpointError: None of the files holds weights that neo-tf reads.
    """
    top = [name for name in names if "/" not in name.removeprefix(_SUBFOLDER)]
    for patterns in _WEIGHTS:
        if any(fnmatch(name, patterns[0]) or fnmatch(name, patterns[1]) for name in top):
            return [name for name in top if any(fnmatch(name, pattern) for pattern in (*_ALWAYS, *patterns))]
    raise CheckpointError(f"no weights that neo-tf reads among its files ({', '.join(sorted(top)[:8])})")

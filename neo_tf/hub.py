"""Models of the Hugging Face hub: only the files that are needed, into the hub's own cache."""

import logging
import re
from fnmatch import fnmatch
from pathlib import Path

from neo_tf.errors import CheckpointError, first_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ALWAYS = ("*.json", "merges.txt")
# Weights in the order of preference: the first kind that a model has is the one that is downloaded.
_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("model.ckpt-*", "model.ckpt-*", "checkpoint"),
    ("decoder.onnx", "decoder.onnx", "*.onnx", "model.onnx_data"),  # all graphs: prefill.onnx, other precisions
)


def is_hub_id(name):
    """Whether a name is an owner and a model: no folder of the name exists, and none of the owner's."""
    text = str(name)
    if _ID.fullmatch(text) is None or text.startswith("."):
        return False
    return not Path(text).exists() and not Path(text).parent.is_dir()  # a typo in models/x is no hub id


def download(hub_id, revision=None):
    """Downloads a model, or finds it in the hub's cache; returns its folder.

    Args:
        hub_id: owner/name.
        revision: a branch, tag or commit; the main branch where it is None.

    Raises:
        CheckpointError: it is neither reachable nor in the cache. HF_HUB_OFFLINE is honoured.
    """
    from huggingface_hub import HfApi, snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries: the error that ends them says enough
    where = f"{hub_id} at {revision}" if revision else str(hub_id)
    try:
        patterns = needed_files(HfApi().list_repo_files(hub_id, revision=revision))
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except Exception as error:  # offline, unreachable, unknown, or no right to read it
        folder = _cached(hub_id, revision)
        if folder is None:
            reason = first_line(error)
            raise CheckpointError(f"{where}: no such folder, and not to be had from the hub: {reason}") from None
        return folder
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the network broke off, or the disk is full
        raise CheckpointError(f"{where}: the download failed: {first_line(error)}") from None


def _cached(hub_id, revision):
    """The folder of an earlier download, or None."""
    from huggingface_hub import snapshot_download

    for patterns in _WEIGHTS:
        # The hub's client takes a cached folder only with patterns that it was downloaded with.
        wanted = {"allow_patterns": [*_ALWAYS, *patterns], "local_files_only": True}
        try:
            folder = Path(snapshot_download(hub_id, revision=revision, **wanted))
        except Exception:  # not there, or not whole
            continue
        if any(path for pattern in patterns[:2] for path in folder.glob(pattern)):
            return folder
    return None


def needed_files(names):
    """The files among `names` that neo-tf reads: configs, the tokenizer, and one kind of weights.

    Raises:
        CheckpointError: there are no weights among them.
    """
    top = [name for name in names if "/" not in name]
    for patterns in _WEIGHTS:
        if any(fnmatch(name, patterns[0]) or fnmatch(name, patterns[1]) for name in top):
            return [name for name in top if any(fnmatch(name, pattern) for pattern in (*_ALWAYS, *patterns))]
    raise CheckpointError(f"no weights that neo-tf reads among its files ({', '.join(sorted(top)[:8])})")

"""What a MODEL argument means: an ONNX folder, a checkpoint that is exported into the cache once, or a hub id."""

import contextlib
import hashlib
import os
from pathlib import Path

import neo_tf
from neo_tf.errors import CheckpointError, OutputError
from neo_tf.hub import download, is_hub_id
from neo_tf.onnx_folder import DECODER_FILE, FORMAT, OnnxFolder


def resolve_model(model, tokenizer=None, revision=None, progress=None, moe_policy=None, precision=None):
    """The ONNX folder that a MODEL means.

    Args:
        model: an ONNX folder; a checkpoint folder or `model.ckpt-N` prefix, which is exported into the cache unless
            it is there already; or a hub id, which is downloaded first.
        tokenizer, revision, moe_policy: see neo_tf.open_checkpoint.
        precision: that a checkpoint is exported in, fp32 by default; an ONNX folder's own are chosen from later.
        progress: a function from the bytes to be written to a context manager of a callback for export_onnx.

    Returns:
        A Path.

    Raises:
        NeoTFError: nothing usable is there; see open_checkpoint, and export_onnx.
    """
    path = Path(model)
    if (path / DECODER_FILE).is_file():
        return path
    if OnnxFolder.find(path):  # without decoder.onnx
        raise CheckpointError(
            f"{path}: exported with --ops standard, for other runtimes; export it without that to generate here"
        )
    if not path.exists() and not Path(f"{path}.index").is_file():
        if not is_hub_id(model):
            raise CheckpointError(f"{model}: no such folder, and no hub id such as EleutherAI/gpt-neo-125M")
        path = download(str(model), revision)
        if (path / DECODER_FILE).is_file():
            return path
    return _exported(path, tokenizer, progress, moe_policy, precision or "fp32")


def cache_folder():
    """Where exported models are kept: $NEO_TF_CACHE, else the user's cache folder."""
    if os.environ.get("NEO_TF_CACHE"):
        return Path(os.environ["NEO_TF_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("neo-tf")


def _exported(path, tokenizer, progress, moe_policy, precision):
    folder = cache_folder() / f"{path.resolve().name}-{fingerprint(path, tokenizer, moe_policy, precision)}"
    if not (folder / DECODER_FILE).is_file():
        # Imported here: a machine that runs an exported folder never needs onnx.
        from neo_tf.checkpoints import open_checkpoint
        from neo_tf.export.package import export_onnx

        checkpoint = open_checkpoint(path, tokenizer, moe_policy=moe_policy)
        with progress(checkpoint.nbytes) if progress else contextlib.nullcontext() as callback:
            try:
                export_onnx(checkpoint, folder, precision, progress=callback)
            except OutputError:
                if not (folder / DECODER_FILE).is_file():  # else another process made the same folder meanwhile
                    raise
    return folder


def fingerprint(path, tokenizer, moe_policy=None, precision=None):
    """Changes with the checkpoint's files (names, sizes, times), the tokenizer's, and neo-tf's version and format."""
    path = path.resolve()
    files = path.iterdir() if path.is_dir() else path.parent.glob("*")
    seen = [neo_tf.__version__, str(FORMAT), str(precision), str(path), str(tokenizer), str(moe_policy)]
    if tokenizer:
        seen.append(_stamp(Path(tokenizer)))
    seen += sorted(f"{file.name} {_stamp(file)}" for file in files if file.is_file())
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:12]


def _stamp(file):
    try:
        status = file.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"

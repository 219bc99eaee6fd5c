"""What a MODEL argument means: an ONNX folder, a checkpoint that is exported into the cache once, or a hub id."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import neo_tf
from neo_tf.errors import CheckpointError, OutputError, RequestError
from neo_tf.file_names import CHAT_TEMPLATES_FOLDER
from neo_tf.hub import download, is_hub_id, tokenizer_path
from neo_tf.onnx_folder import DECODER_FILE, FORMAT, OnnxFolder, can_decode
from neo_tf.progress import Progress, no_progress

# Makes a progress bar of a number of bytes: a context manager of the callback that moves it.
ProgressFactory = Callable[[int], AbstractContextManager[Progress]]


def resolve_model(
    model: Path | str,
    tokenizer: Path | str | None = None,
    revision: str | None = None,
    make_progress: ProgressFactory | None = None,
    moe_policy: str | None = None,
    precision: str | None = None,
    adapter: Path | str | None = None,
) -> Path:
    """Finds the ONNX folder that a MODEL means, and makes it where it is not there yet.

    Args:
        model: An ONNX folder; a checkpoint folder or `model.ckpt-N` prefix, which is exported into the cache unless
            it is there already; or a hub id, which is downloaded first.
        tokenizer, revision, moe_policy: See neo_tf.open_checkpoint.
        make_progress: Makes the progress bar of an export. It is called only where a checkpoint is exported.
        precision: The precision that a checkpoint is exported in, fp32 by default. An ONNX folder is returned
            whatever its precisions are.
        adapter: A LoRA adapter that is merged into a checkpoint; see neo_tf.open_checkpoint.

    Raises:
        RequestError: An adapter is given for an ONNX folder.
        NeoTFError: Nothing usable is there; see open_checkpoint and export_onnx.
    """
    path = Path(model)
    tokenizer = tokenizer_path(tokenizer)
    if can_decode(path):
        return _without_adapter(path, adapter)
    if OnnxFolder.find(path):  # without decoder.onnx, it can only be one for other runtimes
        raise CheckpointError(
            f"{path}: exported with --ops standard, for other runtimes; export it without that to generate here"
        )
    if not path.exists() and not Path(f"{path}.index").is_file():
        if not is_hub_id(model):
            raise CheckpointError(f"{model}: no such folder, and no hub id such as EleutherAI/gpt-neo-125M")
        path = download(str(model), revision)
        if can_decode(path):
            return _without_adapter(path, adapter)
    return _exported(path, tokenizer, make_progress, moe_policy, precision or "fp32", adapter)


def _without_adapter(folder: Path, adapter: Path | str | None) -> Path:
    if adapter is not None:
        raise RequestError(f"{folder}: an ONNX folder, which no adapter can be merged into: export it with --adapter")
    return folder


def cache_folder() -> Path:
    """The folder that holds exported models: $NEO_TF_CACHE, or else the user's cache folder."""
    if os.environ.get("NEO_TF_CACHE"):
        return Path(os.environ["NEO_TF_CACHE"])
    from platformdirs import user_cache_path

    return user_cache_path("neo-tf")


def _exported(
    path: Path,
    tokenizer: Path | str | None,
    make_progress: ProgressFactory | None,
    moe_policy: str | None,
    precision: str,
    adapter: Path | str | None,
) -> Path:
    """The folder in the cache that a checkpoint is exported into, unless it is there already."""
    # Imported here: a machine that runs an exported folder needs neither these nor onnx.
    from neo_tf.checkpoints.open import find_source, open_checkpoint

    source = find_source(path, adapter=adapter)
    of_adapter = fingerprint(source.adapter, None) if source.adapter else None
    name = f"{path.resolve().name}-{fingerprint(source.path, tokenizer, moe_policy, precision, of_adapter)}"
    folder = cache_folder() / name
    if not (folder / DECODER_FILE).is_file():
        from neo_tf.export.package import export_onnx

        checkpoint = open_checkpoint(source.path, tokenizer, moe_policy=moe_policy, adapter=source.adapter)
        if make_progress is None:
            bar: AbstractContextManager[Progress] = contextlib.nullcontext(no_progress)
        else:
            bar = make_progress(checkpoint.nbytes)
        with bar as progress:
            try:
                export_onnx(checkpoint, folder, precision, progress=progress)
            except OutputError:
                if not (folder / DECODER_FILE).is_file():  # else another process made the same folder meanwhile
                    raise
    return folder


def fingerprint(
    path: Path,
    tokenizer: Path | str | None,
    moe_policy: str | None = None,
    precision: str | None = None,
    adapter: str | None = None,
) -> str:
    """A short hash of all that an export depends on.

    It changes with the names, sizes and times of the checkpoint's files and the tokenizer's, with the other arguments,
    and with neo-tf's version and format. `adapter` is the fingerprint of an adapter's own folder.
    """
    path = path.resolve()
    files = path.iterdir() if path.is_dir() else path.parent.glob("*")
    templates = path / CHAT_TEMPLATES_FOLDER
    seen = [neo_tf.__version__, str(FORMAT), str(precision), str(path), str(tokenizer), str(moe_policy)]
    if adapter:
        seen.append(adapter)
    if tokenizer:
        seen += _stamps(Path(tokenizer))
    seen += sorted(f"{file.name} {_stamp(file)}" for file in files if file.is_file())
    seen += _stamps(templates) if templates.is_dir() else []
    return hashlib.sha256("\n".join(seen).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def content_digest(folder: Path, tokenizer: Path | str | None) -> str:
    """A hash of the contents of a model's files and the tokenizer's: the same for copies on other machines."""
    digest = hashlib.sha256()
    for root in (folder, Path(tokenizer)) if tokenizer else (folder,):
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if file.is_file():
                digest.update(str(file.relative_to(root)).encode("utf-8", "surrogateescape"))
                with open(file, "rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _stamps(path: Path) -> list[str]:
    """The size and time of a file, or of each file of a folder and its subfolders."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sorted(f"{file} {_stamp(file)}" for file in files)


def _stamp(file: Path) -> str:
    """A file's size and time."""
    try:
        status = file.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"

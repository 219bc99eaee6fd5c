"""What the commands that read a checkpoint have in common: they open it, write it, and say what they wrote."""

import codecs
import time
from pathlib import Path

import neo_tf
from neo_tf.checkpoints import Checkpoint
from neo_tf.cli.console import byte_progress, console
from neo_tf.cli.shared_options import Format
from neo_tf.errors import RequestError
from neo_tf.file_names import MERGES_FILE, UNREAD_TOKENIZER_FILES, VOCAB_FILE
from neo_tf.sizes import readable_bytes
from neo_tf.tokenizer_backend import has_tokenizer
from neo_tf.variables import count_parameters


def open_source(
    src: str,
    *,
    tokenizer: Path | None = None,
    config: Path | None = None,
    revision: str | None = None,
    moe_policy: str | None = None,
    n_vocab: int | None = None,
    adapter: str | None = None,
) -> Checkpoint:
    """Opens the checkpoint that SRC names, and trims its vocabulary to n_vocab ids; see open_checkpoint."""
    checkpoint = neo_tf.open_checkpoint(src, tokenizer, config, revision, moe_policy, adapter)
    if moe_policy and checkpoint.config.moe_layers:
        console.print(f"note: --moe-policy {moe_policy!r} replaces the policy in the model's config")
    unread = sorted({VOCAB_FILE, MERGES_FILE, *UNREAD_TOKENIZER_FILES} & set(checkpoint.files))
    if unread and not has_tokenizer(checkpoint.files):
        console.print(f"note: {', '.join(unread)}: kept, but no tokenizer that neo-tf reads (docs/folders.md)")
    if n_vocab is None:
        return checkpoint
    return checkpoint.with_vocab(n_vocab)


def read_text(path: Path | None) -> str | None:
    """Reads the text of a file; returns None where no file is given.

    Raises:
        RequestError: The text is not UTF-8.
    """
    return None if path is None else decoded(path.read_bytes(), path)


def decoded(data: bytes, where: Path | str) -> str:
    """The text of a file's bytes, without a byte order mark, and with line feeds for all kinds of line breaks.

    It is UTF-8, or UTF-16 where a byte order mark says so, as Windows' shells write it.

    Raises:
        RequestError: It is neither.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{where}: not a text in UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_checkpoint(
    checkpoint: Checkpoint,
    dst: Path,
    to: Format,
    *,
    force: bool,
    title: str,
    started: float,
    allow_nan: bool = False,
) -> None:
    """Writes a checkpoint in a format with a progress bar, and prints what was written; see print_written."""
    with byte_progress(title, checkpoint.nbytes) as progress:
        neo_tf.save_checkpoint(checkpoint, dst, to.value, force=force, allow_nan=allow_nan, progress=progress)
    print_written(checkpoint, dst, to.value, started)


def print_written(checkpoint: Checkpoint, dst: Path, what: str, started: float) -> None:
    """Prints what was written.

    Args:
        checkpoint: What was written.
        dst: The folder that holds it now.
        what: The format.
        started: The reading of time.perf_counter when the command began.
    """
    size = sum(file.stat().st_size for file in dst.iterdir())
    count = f"{count_parameters(checkpoint.config) / 1e6:,.1f} million parameters"
    console.print(f"{dst}: {what}, {count}, {readable_bytes(size)}, {time.perf_counter() - started:.1f} s")

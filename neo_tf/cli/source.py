"""What the commands that read a checkpoint and write a folder have in common."""

import time

import neo_tf
from neo_tf.cli.console import console
from neo_tf.errors import RequestError
from neo_tf.sizes import readable_bytes
from neo_tf.variables import count_parameters


def open_source(src, n_vocab=None, **opening):
    """The Checkpoint that SRC names, its vocabulary trimmed where that was asked for; see open_checkpoint."""
    checkpoint = neo_tf.open_checkpoint(src, **opening)
    if opening.get("moe_policy") and checkpoint.config.moe_layers:
        console.print(f"note: second experts by {opening['moe_policy']!r}, whatever the original's config says")
    return checkpoint if n_vocab is None else checkpoint.with_vocab(n_vocab)


def read_text(path):
    """The text of a file in UTF-8. Raises RequestError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text in UTF-8") from None


def print_written(checkpoint, dst, what, started):
    """Prints what was written: where, in which format, how large, and how long it took since `started`."""
    size = sum(file.stat().st_size for file in dst.iterdir())
    count = f"{count_parameters(checkpoint.config) / 1e6:,.1f} million parameters"
    console.print(f"{dst}: {what}, {count}, {readable_bytes(size)}, {time.perf_counter() - started:.1f} s")

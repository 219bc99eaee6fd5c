"""`neo-tf convert`: a checkpoint in another format."""

import time

import neo_tf
from neo_tf.cli.console import byte_progress
from neo_tf.cli.shared_options import (
    ConfigPath,
    Destination,
    Force,
    Format,
    MoePolicy,
    Revision,
    Source,
    To,
    TokenizerPath,
    VocabSize,
)
from neo_tf.cli.source import open_source, print_written


def convert(
    src: Source,
    dst: Destination,
    to: To = Format.keras,
    tokenizer: TokenizerPath = None,
    config: ConfigPath = None,
    n_vocab: VocabSize = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    force: Force = False,
):
    """Convert a checkpoint between the original's format, Keras and Hugging Face."""
    started = time.perf_counter()
    checkpoint = open_source(src, n_vocab, tokenizer=tokenizer, config=config, revision=revision, moe_policy=moe_policy)
    with byte_progress("converting", checkpoint.nbytes) as progress:
        neo_tf.save_checkpoint(checkpoint, dst, to.value, force=force, progress=progress)
    print_written(checkpoint, dst, to.value, started)

"""`neo-tf convert`: a checkpoint in another format."""

import time

from neo_tf.cli.shared_options import (
    AdapterPath,
    AllowNan,
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
from neo_tf.cli.source import open_source, write_checkpoint


def convert(
    src: Source,
    dst: Destination,
    to: To = Format.keras,
    tokenizer: TokenizerPath = None,
    config: ConfigPath = None,
    n_vocab: VocabSize = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
    allow_nan: AllowNan = False,
    force: Force = False,
) -> None:
    """Convert a checkpoint between the original's format, Keras and Hugging Face."""
    started = time.perf_counter()
    checkpoint = open_source(
        src,
        tokenizer=tokenizer,
        config=config,
        revision=revision,
        moe_policy=moe_policy,
        n_vocab=n_vocab,
        adapter=adapter,
    )
    write_checkpoint(checkpoint, dst, to, force=force, allow_nan=allow_nan, title="converting", started=started)

"""`neo-tf init`: a model with random weights."""

import time
from pathlib import Path
from typing import Annotated

import typer

from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.cli.shared_options import Destination, Force, Format, To
from neo_tf.cli.source import write_checkpoint


def init(
    size: Annotated[
        str,
        typer.Argument(
            metavar="SIZE",
            help="The size of the model: 125M, 350M, 1.3B, 2.7B, or the path of a config.json in the original's or "
            "Hugging Face's form.",
        ),
    ],
    dst: Destination,
    to: To = Format.keras,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="The seed of the random weights. The same seed gives the same weights.", min=0),
    ] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The tokenizer: a tokenizer.json, or a folder that holds one. By default GPT-2's, where the model's "
            "vocabulary is large enough for it.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Make a model with random weights, to be trained or to test with."""
    started = time.perf_counter()
    checkpoint = random_checkpoint(size, seed=seed, tokenizer=tokenizer)
    write_checkpoint(checkpoint, dst, to, force=force, title="initialising", started=started)

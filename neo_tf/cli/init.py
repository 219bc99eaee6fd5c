"""`neo-tf init`: a model with random weights."""

import time
from typing import Annotated

import typer

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.cli.console import byte_progress
from neo_tf.cli.shared_options import Destination, Force, Format, To, TokenizerPath
from neo_tf.cli.source import print_written


def init(
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="125M, 350M, 1.3B, 2.7B, or a config.json in either format.")
    ],
    dst: Destination,
    to: To = Format.keras,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.", min=0)] = 0,
    tokenizer: TokenizerPath = None,
    force: Force = False,
):
    """Make a model with random weights: a start for training, a load for tests."""
    started = time.perf_counter()
    checkpoint = random_checkpoint(size, seed=seed, tokenizer=tokenizer)
    with byte_progress("initialising", checkpoint.nbytes) as progress:
        neo_tf.save_checkpoint(checkpoint, dst, to.value, force=force, progress=progress)
    print_written(checkpoint, dst, to.value, started)

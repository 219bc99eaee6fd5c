"""Converting a checkpoint from any format to any other."""

from pathlib import Path
from typing import Protocol, Unpack

from neo_tf.atomic import new_folder
from neo_tf.checkpoints.checkpoint import Checkpoint
from neo_tf.checkpoints.huggingface import write_huggingface
from neo_tf.checkpoints.keras_weights import write_keras
from neo_tf.checkpoints.mesh_tf import write_mesh_tf
from neo_tf.checkpoints.open import OpenOptions, open_checkpoint
from neo_tf.errors import RequestError
from neo_tf.progress import Progress, no_progress


class Writer(Protocol):
    """A function that writes a checkpoint in one format."""

    def __call__(self, checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
        """Writes the checkpoint's files.

        Args:
            checkpoint: The checkpoint.
            folder: The folder that the files go into. It exists and is empty.
            progress: Called as progress(bytes, name) after each tensor. The bytes add up to checkpoint.nbytes.

        Raises:
            ConfigError: The format cannot express the model.
            OSError: A file cannot be written.
        """


WRITERS: dict[str, Writer] = {"keras": write_keras, "huggingface": write_huggingface, "mesh-tf": write_mesh_tf}


def convert(
    src: Path | str,
    dst: Path | str,
    to: str = "keras",
    *,
    n_vocab: int | None = None,
    force: bool = False,
    allow_nan: bool = False,
    progress: Progress | None = None,
    **opening: Unpack[OpenOptions],
) -> Checkpoint:
    """Converts a checkpoint, tensor by tensor. A tensor keeps its bits where the new format has its type.

    Args:
        src: What open_checkpoint opens.
        dst: The folder to write. It appears whole or not at all.
        to: The format: "keras", "huggingface" or "mesh-tf".
        n_vocab: The number of rows that a padded vocabulary is trimmed to. By default it is not trimmed.
        force: Whether dst is replaced where it exists.
        allow_nan: Whether tensors that hold NaN or Inf are written like others. By default they are refused by name.
        progress: Called as progress(bytes, name) after each tensor. The bytes add up to those of the checkpoint.
        **opening: tokenizer, config, revision and moe_policy, as in open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError: See open_checkpoint and Checkpoint.with_vocab. Or a tensor holds NaN or Inf.
        OutputError: dst exists and is not empty, or it cannot be written.
        RequestError: The format is unknown.

    Example:
        neo_tf.convert("the_original/model.ckpt-362000", "models/keras")
    """
    check_format(to)
    checkpoint = open_checkpoint(src, **opening)
    if n_vocab is not None:
        checkpoint = checkpoint.with_vocab(n_vocab)
    save_checkpoint(checkpoint, dst, to, force=force, allow_nan=allow_nan, progress=progress)
    return checkpoint


def save_checkpoint(
    checkpoint: Checkpoint,
    dst: Path | str,
    to: str,
    *,
    force: bool = False,
    allow_nan: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a Checkpoint as a folder of the format `to`. For the arguments and errors see convert."""
    check_format(to)
    if not allow_nan:
        checkpoint = checkpoint.refusing_nan()
    with new_folder(dst, force=force, needs=checkpoint.nbytes, source=checkpoint.path) as folder:
        checkpoint.verify()
        WRITERS[to](checkpoint, folder, progress or no_progress)


def check_format(name: str) -> None:
    """Raises a RequestError where a checkpoint cannot be written in the format `name`."""
    if name not in WRITERS:
        raise RequestError(f"unknown format {name!r} (known: {', '.join(WRITERS)})")

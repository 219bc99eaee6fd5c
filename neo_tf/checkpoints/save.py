"""From any format to any format."""

from neo_tf.atomic import new_folder
from neo_tf.checkpoints.huggingface import write_huggingface
from neo_tf.checkpoints.keras_weights import write_keras
from neo_tf.checkpoints.mesh_tf import write_mesh_tf
from neo_tf.checkpoints.open import open_checkpoint
from neo_tf.errors import RequestError

WRITERS = {"keras": write_keras, "huggingface": write_huggingface, "mesh-tf": write_mesh_tf}


def convert(src, dst, to="keras", *, n_vocab=None, force=False, progress=None, **opening):
    """Converts a checkpoint, tensor by tensor; each is equal bit for bit where both formats have its precision.

    Args:
        src: see open_checkpoint.
        dst: the folder to write; appears whole or not at all.
        to: "keras", "huggingface" or "mesh-tf".
        n_vocab: trims a padded vocabulary to so many rows.
        force: replaces dst where it exists.
        progress: called as progress(name, bytes) after each tensor.
        opening: tokenizer, config, revision, moe_policy: see open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError: see open_checkpoint.
        OutputError: dst exists and is not empty, or cannot be written.
        RequestError: an unknown format.
    """
    check_format(to)
    checkpoint = open_checkpoint(src, **opening)
    if n_vocab is not None:
        checkpoint = checkpoint.with_vocab(n_vocab)
    save_checkpoint(checkpoint, dst, to, force=force, progress=progress)
    return checkpoint


def save_checkpoint(checkpoint, dst, to, *, force=False, progress=None):
    """Writes a Checkpoint as a folder of the format `to`; see convert."""
    check_format(to)
    with new_folder(dst, force=force, needs=checkpoint.nbytes, source=checkpoint.path) as folder:
        checkpoint.verify()
        WRITERS[to](checkpoint, folder, progress or (lambda name, size: None))


def check_format(name):
    """Raises RequestError where `name` is no format that can be written."""
    if name not in WRITERS:
        raise RequestError(f"unknown format {name!r} (known: {', '.join(WRITERS)})")

"""Checkpoints in every format: one reader and one writer for each format, and one Checkpoint class between them."""

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.initialise import PRESETS, init_checkpoint
from neo_tf.checkpoints.open import open_checkpoint
from neo_tf.checkpoints.save import convert, save_checkpoint

__all__ = ["PRESETS", "Checkpoint", "LazyTensor", "convert", "init_checkpoint", "open_checkpoint", "save_checkpoint"]

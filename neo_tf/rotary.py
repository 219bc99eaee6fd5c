"""The angles of rotary_emb, which Keras and ONNX share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig


def rotary_tables(config: GPTNeoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosines and sines of rotary_emb: float32 [n_ctx, head / 2] each, in the original's arithmetic.

    Source: rotary_positional_emb of the original's models/layers.py, with base 10000. Feature i is rotated with feature
    i + head / 2, not with its neighbour.
    """
    exponents = np.arange(config.head_size // 2, dtype=np.float32) * np.float32(2) / np.float32(config.head_size)
    frequencies = np.float32(1) / np.power(np.float32(10000), exponents)
    angles = np.arange(config.n_ctx, dtype=np.float32)[:, None] * frequencies[None]
    return np.cos(angles), np.sin(angles)

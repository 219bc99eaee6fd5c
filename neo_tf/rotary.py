"""The angles of rotary_emb, which Keras and ONNX share."""

import numpy as np


def rotary_tables(config):
    """Cosines and sines of rotary_emb: float32 [n_ctx, head / 2] each, in the original's float32 arithmetic.

    Source: rotary_positional_emb of the original's models/layers.py; base 10000, halves rather than pairs.
    """
    exponents = np.arange(config.head_size // 2, dtype=np.float32) * np.float32(2) / np.float32(config.head_size)
    frequencies = np.float32(1) / np.power(np.float32(10000), exponents)
    angles = np.arange(config.n_ctx, dtype=np.float32)[:, None] * frequencies[None]
    return np.cos(angles), np.sin(angles)

"""Pooling: one vector for a text, from the hidden states of its tokens."""

from __future__ import annotations

import numpy as np

POOLINGS = ("mean", "last", "none")


def pool(hidden_states: np.ndarray, pooling: str = "mean", normalize: bool = False) -> np.ndarray:
    """One vector for a text, or with "none" one for each token.

    Args:
        hidden_states: float32 [n, embd], n >= 1.
        pooling: "mean" of all tokens, the "last" token, which alone has seen the whole text, or "none".
        normalize: Whether a vector's length becomes 1. A vector of zeros stays what it is.

    Returns:
        float32 [embd], or [n, embd] for "none".
    """
    assert pooling in POOLINGS, pooling
    pooled = hidden_states
    if pooling == "mean":
        pooled = hidden_states.mean(axis=0, dtype=np.float64)
    elif pooling == "last":
        pooled = hidden_states[-1]
    if normalize:
        lengths = np.linalg.norm(pooled.astype(np.float64), axis=-1, keepdims=True)
        pooled = pooled / np.where(lengths > 0, lengths, 1)
    return pooled.astype(np.float32)

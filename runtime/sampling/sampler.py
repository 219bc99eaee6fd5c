"""Chooses the next token from scores: the most likely one, or one that is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .warpers import make_warpers, warp

if TYPE_CHECKING:
    from .options import SamplingOptions

_BLOCK = 256  # tokens whose weights are added up at once
LARGEST_SIMPLE_DRAW = 4 * _BLOCK  # weights; more are added up in blocks


class Sampler:
    """Chooses the next token of each row of scores. A sampler that draws has a random generator of its own.

    Args:
        options: How the next token is chosen.

    Attributes:
        generator: The random generator; None where nothing is drawn.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._warpers = make_warpers(options)
        self.generator = np.random.default_rng(options.seed) if options.do_sample else None

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Chooses tokens.

        Args:
            scores: float32 [batch, n_vocab].

        Returns:
            The tokens, int [batch]; the scores that they were chosen by, float32 [batch, n]; and the token ids of those
            scores' columns, int [n], or None where no column was left out.
        """
        scores, ids = warp(self._warpers, scores)
        if self.generator is not None:
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            tokens = draw(weights, self.generator.random(len(weights)))
        else:
            tokens = np.argmax(scores, axis=-1)
        return tokens if ids is None else ids[tokens], scores, ids


def draw(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Draws an index of each row. An index is as likely as its weight.

    Args:
        weights: float32 [batch, n], not negative.
        numbers: float64 [batch], random numbers in [0, 1).

    Returns:
        int [batch].
    """
    if weights.shape[1] <= LARGEST_SIMPLE_DRAW:
        cumulative = np.cumsum(weights, axis=-1, dtype=np.float64)
        # The first whose cumulative weight exceeds the number: never one of weight 0.
        return np.argmax(cumulative > numbers[:, None] * cumulative[:, -1:], axis=-1)
    return np.array([_draw_of_many(row, number) for row, number in zip(weights, numbers, strict=True)])


def _draw_of_many(weights: np.ndarray, number: float) -> int:
    """Draws an index of one long row, [n].

    It first draws a block of weights and then a weight of that block, because adding up all weights one by one takes
    long.
    """
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
    left = number * cumulative[-1]
    block = int(np.argmax(cumulative > left))
    left -= cumulative[block - 1] if block else 0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    exceeding = np.flatnonzero(np.cumsum(inside, dtype=np.float64) > left)
    # The block's sum was added up in another order and differs in the last digits. A number beyond the sum of the
    # single weights means the block's last possible index.
    return block * _BLOCK + int(exceeding[0] if exceeding.size else np.flatnonzero(inside)[-1])

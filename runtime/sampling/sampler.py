"""Chooses the next token from scores: the most likely one, or one that is drawn."""

import numpy as np

from .warpers import make_warpers, warp

_BLOCK = 256  # tokens whose weights are added up at once


class Sampler:
    """Chooses a token of each row, with a random generator of its own.

    Call it with float32 [batch, n_vocab]. Returns the tokens, int [batch]; the scores that they were drawn by, float32
    [batch, n]; and the token ids of those scores' columns, or None where they are all there.
    """

    def __init__(self, options):
        self._warpers, self._draws = make_warpers(options), options.do_sample
        self._generator = np.random.default_rng(options.seed) if self._draws else None

    def __call__(self, scores):
        """Tokens, scores, and those scores' token ids."""
        scores, ids = warp(self._warpers, scores)
        if self._draws:
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            tokens = draw(weights, self._generator.random(len(weights)))
        else:
            tokens = np.argmax(scores, axis=-1)
        return tokens if ids is None else ids[tokens], scores, ids


def draw(weights, numbers):
    """An index of each row, as likely as its weight: float32 [batch, n], float64 [batch] in [0, 1) -> int [batch]."""
    if weights.shape[1] <= 4 * _BLOCK:
        cumulative = np.cumsum(weights, axis=-1, dtype=np.float64)
        # The first whose cumulative weight exceeds the number: never one of weight 0.
        return np.argmax(cumulative > numbers[:, None] * cumulative[:, -1:], axis=-1)
    return np.array([_draw_of_many(row, number) for row, number in zip(weights, numbers, strict=True)])


def _draw_of_many(weights, number):
    """As draw, of one row: a block of weights first, and one in it then, as adding all up one by one takes long."""
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
    left = number * cumulative[-1]
    block = int(np.argmax(cumulative > left))
    left -= cumulative[block - 1] if block else 0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    exceeding = np.flatnonzero(np.cumsum(inside, dtype=np.float64) > left)
    # Two ways of adding up differ in the last digits: what lies beyond the block's end is its last possible token.
    return block * _BLOCK + int(exceeding[0] if exceeding.size else np.flatnonzero(inside)[-1])

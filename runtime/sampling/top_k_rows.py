"""Draws next tokens with top-k from several rows of logits in the host's memory, in one pass after the first cut.

The tokens are those that the Sampler draws from each row alone, to the last bit.
"""

from collections.abc import Sequence

import numpy as np

from .sampler import LARGEST_SIMPLE_DRAW, draw
from .short_rows import WHOLE, ShortRule
from .warpers import largest


def draws_by_top_k(rule: ShortRule) -> bool:
    """Whether temperature and top-k are all that a rule has, so that it fits draw_top_k."""
    return rule == ShortRule(rule.generator, rule.temperature, rule.top_k) and rule.top_k > 0


def draw_top_k(rules: Sequence[ShortRule], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Draws a token for each row.

    Args:
        rules: Each row's rule, which fits draws_by_top_k.
        rows: float32 [n_vocab] each, the logits.

    Returns:
        int64 [rows]; WHOLE, with no random number drawn, for a row that the Sampler must have: where a logit is NaN or
        infinite, and where very many are equal.
    """
    tokens = np.full(len(rules), WHOLE, np.int64)
    places = []  # of the rows that fit
    found = []  # their candidates' ids, in ascending order
    for place, (rule, row) in enumerate(zip(rules, rows, strict=True)):
        ids = largest(row, rule.top_k)
        if row.max() < np.inf and len(ids) <= LARGEST_SIMPLE_DRAW:  # the comparison is false for NaN
            places.append(place)
            found.append(ids)
    if not places:
        return tokens
    fitting = [rules[place] for place in places]
    width = max(map(len, found))
    candidates = np.zeros((len(found), width), np.int64)
    scores = np.full((len(found), width), -np.inf, np.float32)
    for number, (place, ids) in enumerate(zip(places, found, strict=True)):
        candidates[number, : len(ids)] = ids
        scores[number, : len(ids)] = rows[place][ids]
    scores /= np.array([rule.temperature for rule in fitting], np.float32)[:, None]
    numbered = np.arange(len(found))
    bounds = np.sort(scores, axis=-1)[numbered, [width - min(rule.top_k, width) for rule in fitting]]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * (scores >= bounds[:, None])
    numbers = np.array([rule.generator.random() for rule in fitting if rule.generator])
    tokens[places] = candidates[numbered, draw(weights, numbers)]
    return tokens

"""Chooses next tokens from rows' most likely tokens alone, all rows in one pass: what a graph that chooses returns.

The tokens are those that the Sampler chooses from whole rows of logits, with the same random numbers, to float32's
rounding: what is cut off, ties, and the order in which weights are added up are the same. Where a row's most likely
tokens are not enough to know that, no token is chosen, no random number is drawn, and the whole row is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .sampler import draw

if TYPE_CHECKING:
    from .options import SamplingOptions

WHOLE = -1  # in place of a token: the whole row is needed
# Beyond these temperatures, float32's rounding of log-probabilities could hide which of two tokens is more likely.
_COLDEST, _HOTTEST = 0.01, 100


@dataclass(frozen=True)
class ShortRule:
    """How a token is chosen from a row's most likely ones.

    Args:
        generator: Draws the random numbers; None chooses the most likely token.
        temperature: Divides the logits.
        top_k: The number of tokens that can be drawn; 0 for all.
        top_p: The probability that they must reach together.
        min_p: How likely each must be, compared with the most likely one.
        epsilon: How likely each must be.
        logprobs: The number of most likely tokens that the request wants to know; None for no log-probabilities at all.
    """

    generator: np.random.Generator | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    epsilon: float = 0.0
    logprobs: int | None = None


def short_rule(
    options: SamplingOptions, generator: np.random.Generator | None, logprobs: int | None, width: int, n_vocab: int
) -> ShortRule | None:
    """The rule of a request without logits processors; None where its rows must be whole.

    Args:
        options: How the request's tokens are chosen.
        generator: Its random generator; None without do_sample.
        logprobs: The number of most likely tokens that it wants to know, at temperature 1; None for no
            log-probabilities at all.
        width: The number of most likely tokens that the graph returns.
        n_vocab: The size of the vocabulary.
    """
    if width < n_vocab and logprobs is not None and logprobs >= width:
        return None
    if generator is None:
        return ShortRule(logprobs=logprobs)
    if options.typical_p < 1 or options.eta_cutoff or not _COLDEST <= options.temperature <= _HOTTEST:
        return None
    if logprobs is not None and options.temperature != 1:
        return None
    top_k = options.top_k if options.top_k < n_vocab else 0
    # Something must leave tokens out. As many as the graph returns are too many: the next ones may be as likely.
    cuts = 0 < top_k < width or options.min_p or (top_k == 0 and (options.top_p < 1 or options.epsilon_cutoff))
    if not cuts and width < n_vocab:
        return None
    return ShortRule(
        generator, options.temperature, top_k, options.top_p, options.min_p, options.epsilon_cutoff, logprobs
    )


def choose_short(rules: Sequence[ShortRule], ids: np.ndarray, logprobs: np.ndarray, n_vocab: int) -> np.ndarray:
    """Chooses a token for each row.

    Args:
        rules: Each row's rule.
        ids: int64 [rows, width], the most likely tokens of each row, best first. Equal ones may come in any order.
        logprobs: float32 [rows, width], their log-probabilities at the rule's temperature.
        n_vocab: The size of the vocabulary.

    Returns:
        int64 [rows]; WHOLE where the tokens are not enough, or where a log-probability is not a number.
    """
    # All tokens that are more likely than the last one are there. Others that are not there may equal it.
    last = logprobs[:, -1] if ids.shape[1] < n_vocab else np.full(len(rules), -np.inf, np.float32)
    if all(rule.generator is None and not rule.logprobs for rule in rules):
        return _likeliest(ids, logprobs, last)
    wanted = np.minimum([rule.logprobs or 0 for rule in rules], ids.shape[1])
    listed = logprobs[np.arange(len(rules)), np.maximum(wanted, 1) - 1]
    enough = (wanted == 0) | (listed > last) | (ids.shape[1] == n_vocab)
    draws = np.array([rule.generator is not None for rule in rules])
    tokens = np.full(len(rules), WHOLE, np.int64)
    greedy = np.flatnonzero(enough & ~draws)
    if greedy.size:
        tokens[greedy] = _likeliest(ids[greedy], logprobs[greedy], last[greedy])
    drawn = np.flatnonzero(enough & draws)
    if drawn.size:
        own = [rules[row] for row in drawn.tolist()]
        tokens[drawn] = _drawn(own, ids[drawn], logprobs[drawn], last[drawn])
    return tokens


def short_log_probabilities(
    ids: np.ndarray, logprobs: np.ndarray, token: int, count: int
) -> tuple[float, dict[int, float]]:
    """The log-probability of a token, and those of the `count` most likely tokens, best first; of equal ones the first.

    Args:
        ids: int64 [width], the most likely tokens.
        logprobs: float32 [width], their log-probabilities.
        token: One of them.
        count: The number of most likely tokens.
    """
    order = np.lexsort((ids, -logprobs))[:count]
    own = float(logprobs[np.flatnonzero(ids == token)[0]])
    return own, dict(zip(ids[order].tolist(), logprobs[order].tolist(), strict=True))


def _likeliest(ids: np.ndarray, logprobs: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The most likely token of each row, int [rows]; of equal ones the first."""
    best = logprobs[:, :1]
    first = np.where(logprobs == best, ids, np.iinfo(ids.dtype).max).min(axis=-1)
    return np.where(best[:, 0] > last, first, WHOLE)


def _drawn(rules: list[ShortRule], ids: np.ndarray, logprobs: np.ndarray, last: np.ndarray) -> np.ndarray:
    """A token of each row that is drawn, int [rows]."""
    rows = np.arange(len(rules))
    weights = np.exp(logprobs - logprobs[:, :1])  # [rows, width], best first
    count, known = _count_kept(rules, logprobs, weights, last)
    bound = logprobs[rows, count - 1, None]  # [rows, 1]
    numbers = np.array(
        [rule.generator.random() if sure and rule.generator else 0.0 for rule, sure in zip(rules, known, strict=True)]
    )
    # Weights are added up in the order of the ids, as in whole rows.
    order = np.argsort(ids, axis=-1)
    logprobs = logprobs[rows[:, None], order]
    kept = logprobs >= bound
    surplus = kept.sum(axis=-1) - count
    if surplus.any():  # of those that equal the bound, the first stay
        equal = logprobs == bound
        stay = equal.sum(axis=-1) - surplus
        kept &= ~equal | (np.cumsum(equal, axis=-1) <= stay[:, None])
    places = draw(weights[rows[:, None], order] * kept, numbers)
    return np.where(known, ids[rows, order[rows, places]], WHOLE)


def _count_kept(
    rules: list[ShortRule], logprobs: np.ndarray, weights: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many of each row's most likely tokens can be drawn; the warpers of whole rows, in their order.

    Args:
        rules: Each row's rule.
        logprobs: float32 [rows, width], best first.
        weights: float32 [rows, width], the probabilities divided by the first one.
        last: float32 [rows]; all tokens that are more likely than this are there.

    Returns:
        The numbers, int [rows], at least 1; and whether each is known, bool [rows]. The tokens may end among equals.
    """
    kept = _Kept(logprobs, weights, last)
    best = logprobs[:, 0]
    top_k = np.array([rule.top_k for rule in rules])
    if (limited := top_k > 0).any():
        bound = logprobs[np.arange(len(rules)), np.clip(top_k, 1, logprobs.shape[1]) - 1]
        kept.cut(limited, logprobs >= bound[:, None])
    top_p = np.array([rule.top_p for rule in rules])
    if (limited := top_p < 1).any():
        before = np.cumsum(weights, axis=-1, dtype=np.float64) - weights
        kept.cut(limited, before < (top_p * kept.total(limited))[:, None])
    min_p = np.array([rule.min_p for rule in rules])
    if (limited := min_p > 0).any():
        bound = best + np.log(np.where(limited, min_p, 1)).astype(np.float32)
        kept.cut(limited, logprobs >= bound[:, None])
    epsilon = np.array([rule.epsilon for rule in rules])
    if (limited := epsilon > 0).any():
        likely = (weights >= (epsilon * kept.total(limited))[:, None]) | (logprobs == best[:, None])
        kept.cut(limited, likely)
    return kept.count, kept.known & kept.is_complete()


class _Kept:
    """The first tokens of each row, of which warpers cut off more and more.

    Args:
        logprobs, weights, last: As in _count_kept.

    Attributes:
        count: The number of tokens that are left of those that are there, int [rows].
        known: Whether no warper was given a sum that is not known, bool [rows].
    """

    def __init__(self, logprobs: np.ndarray, weights: np.ndarray, last: np.ndarray) -> None:
        self._logprobs = logprobs
        self._weights = weights
        self._last = last
        rows, width = logprobs.shape
        self._rows = np.arange(rows)
        self._is_cut = np.zeros(rows, bool)
        self.count = np.full(rows, width)
        self.known = np.ones(rows, bool)

    def cut(self, limited: np.ndarray, mask: np.ndarray) -> None:
        """Leaves the tokens of a mask.

        Args:
            limited: bool [rows], the rows that are meant.
            mask: bool [rows, width], true for the first tokens of each row.
        """
        reached = np.where(limited, np.maximum(mask.sum(axis=-1), 1), self.count)
        self.count = np.minimum(self.count, reached)
        self._is_cut = self._is_cut | limited

    def total(self, limited: np.ndarray) -> np.ndarray:
        """The sum of the weights of all tokens that are left, there or not, float64 [rows]; it must be known.

        Args:
            limited: bool [rows], the rows whose sum is used.
        """
        self.known = self.known & (~limited | ~self._is_cut | self.is_complete())
        left = np.arange(self._weights.shape[1]) < self.count[:, None]
        of_all = np.exp(-self._logprobs[:, 0].astype(np.float64))  # the probabilities are 1 together
        return np.where(self._is_cut, (self._weights * left).sum(axis=-1, dtype=np.float64), of_all)

    def is_complete(self) -> np.ndarray:
        """Whether all tokens that are left are there, bool [rows]: the last one is more likely than the others."""
        return self._logprobs[self._rows, self.count - 1] > self._last

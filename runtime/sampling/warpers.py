"""Warpers: functions that change the distribution from which sampling draws the next token.

Each takes scores, float32 [batch, n], and one parameter, and returns new scores of the same shape; -inf stands for a
token that cannot be drawn. Their names, meanings and order are those of transformers. Warpers look neither at token ids
nor at entries of -inf, so that such entries may be left out beforehand, as `warp` does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neo_tf.errors import EngineError

if TYPE_CHECKING:
    from .options import SamplingOptions

_NONE = np.float32(-np.inf)
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_GROUP = 64  # entries of a row whose largest one stands for all of them
_WIDE = 1024  # rows with more entries than this are cut down to the tokens that can still be drawn


class Warper(NamedTuple):
    """A warper and its parameter; it is applied as function(scores, value).

    Args:
        function: A function of scores, float32 [batch, n], and a parameter; it returns new scores.
        value: The parameter, such as top_k.
    """

    function: Callable[[np.ndarray, Any], np.ndarray]
    value: float


def refuse_nan(logits: np.ndarray) -> None:
    """Raises an EngineError where a logit is NaN or infinitely large, for nothing can be chosen by such logits."""
    largest = logits.max()  # NaN where one logit is
    if np.isnan(largest) or largest == np.inf:
        raise EngineError("the model's logits are NaN or infinite: its weights are damaged")


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """The log-probabilities of each row, float32 [batch, n] or [n]."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(scores: np.ndarray) -> np.ndarray:
    """The probabilities of each row, float32 [batch, n] or [n]."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Divides the scores. A temperature below 1 sharpens the distribution, one above 1 flattens it."""
    if temperature < 1e-30:  # the largest score becomes 0, which stays finite
        scores = scores - scores.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # a score may become -inf: the token has no chance
        return scores / np.float32(min(max(temperature, _SMALLEST), _LARGEST))


def keep_top_k(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Keeps the top_k largest scores of each row, and those that equal the last of them."""
    size = scores.shape[-1]
    if not 0 < top_k < size:
        return scores
    return _keep(scores, scores >= np.partition(scores, size - top_k, axis=-1)[..., [size - top_k]])


def keep_top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Keeps each row's smallest set of most likely tokens whose probabilities reach top_p (Holtzman et al., 2020)."""
    if top_p >= 1:
        return scores
    kept = np.full_like(scores, _NONE)
    for row, found in zip(scores, kept, strict=True):
        ids = _nucleus(row, top_p)
        found[ids] = row[ids]
    return kept


def _nucleus(row: np.ndarray, top_p: float) -> np.ndarray:
    """The indices of the smallest set of largest entries of float32 [n] whose probabilities reach top_p."""
    largest = row.max()
    weights = row - largest
    np.exp(weights, out=weights)
    total = float(weights.sum(dtype=np.float64))
    # Sorting a row takes long, and only its likely entries are needed. A few may do, if they reach top_p. The last
    # share always does: all entries below it have together at most half of the probability that may be left out.
    for share in (1e-4, 1e-5, 0.5 * (1 - top_p) / row.size):
        likely = np.flatnonzero(weights >= share * total)
        logits = row[likely]
        ranked = np.sort(logits)[::-1]
        found = np.exp(ranked - largest, dtype=np.float64)
        cumulative = np.cumsum(found)
        if cumulative.size and cumulative[-1] >= top_p * total:
            break
    # A token stays while those before it do not reach top_p: the first one always does.
    count = np.count_nonzero(cumulative - found < top_p * total)
    threshold = ranked[count - 1]
    equal = likely[logits == threshold]
    return np.concatenate([likely[logits > threshold], equal[: count - np.count_nonzero(ranked > threshold)]])


def keep_min_p(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Keeps the tokens that are at least min_p times as likely as the most likely one."""
    if not min_p:
        return scores
    return _keep(scores, scores >= scores.max(axis=-1, keepdims=True) + np.float32(math.log(min_p)))


def keep_typical(scores: np.ndarray, typical_p: float, least: int = 1) -> np.ndarray:
    """Keeps the tokens whose information is nearest to the expected one (Meister et al., 2022).

    Args:
        scores: float32 [batch, n].
        typical_p: The probability that the tokens must reach together.
        least: The number of tokens that are kept in any case; beams need several.
    """
    if typical_p >= 1:
        return scores
    logs = log_softmax(scores)
    distances = np.abs(logs + _entropy(logs))
    order = np.argsort(distances, axis=-1)
    cumulative = np.cumsum(np.exp(np.take_along_axis(logs, order, axis=-1)), axis=-1)
    last = np.clip((cumulative < typical_p).sum(axis=-1, keepdims=True), least - 1, scores.shape[-1] - 1)
    return _keep(scores, distances <= np.take_along_axis(distances, np.take_along_axis(order, last, -1), -1))


def keep_epsilon(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Keeps the tokens whose probability is at least epsilon, and the most likely one (Hewitt et al., 2022)."""
    if not epsilon:
        return scores
    return _keep_above(scores, softmax(scores), np.float32(epsilon))


def keep_eta(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Does what keep_epsilon does, with a lower limit where the distribution is flat (Hewitt et al., 2022)."""
    if not epsilon:
        return scores
    logs = log_softmax(scores)
    return _keep_above(scores, np.exp(logs), np.minimum(epsilon, math.sqrt(epsilon) * np.exp(-_entropy(logs))))


def _entropy(logs: np.ndarray) -> np.ndarray:
    """The entropy of each row of log-probabilities, [batch, 1]."""
    terms = np.multiply(logs, np.exp(logs), where=np.isfinite(logs), out=np.zeros_like(logs))
    return -terms.sum(axis=-1, keepdims=True)


def _keep_above(scores: np.ndarray, probabilities: np.ndarray, limit: np.ndarray | np.float32) -> np.ndarray:
    return _keep(scores, (probabilities >= limit) | (scores == scores.max(axis=-1, keepdims=True)))


def _keep(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    kept = np.full_like(scores, _NONE)
    np.copyto(kept, scores, where=mask)
    return kept


def make_warpers(options: SamplingOptions, least: int = 1) -> list[Warper]:
    """The warpers that the options call for, in transformers' order; none without do_sample.

    Args:
        options: How the next token is chosen.
        least: The number of tokens that each warper keeps in any case; beams need several.
    """
    if not options.do_sample:
        return []
    candidates = [  # (function, its parameter, the parameter's value that changes nothing)
        (apply_temperature, options.temperature, 1),
        (keep_top_k, options.top_k, 0),
        (keep_top_p, options.top_p, 1),
        (keep_min_p, options.min_p, 0),
        (keep_typical, options.typical_p, 1),
        (keep_epsilon, options.epsilon_cutoff, 0),
        (keep_eta, options.eta_cutoff, 0),
    ]
    chain = [Warper(function, value) for function, value, neutral in candidates if value != neutral]
    if least == 1:
        return chain
    return [Warper(_keep_least(function, least), value) for function, value in chain]


def _keep_least(
    function: Callable[[np.ndarray, Any], np.ndarray], least: int
) -> Callable[[np.ndarray, Any], np.ndarray]:
    """A function like this one that also keeps each row's `least` largest scores, and those that equal the last."""
    if function is apply_temperature:
        return function
    if function is keep_typical:
        return functools.partial(keep_typical, least=least)
    return lambda scores, value: np.maximum(function(scores, value), keep_top_k(scores, least))


def warp(warpers: Sequence[Warper], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Applies warpers one after the other.

    Entries of -inf are left out of a single wide row, so that the next warpers have less to do.

    Args:
        warpers: What make_warpers returns.
        scores: float32 [batch, n_vocab].

    Returns:
        The new scores, float32 [batch, n]; and the token ids of their columns, int [n], or None where no column was
        left out.
    """
    ids: np.ndarray | None = None
    if len(scores) == 1 and scores.shape[1] > _WIDE and (top_k := dict(warpers).get(keep_top_k)):
        ids = largest(scores[0], int(top_k))
        scores = scores[:, ids]
    for function, value in warpers:
        scores = function(scores, value)
        if len(scores) == 1 and scores.shape[1] > _WIDE and function is not apply_temperature:
            left = np.flatnonzero(scores[0] > _NONE)
            ids = left if ids is None else ids[left]
            scores = scores[:, left]
    return scores, ids


def largest(row: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest entries of [n], of all that equal the last of them, and of some others.

    It takes two passes over the row and does not sort it.
    """
    groups = row[: len(row) // _GROUP * _GROUP].reshape(_GROUP, -1).max(axis=0)
    if count >= groups.size:
        return np.arange(len(row))
    # There are `count` groups whose largest entry reaches this bound, so that `count` entries of the row reach it.
    return np.flatnonzero(row >= np.partition(groups, groups.size - count)[groups.size - count])

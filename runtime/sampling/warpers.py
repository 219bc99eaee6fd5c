"""Warpers: what sampling makes of a distribution before it draws. Functions from float32 [batch, n] to a new array.

Names, meanings and order are transformers'. None of them looks at token ids, nor at entries of -inf: those may be left
out beforehand, which `warp` does.
"""

import functools
import math

import numpy as np

_NONE = np.float32(-np.inf)
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_GROUP = 64  # entries of which one stands for all
_WIDE = 1024  # rows wider than this are narrowed to what can still be drawn


def log_softmax(scores):
    """Log-probabilities of each row."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(scores):
    """Probabilities of each row."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def apply_temperature(scores, temperature):
    """Divides the logits: below 1 sharpens the distribution, above 1 flattens it."""
    if temperature < 1e-30:  # counted from the largest, it stays finite
        scores = scores - scores.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # to -inf: a token without a chance
        return scores / np.float32(min(max(temperature, _SMALLEST), _LARGEST))


def keep_top_k(scores, top_k):
    """Sets all but the top_k largest logits of each row to -inf; ties with the last of them stay."""
    size = scores.shape[-1]
    if not 0 < top_k < size:
        return scores
    return _keep(scores, scores >= np.partition(scores, size - top_k, axis=-1)[..., [size - top_k]])


def keep_top_p(scores, top_p):
    """Keeps each row's smallest set of most likely tokens whose probabilities reach top_p (Holtzman et al., 2020)."""
    if top_p >= 1:
        return scores
    kept = np.full_like(scores, _NONE)
    for row, found in zip(scores, kept, strict=True):
        ids = _nucleus(row, top_p)
        found[ids] = row[ids]
    return kept


def _nucleus(row, top_p):
    """Indices of the smallest set of largest entries of float32 [n] whose probabilities reach top_p."""
    largest = row.max()
    weights = row - largest
    np.exp(weights, out=weights)
    total = float(weights.sum(dtype=np.float64))
    # Only the largest need be sorted: a few, if they reach top_p. In any case all but those that together, were there
    # nothing else, have half of the rest.
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


def keep_min_p(scores, min_p):
    """Keeps tokens at least min_p times as likely as the most likely one."""
    if not min_p:
        return scores
    return _keep(scores, scores >= scores.max(axis=-1, keepdims=True) + np.float32(math.log(min_p)))


def keep_typical(scores, typical_p, least=1):
    """Keeps tokens whose information is nearest to the expected one, up to mass typical_p (Meister et al., 2022).

    At least so many, as beams need.
    """
    if typical_p >= 1:
        return scores
    logs = log_softmax(scores)
    distances = np.abs(logs + _entropy(logs))
    order = np.argsort(distances, axis=-1)
    cumulative = np.cumsum(np.exp(np.take_along_axis(logs, order, axis=-1)), axis=-1)
    last = np.clip((cumulative < typical_p).sum(axis=-1, keepdims=True), least - 1, scores.shape[-1] - 1)
    return _keep(scores, distances <= np.take_along_axis(distances, np.take_along_axis(order, last, -1), -1))


def keep_epsilon(scores, epsilon):
    """Keeps tokens of at least probability epsilon, and the most likely ones (Hewitt et al., 2022)."""
    if not epsilon:
        return scores
    return _keep_above(scores, softmax(scores), np.float32(epsilon))


def keep_eta(scores, epsilon):
    """As keep_epsilon, with a limit that falls where the distribution is flat (Hewitt et al., 2022)."""
    if not epsilon:
        return scores
    logs = log_softmax(scores)
    return _keep_above(scores, np.exp(logs), np.minimum(epsilon, math.sqrt(epsilon) * np.exp(-_entropy(logs))))


def _entropy(logs):
    """Entropy of each row of log-probabilities, [batch, 1]."""
    terms = np.multiply(logs, np.exp(logs), where=np.isfinite(logs), out=np.zeros_like(logs))
    return -terms.sum(axis=-1, keepdims=True)


def _keep_above(scores, probabilities, limit):
    return _keep(scores, (probabilities >= limit) | (scores == scores.max(axis=-1, keepdims=True)))


def _keep(scores, mask):
    kept = np.full_like(scores, _NONE)
    np.copyto(kept, scores, where=mask)
    return kept


def make_warpers(options, least=1):
    """The (function, parameter) that options ask for, in transformers' order; each keeps at least so many tokens."""
    chain = [
        (apply_temperature, options.temperature, 1),
        (keep_top_k, options.top_k, 0),
        (keep_top_p, options.top_p, 1),
        (keep_min_p, options.min_p, 0),
        (keep_typical, options.typical_p, 1),
        (keep_epsilon, options.epsilon_cutoff, 0),
        (keep_eta, options.eta_cutoff, 0),
    ]
    chain = [(function, value) for function, value, neutral in chain if value != neutral] if options.do_sample else []
    return chain if least == 1 else [(_keep_least(function, least), value) for function, value in chain]


def _keep_least(function, least):
    """A warper that leaves each row's `least` largest entries, and ties with them, to it."""
    if function is apply_temperature:
        return function
    if function is keep_typical:
        return functools.partial(keep_typical, least=least)
    return lambda scores, value: np.maximum(function(scores, value), keep_top_k(scores, least))


def warp(warpers, scores):
    """Applies warpers; leaves entries of -inf out of a single wide row, so that the next ones have less to do.

    Args:
        warpers: of make_warpers.
        scores: float32 [batch, n_vocab].

    Returns:
        float32 [batch, n], and the token ids of its columns, int [n], or None where they are all there.
    """
    ids = None
    if len(scores) == 1 and scores.shape[1] > _WIDE and (top_k := dict(warpers).get(keep_top_k)):
        ids = largest(scores[0], top_k)
        scores = scores[:, ids]
    for function, value in warpers:
        scores = function(scores, value)
        if len(scores) == 1 and scores.shape[1] > _WIDE and function is not apply_temperature:
            left = np.flatnonzero(scores[0] > _NONE)
            ids, scores = left if ids is None else ids[left], scores[:, left]
    return scores, ids


def largest(row, count):
    """Indices of the `count` largest entries of [n], all ties with them, and some more: in two passes over the row."""
    groups = row[: len(row) // _GROUP * _GROUP].reshape(_GROUP, -1).max(axis=0)
    if count >= groups.size:
        return np.arange(len(row))
    # So many groups' largest are not below this bound: the count-th largest of all is not, either.
    return np.flatnonzero(row >= np.partition(groups, groups.size - count)[groups.size - count])

"""Logits processors and samplers: plain functions on [batch, n_vocab], and the options that choose them."""

from dataclasses import dataclass

import numpy as np

from neo_tf.errors import RequestError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, with transformers' names and meanings.

    Args:
        do_sample: draws from the distribution; otherwise the most likely token is taken.
        temperature: divides the logits; > 0.
        top_k: keeps so many most likely tokens; 0 keeps all.
        top_p: keeps the smallest set of most likely tokens whose probabilities add up to it; in (0, 1].
        seed: of the request's own random generator; None draws one.

    Raises:
        RequestError: a value outside its range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        if not self.temperature > 0:
            raise RequestError(
                f"temperature must be greater than 0, not {self.temperature} (for 0, leave out do_sample)"
            )
        if self.top_k < 0:
            raise RequestError(f"top_k must not be negative, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise RequestError(f"seed must not be negative, not {self.seed}")


def apply_temperature(logits, temperature):
    """Divides the logits, in float64: below 1 sharpens the distribution, above 1 flattens it."""
    return logits.astype(np.float64) / temperature


def keep_top_k(logits, top_k):
    """Sets all but the top_k largest logits of each row to -inf; ties with the last of them stay."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    threshold = np.partition(logits, -top_k, axis=-1)[..., [-top_k]]
    return np.where(logits < threshold, -np.inf, logits)


def keep_top_p(logits, top_p):
    """Keeps each row's smallest set of most likely tokens whose probabilities reach top_p (Holtzman et al., 2020)."""
    if top_p >= 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    probabilities = softmax(np.take_along_axis(logits, order, axis=-1))
    # A token stays while those before it do not reach top_p: the first one always does.
    before = np.cumsum(probabilities, axis=-1) - probabilities
    ranked = np.where(before >= top_p, -np.inf, np.take_along_axis(logits, order, axis=-1))
    kept = np.empty_like(logits)
    np.put_along_axis(kept, order, ranked, axis=-1)
    return kept


def suppress(logits, token_ids):
    """Sets the logits of some tokens to -inf."""
    logits = logits.copy()
    logits[..., list(token_ids)] = -np.inf
    return logits


def softmax(logits):
    """Probabilities of each row, in float64."""
    shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def make_sampler(options):
    """A function that chooses from logits: float32 [batch, n_vocab] -> int [batch]. It owns its random generator."""
    if not options.do_sample:
        return lambda logits: np.argmax(logits, axis=-1)
    generator = np.random.default_rng(options.seed)

    def sample(logits):
        # From the largest on: however small the temperature, it stays finite.
        logits = apply_temperature(logits - logits.max(axis=-1, keepdims=True), options.temperature)
        logits = keep_top_p(keep_top_k(logits, options.top_k), options.top_p)
        cumulative = np.cumsum(softmax(logits), axis=-1)
        drawn = generator.random((len(logits), 1)) * cumulative[..., -1:]
        # The first token whose cumulative probability exceeds the draw: never one of probability 0.
        return np.argmax(cumulative > drawn, axis=-1)

    return sample

"""Logits processors: what the tokens so far, and the request's wishes, make of the next token's logits.

Each is called as processor(history, scores): int [batch, length], the tokens so far with the prompt, and float32
[batch, n_vocab]. It changes scores in place, and returns them. Names and meanings are transformers'.
"""

import math
from collections import defaultdict

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


class SequenceBias:
    """Adds a bias to the tokens that would complete a sequence.

    Args:
        biases: {(token id, ...): bias}; a sequence of one token is biased always.
    """

    def __init__(self, biases):
        ends = defaultdict(lambda: ([], []))
        for sequence, bias in biases.items():
            tokens, values = ends[tuple(sequence[:-1])]
            tokens.append(sequence[-1])
            values.append(bias)
        # What comes before -> the tokens that then complete a sequence, and their biases.
        self._ends = {before: (np.array(ids), np.array(values, np.float32)) for before, (ids, values) in ends.items()}
        self._lengths = sorted({len(before) for before in ends})

    def __call__(self, history, scores):
        for tokens, row in zip(history, scores, strict=True):
            for length in self._lengths:
                if length <= len(tokens):
                    found = self._ends.get(tuple(tokens[len(tokens) - length :].tolist()))
                    if found:
                        row[found[0]] += found[1]
        return scores


class NoBadWords(SequenceBias):
    """Forbids sequences of tokens; the ends of text alone cannot be forbidden."""

    def __init__(self, bad_words_ids, stop_token_ids=()):
        words = (tuple(word) for word in bad_words_ids)
        super().__init__({word: -np.inf for word in words if len(word) > 1 or word[0] not in stop_token_ids})


class HammingDiversity:
    """Of diverse beams: each beam of the groups before that takes a token now costs its score the penalty.

    Set `taken` before each call: int [beams], the tokens of those groups.
    """

    def __init__(self, penalty):
        self._penalty, self.taken = np.float32(penalty), ()

    def __call__(self, history, scores):
        ids, counts = np.unique(np.asarray(self.taken, np.int64), return_counts=True)
        scores[:, ids] -= self._penalty * counts.astype(np.float32)
        return scores


class RepetitionPenalty:
    """Makes tokens that have come, in the prompt or since, less likely: divides positive logits, multiplies others."""

    def __init__(self, penalty):
        self._penalty = np.float32(penalty)

    def __call__(self, history, scores):
        found = np.take_along_axis(scores, history, axis=-1)  # [batch, length]
        found = np.where(found < 0, found * self._penalty, found / self._penalty)
        np.put_along_axis(scores, history, found, axis=-1)
        return scores


class CountPenalties:
    """OpenAI's: each new token so far costs its logit `presence` once, and `frequency` for every time that it came."""

    def __init__(self, presence, frequency, prompt_length):
        self._presence, self._frequency, self._begin = presence, frequency, prompt_length

    def __call__(self, history, scores):
        for tokens, row in zip(history[:, self._begin :], scores, strict=True):
            ids, counts = np.unique(tokens, return_counts=True)
            row[ids] -= (counts * self._frequency + self._presence).astype(np.float32)
        return scores


class NoRepeatNGram:
    """Forbids the tokens that would complete an n-gram a second time."""

    def __init__(self, size):
        self._size = size

    def __call__(self, history, scores):
        length, size = history.shape[1], self._size
        if length < size:
            return scores
        windows = np.lib.stride_tricks.sliding_window_view(history, size, axis=1)  # [batch, windows, size]
        last = history[:, None, length - size + 1 :]
        repeated = (windows[..., :-1] == last).all(axis=-1)
        for row, ends, mask in zip(scores, windows[..., -1], repeated, strict=True):
            row[ends[mask]] = -np.inf
        return scores


class MinLength:
    """Forbids the ends of text while prompt and new tokens are fewer than `length`."""

    def __init__(self, length, stop_token_ids):
        self._length, self._stops = length, list(stop_token_ids)

    def __call__(self, history, scores):
        if history.shape[1] < self._length:
            scores[:, self._stops] = -np.inf
        return scores


class ForcedTokens:
    """Allows some tokens alone, as the one after `length` others."""

    def __init__(self, length, token_ids):
        self._length, self._tokens = length, list(token_ids)

    def __call__(self, history, scores):
        if history.shape[1] == self._length:
            scores[:] = -np.inf
            scores[:, self._tokens] = 0
        return scores


class ExponentialDecayLengthPenalty:
    """Raises the ends of text more and more, once prompt and new tokens are more than `start`."""

    def __init__(self, start, factor, stop_token_ids):
        self._start, self._factor, self._stops = start, factor, list(stop_token_ids)

    def __call__(self, history, scores):
        past = history.shape[1] - self._start
        if past > 0:
            found = scores[:, self._stops].astype(np.float64)
            growth = math.exp(min(past * math.log(self._factor), math.log(_LARGEST))) - 1
            raised = found + np.abs(np.where(np.isfinite(found), found, 0)) * growth
            scores[:, self._stops] = np.minimum(raised, _LARGEST)
        return scores


class SuppressTokens:
    """Forbids tokens: always, or as the one after `length` others."""

    def __init__(self, token_ids, length=None):
        self._tokens, self._length = list(token_ids), length

    def __call__(self, history, scores):
        if self._length is None or history.shape[1] == self._length:
            scores[:, self._tokens] = -np.inf
        return scores


def make_processors(options, prompt_length, max_length, stop_token_ids=(), min_new_tokens=0, diversity=None):
    """The processors that options ask for, in transformers' order.

    Args:
        options: a SamplingOptions.
        prompt_length: tokens of the prompt.
        max_length: of prompt and new tokens.
        stop_token_ids: the ends of text.
        min_new_tokens: before so many, the text may not end.
        diversity: a HammingDiversity, which has its place among them.
    """
    chain = []
    if biases := options.biases():
        chain.append(SequenceBias(biases))
    if diversity:
        chain.append(diversity)
    if options.repetition_penalty != 1:
        chain.append(RepetitionPenalty(options.repetition_penalty))
    if options.presence_penalty or options.frequency_penalty:
        chain.append(CountPenalties(options.presence_penalty, options.frequency_penalty, prompt_length))
    if options.no_repeat_ngram_size:
        chain.append(NoRepeatNGram(options.no_repeat_ngram_size))
    if options.bad_words_ids:
        chain.append(NoBadWords(options.bad_words_ids, stop_token_ids))
    if min_new_tokens and stop_token_ids:
        chain.append(MinLength(prompt_length + min_new_tokens, stop_token_ids))
    if options.forced_bos_token_id is not None:
        chain.append(ForcedTokens(1, [options.forced_bos_token_id]))
    if options.forced_eos_token_id is not None:
        forced = options.forced_eos_token_id
        chain.append(ForcedTokens(max_length - 1, forced if isinstance(forced, list | tuple) else [forced]))
    if options.exponential_decay_length_penalty and stop_token_ids:
        start, factor = options.exponential_decay_length_penalty
        chain.append(ExponentialDecayLengthPenalty(prompt_length + start, factor, stop_token_ids))
    if options.suppress_tokens:
        chain.append(SuppressTokens(options.suppress_tokens))
    if options.begin_suppress_tokens:
        # A forced first token is not the one that is meant.
        forced = prompt_length == 1 and options.forced_bos_token_id is not None
        chain.append(SuppressTokens(options.begin_suppress_tokens, prompt_length + forced))
    return [*chain, *options.logits_processor]

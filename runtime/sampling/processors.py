"""Logits processors: they change the next token's scores according to the tokens so far.

Their names, meanings and order are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..argument_table import ARGUMENTS
from ..guided.mask import GrammarMask

if TYPE_CHECKING:
    from ..guided.grammars import Grammar
    from .options import SamplingOptions

_LARGEST = float(np.finfo(np.float32).max)


class LogitsProcessor(Protocol):
    """A function of the tokens so far and of the next token's scores; a user may write one, too."""

    def __call__(self, history: np.ndarray, scores: np.ndarray, /) -> np.ndarray:
        """Changes the scores of the next token.

        Args:
            history: int [batch, length], the tokens of each prompt and its new tokens so far. It must not be changed.
            scores: float32 [batch, n_vocab], logits, or log-probabilities with beams. It may be changed in place.

        Returns:
            float32 [batch, n_vocab], the scores to go on with; -inf forbids a token.
        """
        ...


class SequenceBias:
    """Adds a bias to the scores of the tokens that would complete a sequence.

    Args:
        biases: {(token id, ...): bias}. A sequence of one token is always biased.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        ends: dict[tuple[int, ...], dict[int, float]] = {}
        for sequence, bias in biases.items():
            ends.setdefault(tuple(sequence[:-1]), {})[sequence[-1]] = bias
        # {all tokens of a sequence but the last: (the last tokens that complete one, their biases)}
        self._ends = {
            before: (np.array(list(last)), np.array(list(last.values()), np.float32)) for before, last in ends.items()
        }
        self._lengths = sorted({len(before) for before in ends})

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        for tokens, row in zip(history, scores, strict=True):
            for length in self._lengths:
                if length <= len(tokens):
                    found = self._ends.get(tuple(tokens[len(tokens) - length :].tolist()))
                    if found:
                        ids, biases = found
                        row[ids] += biases
        return scores


class NoBadWords(SequenceBias):
    """Forbids sequences of tokens. A stop token by itself cannot be forbidden.

    Args:
        bad_words_ids: The sequences.
        stop_token_ids: The ids that end a text.
    """

    def __init__(self, bad_words_ids: Iterable[Sequence[int]], stop_token_ids: Sequence[int] = ()) -> None:
        words = (tuple(word) for word in bad_words_ids)
        super().__init__({word: -math.inf for word in words if len(word) > 1 or word[0] not in stop_token_ids})


class HammingDiversity:
    """Makes a group of beams differ from the groups before it, in diverse beam search.

    A token's score loses the penalty for each beam of the earlier groups that takes the token in the same step.

    Args:
        penalty: The amount.

    Attributes:
        taken: int [beams], the tokens that the earlier groups take. It is set before each call.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)
        self.taken = np.empty(0, np.int64)

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        ids, counts = np.unique(self.taken, return_counts=True)
        scores[:, ids] -= self._penalty * counts.astype(np.float32)
        return scores


class RepetitionPenalty:
    """Makes the tokens of the prompt and of the text so far less likely.

    Args:
        penalty: Divides positive scores and multiplies the others.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        found = np.take_along_axis(scores, history, axis=-1)  # [batch, length]
        found = np.where(found < 0, found * self._penalty, found / self._penalty)
        np.put_along_axis(scores, history, found, axis=-1)
        return scores


class CountPenalties:
    """OpenAI's two penalties of the new tokens so far.

    Args:
        presence: What a token that has come loses once.
        frequency: What it loses for each time that it has come.
        prompt_length: The number of the prompt's tokens, which do not count.
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence = float(presence)  # a whole number may be too large for numpy's own
        self._frequency = float(frequency)
        self._prompt_length = prompt_length

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        for tokens, row in zip(history[:, self._prompt_length :], scores, strict=True):
            ids, counts = np.unique(tokens, return_counts=True)
            row[ids] -= (counts * self._frequency + self._presence).astype(np.float32)
        return scores


class NoRepeatNGram:
    """Forbids the tokens that would complete an n-gram a second time.

    Args:
        size: The number of tokens of an n-gram.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        length, size = history.shape[1], self._size
        if length < size:
            return scores
        windows = np.lib.stride_tricks.sliding_window_view(history, size, axis=1)  # [batch, windows, size]
        last = history[:, None, length - size + 1 :]  # [batch, 1, size - 1]
        repeated = (windows[..., :-1] == last).all(axis=-1)  # [batch, windows]
        for row, ends, mask in zip(scores, windows[..., -1], repeated, strict=True):
            row[ends[mask]] = -np.inf
        return scores


class MinLength:
    """Forbids the stop tokens while a sequence is short.

    Args:
        length: The number of tokens, the prompt's included, that a sequence must have before it may end.
        stop_token_ids: The ids that end a text.
    """

    def __init__(self, length: int, stop_token_ids: Iterable[int]) -> None:
        self._length = length
        self._stops = list(stop_token_ids)

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if history.shape[1] < self._length:
            scores[:, self._stops] = -np.inf
        return scores


class ForcedTokens:
    """Allows only certain tokens at one place.

    Args:
        length: The number of tokens before that place, the prompt's included.
        token_ids: The tokens that are allowed there.
    """

    def __init__(self, length: int, token_ids: Iterable[int]) -> None:
        self._length = length
        self._tokens = list(token_ids)

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if history.shape[1] == self._length:
            scores[:] = -np.inf
            scores[:, self._tokens] = 0
        return scores


class ExponentialDecayLengthPenalty:
    """Raises the scores of the stop tokens more and more, once a sequence is long enough.

    Args:
        start: The number of tokens, the prompt's included, after which the scores begin to rise.
        factor: How much they rise with each further token.
        stop_token_ids: The ids that end a text.
    """

    def __init__(self, start: int, factor: float, stop_token_ids: Iterable[int]) -> None:
        self._start = start
        self._factor = factor
        self._stops = list(stop_token_ids)

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        past = history.shape[1] - self._start
        if past > 0:
            found = scores[:, self._stops].astype(np.float64)
            growth = math.exp(min(past * math.log(self._factor), math.log(_LARGEST))) - 1
            raised = found + np.abs(np.where(np.isfinite(found), found, 0)) * growth
            scores[:, self._stops] = np.minimum(raised, _LARGEST)
        return scores


class SuppressTokens:
    """Forbids tokens, always or at one place.

    Args:
        token_ids: The tokens.
        length: The number of tokens before that place, the prompt's included; None forbids the tokens everywhere.
    """

    def __init__(self, token_ids: Iterable[int], length: int | None = None) -> None:
        self._tokens = list(token_ids)
        self._length = length

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self._length is None or history.shape[1] == self._length:
            scores[:, self._tokens] = -np.inf
        return scores


def make_processors(
    options: SamplingOptions,
    prompt_length: int,
    max_length: int,
    stop_token_ids: Sequence[int] = (),
    min_new_tokens: int = 0,
    diversity: HammingDiversity | None = None,
    grammar: Grammar | None = None,
) -> list[LogitsProcessor]:
    """The processors that the options call for, in transformers' order.

    Args:
        options: How the next token is chosen.
        prompt_length: The number of the prompt's tokens.
        max_length: The largest number of tokens of the prompt and the text after it.
        stop_token_ids: The ids that end a text.
        min_new_tokens: The number of new tokens before which the text may not end.
        diversity: With diverse beams, their processor, which is put in its place among the others.
        grammar: What the text must keep to. Its processor is the last one.
    """
    chain: list[LogitsProcessor] = []
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
        ids = ARGUMENTS["forced_eos_token_id"].kind.token_ids(options.forced_eos_token_id)
        chain.append(ForcedTokens(max_length - 1, ids))
    if options.exponential_decay_length_penalty and stop_token_ids:
        start, factor = options.exponential_decay_length_penalty
        chain.append(ExponentialDecayLengthPenalty(prompt_length + int(start), factor, stop_token_ids))
    if options.suppress_tokens:
        chain.append(SuppressTokens(options.suppress_tokens))
    if options.begin_suppress_tokens:
        begin = prompt_length
        if prompt_length == 1 and options.forced_bos_token_id is not None:
            begin += 1  # the first token is forced: the one after it is meant
        chain.append(SuppressTokens(options.begin_suppress_tokens, begin))
    chain += options.logits_processor
    if grammar:
        chain.append(GrammarMask(grammar, prompt_length, stop_token_ids))
    return chain

"""What is asked of the engine: one prompt to be continued. What comes of it is a Generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import RequestError

from ..sampling.beams import BeamOptions
from ..sampling.checks import check_ids, check_number
from ..sampling.options import SamplingOptions
from .lookup import check_lookup

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from ..tokenizer import TokenizerLike

# What is made of each token as it comes.
_OF_TOKENS = ("on_token", "on_text", "logprobs", "prompt_logprobs", "output_logits", "output_scores")


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to be continued. It does not change: it may be submitted any number of times, to any engine.

    Args:
        prompt: The token ids that are continued; at least one.
        max_new_tokens: The largest number of new tokens. None goes on to the end of the context.
        min_new_tokens: The number of new tokens before which no stop token is chosen.
        stop_token_ids: The ids that end the text. The id that ended it is kept as the last token.
        sampling: How the tokens are chosen.
        on_token: Called as on_token(token_id) with each new token, in the engine's thread.
        max_time: Seconds after which the text ends, counted from the beginning of its prefill.
        tokenizer: Writes the text. Without a tokenizer no text is written.
        stop_strings: Texts that end the text. A stop string may begin in the prompt.
        include_stop_str_in_output: Whether the text goes on to the end of the token that completes the stop string, as
            in transformers. Otherwise the text ends before the stop string.
        on_text: Called as on_text(text) after each new token with the text that is final now, which may be empty.
        logprobs: Keeps each token's log-probability and those of this number of most likely tokens, before all
            logits processors.
        prompt_logprobs: Keeps the same for the prompt's tokens after its first. The prefill is slower then.
        output_logits: Keeps the logits of each token, before all logits processors.
        output_scores: Keeps the scores that each token was chosen by, after all logits processors.
        prompt_lookup_num_tokens: The largest number of tokens that are guessed from earlier text and checked in one
            step. None guesses nothing. The tokens are the same; in int8 and int4 they are as likely.
        max_matching_ngram_size: The number of last tokens whose latest earlier occurrence the guess follows.
        beams: Beam search: several continuations are followed, each in a slot of its own, and the best are kept.
    """

    prompt: Sequence[int]
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop_token_ids: Sequence[int] = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    on_token: Callable[[int], object] | None = None
    max_time: float | None = None
    tokenizer: "TokenizerLike | None" = None
    stop_strings: Sequence[str] = ()
    include_stop_str_in_output: bool = True
    on_text: Callable[[str], object] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    output_logits: bool = False
    output_scores: bool = False
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 3
    beams: BeamOptions | None = None

    def __post_init__(self) -> None:
        # Copies: what the caller does with its lists later changes nothing. `check` says what cannot be used.
        for name in ("prompt", "stop_token_ids", "stop_strings"):
            value = getattr(self, name)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            if not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
                value = tuple(value)
            object.__setattr__(self, name, value)

    def check(self, config: "GPTNeoConfig") -> None:
        """Raises RequestError where a model of that config cannot serve it: its prompt's ids, lengths and options."""
        self._check_prompt(config)
        self._check_limit(config)
        for token in check_ids("stop_token_ids", self.stop_token_ids):
            if not 0 <= token < config.n_vocab:
                raise RequestError(f"stop token id {token} is outside the vocabulary of {config.n_vocab}")
        self.sampling.check_vocabulary(config.n_vocab)
        self._check_kept()
        self._check_lookup()
        self._check_beams()

    @property
    def slots(self) -> int:
        """The number of sequences that are decoded for it at once."""
        return self.beams.num_beams if self.beams else 1

    def limit(self, config: "GPTNeoConfig") -> int:
        """The largest number of new tokens that may come."""
        room = config.n_ctx - len(self.prompt)
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)

    def longest(self, config: "GPTNeoConfig") -> int:
        """The number of tokens, prompt included, that each of its sequences may come to."""
        return len(self.prompt) + self.limit(config)

    def _check_prompt(self, config: "GPTNeoConfig") -> None:
        try:
            ids = np.asarray(self.prompt)
        except ValueError:  # rows of unequal lengths
            ids = np.asarray(None)
        if ids.ndim == 1 and ids.size == 0:
            raise RequestError("the prompt is empty: it needs at least one token")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise RequestError("a prompt's token ids must be a flat sequence of integers")
        outside = np.flatnonzero((ids < 0) | (ids >= config.n_vocab))
        if outside.size:
            where = int(outside[0])
            raise RequestError(
                f"token id {ids[where]} at position {where} is outside the vocabulary of {config.n_vocab}"
            )
        if len(ids) >= config.n_ctx:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, and the model's context n_ctx is {config.n_ctx}: no room left"
            )

    def _check_limit(self, config: "GPTNeoConfig") -> None:
        check_number("min_new_tokens", self.min_new_tokens, int, lambda value: value >= 0, "not be negative")
        new, length = self.max_new_tokens, len(self.prompt)
        if new is None:
            return
        check_number("max_new_tokens", new, int, lambda value: value >= 1, "be at least 1")
        if length + new > config.n_ctx:
            raise RequestError(f"a prompt of {length} tokens and max_new_tokens {new} exceed n_ctx {config.n_ctx}")

    def _check_kept(self) -> None:
        if self.max_time is not None:
            check_number("max_time", self.max_time, float, lambda value: value > 0, "be greater than 0")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), int, lambda value: value >= 0, "not be negative")
        stops = self.stop_strings
        if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
            raise RequestError("stop_strings must be a list of texts, none of them empty")
        if (self.stop_strings or self.on_text) and not self.tokenizer:
            raise RequestError("stop_strings and on_text need a tokenizer to write the text with")

    def _check_lookup(self) -> None:
        if self.prompt_lookup_num_tokens is not None:
            check_lookup(self.prompt_lookup_num_tokens, self.max_matching_ngram_size)

    def _check_beams(self) -> None:
        if not self.beams:
            return
        self.beams.check_sampling(self.sampling)
        for name in (*_OF_TOKENS, "prompt_lookup_num_tokens"):
            value = getattr(self, name)
            if value is not None and value is not False:
                raise RequestError(f"{name} does not go with beams: their tokens are known in the end alone")

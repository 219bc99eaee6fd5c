"""What is asked of the engine: one prompt to be continued. What comes of it is a Generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import RequestError

from ..argument_table import ARGUMENTS, check_fields, default
from ..sampling.options import BeamOptions, SamplingOptions

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from ..guided.grammars import Grammar
    from ..tokenizer import TokenizerLike

# What needs each token as it comes: beam search knows its tokens only at its end. A Request has no streamer.
_OF_TOKENS = ("on_token", "on_text", *(name for name, row in ARGUMENTS.items() if row.results or not row.with_beams))


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to be continued. It does not change: it may be submitted any number of times, to any engine.

    Args:
        prompt: The token ids that are continued; at least one.
        max_new_tokens: The largest number of new tokens. None goes on to the end of the context. Prompt and new tokens
            together may be one token longer than the context, because the last one is not run.
        min_new_tokens: The number of new tokens before which no stop token is chosen.
        stop_token_ids: The ids that end the text. The id that ended it is kept as the last token.
        sampling: How the tokens are chosen.
        on_token: Called as on_token(token_id) with each new token, in the engine's thread.
        max_time: Seconds after which the text ends, counted from the beginning of its prefill.
        tokenizer: Writes the text. Without a tokenizer no text is written.
        skip_special_tokens: Whether special tokens are left out of the text.
        clean_up_tokenization_spaces: Whether the spaces before punctuation are removed from the text; by default the
            tokenizer's own setting holds.
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
    min_new_tokens: int = default("min_new_tokens")
    stop_token_ids: Sequence[int] = default("stop_token_ids")
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    on_token: Callable[[int], object] | None = None
    max_time: float | None = default("max_time")
    tokenizer: "TokenizerLike | None" = None
    skip_special_tokens: bool = default("skip_special_tokens")
    clean_up_tokenization_spaces: bool | None = default("clean_up_tokenization_spaces")
    stop_strings: Sequence[str] = default("stop_strings")
    include_stop_str_in_output: bool = default("include_stop_str_in_output")
    on_text: Callable[[str], object] | None = None
    logprobs: int | None = default("logprobs")
    prompt_logprobs: int | None = default("prompt_logprobs")
    output_logits: bool = default("output_logits")
    output_scores: bool = default("output_scores")
    prompt_lookup_num_tokens: int | None = default("prompt_lookup_num_tokens")
    max_matching_ngram_size: int = default("max_matching_ngram_size")
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
        check_fields(self)
        self._check_limit(config)
        for token in self.stop_token_ids:
            if not 0 <= token < config.n_vocab:
                raise RequestError(f"stop token id {token} is outside the vocabulary of {config.n_vocab}")
        self.sampling.check_vocabulary(config.n_vocab)
        if (self.stop_strings or self.on_text) and not self.tokenizer:
            raise RequestError("stop_strings and on_text need a tokenizer to write the text with")
        self._check_beams()
        self.grammar()

    def grammar(self) -> "Grammar | None":
        """The compiled grammar that the text must keep to; None where the text is free.

        Raises:
            RequestError: It cannot be compiled, or there is no tokenizer.
            MissingExtraError: The extra `guided` is not installed.
        """
        guide = self.sampling.guide
        if guide is None:
            return None
        if not self.tokenizer:
            raise RequestError(f"{guide.name} needs a tokenizer to know the tokens' texts by")
        return self.tokenizer.grammar(guide)

    @property
    def slots(self) -> int:
        """The number of sequences that are decoded for it at once."""
        return self.beams.num_beams if self.beams else 1

    def limit(self, config: "GPTNeoConfig") -> int:
        """The largest number of new tokens that may come.

        Without max_new_tokens they end with the context; one comes after a prompt that is as long as the context.
        """
        room = config.n_ctx - len(self.prompt)
        return max(1, room) if self.max_new_tokens is None else min(room + 1, self.max_new_tokens)

    def longest(self, config: "GPTNeoConfig") -> int:
        """The largest number of tokens, prompt included, that each of its sequences may have."""
        return len(self.prompt) + self.limit(config)

    def most_cached(self, config: "GPTNeoConfig") -> int:
        """The number of positions that each of its sequences may take in the cache: the last token is never run."""
        return min(self.longest(config), config.n_ctx)

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
        if len(ids) > config.n_ctx:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, and the model's context n_ctx is {config.n_ctx}: no room left"
            )

    def _check_limit(self, config: "GPTNeoConfig") -> None:
        new = self.max_new_tokens
        length = len(self.prompt)
        if new is not None and length + new > config.n_ctx + 1:  # the last token needs no position: it is not run
            raise RequestError(f"a prompt of {length} tokens and max_new_tokens {new} exceed n_ctx {config.n_ctx}")

    def _check_beams(self) -> None:
        if not self.beams:
            return
        self.beams.check_sampling(self.sampling)
        for name in _OF_TOKENS:
            value = getattr(self, name, None)
            if value is not None and value is not False:
                raise RequestError(f"{name} does not go with beams: their tokens are known in the end alone")

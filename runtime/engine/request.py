"""One sequence to be continued: what is asked for, and what has come of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neo_tf.errors import RequestError

from ..argument_table import ARGUMENTS, check_fields, default
from ..sampling.beams import BeamOptions
from ..sampling.options import SamplingOptions
from ..tokenizer import Tokenizer

# What needs each token as it comes, which beam search does not know before its end.
_OF_TOKENS = ("on_token", "on_text", *(name for name, row in ARGUMENTS.items() if row.results or not row.with_beams))


@dataclass
class Request:
    """One sequence to be continued.

    Args:
        prompt: token ids, at least one.
        max_new_tokens: stops after so many; None goes on to the end of the context.
        min_new_tokens: the stop tokens are not chosen before so many.
        stop_token_ids: ids that end the text; they are kept as its last token.
        sampling: a SamplingOptions.
        on_token: called as on_token(token_id) with each new token.
        max_time: seconds after which it ends, from the beginning of its prefill.
        tokenizer: a Tokenizer to write the text with; without one there is none.
        stop_strings: texts that end the text: see include_stop_str_in_output. One may begin in the prompt.
        include_stop_str_in_output: as in transformers, the text goes on to the end of the last token. Otherwise it
            ends before the stop string.
        on_text: called as on_text(text) for each new token with the text that is final with it, which may be empty.
        logprobs: keeps each token's log-probability, and the so many most likely ones', before all processors.
        prompt_logprobs: the same of the prompt's tokens after its first; its prefill is slower then.
        output_logits, output_scores: keeps each token's logits before all processors, or as they were drawn by.
        prompt_lookup_num_tokens: where the text repeats itself, so many tokens at most are guessed from what came
            before, and checked in one step; None guesses none. The tokens are the same, in int8 and int4 as likely.
        max_matching_ngram_size: the guess follows the last so many tokens' latest occurrence, or of fewer.
        beams: a BeamOptions: follows several continuations, and keeps the best; each takes a slot.

    Attributes:
        tokens: new token ids so far.
        text: the new text so far, as far as it is final.
        finish_reason: None while it runs; "stop" after a stop token or string, or where the processors leave no token
            possible; "length" at a limit, "time" after max_time, "cancelled", or "error".
        error: what went wrong, of finish_reason "error": an EngineError, or what a function of its own raised.
        queued: whether it was submitted to an engine.
        cancelled: whether it is to end before the next step; see Engine.cancel.
        token_logprobs, prompt_token_logprobs: a float for each token.
        top_logprobs, prompt_top_logprobs: {token id: float} for each token, most likely first.
        logits, scores: float32 [n_vocab] for each token.
        hypotheses: with beams, a Hypothesis for each sequence to be returned, best first; tokens and
            text are the best one's.
    """

    prompt: list
    max_new_tokens: int | None = None
    min_new_tokens: int = default("min_new_tokens")
    stop_token_ids: tuple = default("stop_token_ids")
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    on_token: Callable | None = None
    max_time: float | None = default("max_time")
    tokenizer: Tokenizer | None = None
    stop_strings: tuple = default("stop_strings")
    include_stop_str_in_output: bool = default("include_stop_str_in_output")
    on_text: Callable | None = None
    logprobs: int | None = default("logprobs")
    prompt_logprobs: int | None = default("prompt_logprobs")
    output_logits: bool = default("output_logits")
    output_scores: bool = default("output_scores")
    prompt_lookup_num_tokens: int | None = default("prompt_lookup_num_tokens")
    max_matching_ngram_size: int = default("max_matching_ngram_size")
    beams: BeamOptions | None = None
    tokens: list = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: str | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    queued: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    token_logprobs: list = field(default_factory=list, init=False)
    top_logprobs: list = field(default_factory=list, init=False)
    prompt_token_logprobs: list = field(default_factory=list, init=False)
    prompt_top_logprobs: list = field(default_factory=list, init=False)
    logits: list = field(default_factory=list, init=False)
    scores: list = field(default_factory=list, init=False)
    hypotheses: list = field(default_factory=list, init=False)

    def check(self, config):
        """Raises RequestError where a model of that config cannot serve it: its prompt's ids, lengths and options."""
        if self.tokens or self.finish_reason:
            raise RequestError("the request has run already: make a new one")
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

    @property
    def slots(self):
        """Sequences that it decodes at once."""
        return self.beams.num_beams if self.beams else 1

    def limit(self, config):
        """New tokens that may come at most."""
        room = config.n_ctx - len(self.prompt)
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)

    def _check_prompt(self, config):
        prompt, n_ctx, n_vocab = self.prompt, config.n_ctx, config.n_vocab
        if len(prompt) == 0:
            raise RequestError("the prompt is empty: it needs at least one token")
        try:
            ids = np.asarray(prompt)
        except ValueError:  # rows of unequal lengths
            ids = np.asarray(None)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise RequestError("a prompt's token ids must be a flat sequence of integers")
        outside = np.flatnonzero((ids < 0) | (ids >= n_vocab))
        if outside.size:
            where = int(outside[0])
            raise RequestError(f"token id {ids[where]} at position {where} is outside the vocabulary of {n_vocab}")
        if len(prompt) >= n_ctx:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, and the model's context n_ctx is {n_ctx}: no room left"
            )

    def _check_limit(self, config):
        new, length, n_ctx = self.max_new_tokens, len(self.prompt), config.n_ctx
        if new is not None and length + new > n_ctx:
            raise RequestError(f"a prompt of {length} tokens and max_new_tokens {new} exceed n_ctx {n_ctx}")

    def _check_beams(self):
        if not self.beams:
            return
        self.beams.check_sampling(self.sampling)
        for name in _OF_TOKENS:
            value = getattr(self, name, None)
            if value is not None and value is not False:
                raise RequestError(f"{name} does not go with beams: their tokens are known in the end alone")

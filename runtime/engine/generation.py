"""What comes of a request: its tokens so far, their text, and how it ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from ..sampling.beam_group import Hypothesis
from .request import Request


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token or a stop string came, or the logits processors left no token possible
    LENGTH = "length"  # max_new_tokens or the end of the context
    TIME = "time"  # max_time
    CANCELLED = "cancelled"  # Engine.cancel
    ERROR = "error"  # Generation.error says which
    WITHHELD = "content_filter"  # a server's filter did not let the text pass; OpenAI's name for it


class Continuation(Protocol):
    """One continuation of a prompt, as it is returned: a Generation, or with beams each of its hypotheses.

    Attributes:
        tokens: The new token ids.
        text: Their text; empty without a tokenizer.
        finish_reason: Why it ended.
    """

    @property
    def tokens(self) -> list[int]: ...  # noqa: D102

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def finish_reason(self) -> str | None: ...  # noqa: D102


@dataclass(eq=False)
class Generation:
    """What has come of one Request so far. The engine alone writes it, through its methods; anybody may read it.

    Args:
        request: What was asked for.

    Attributes:
        tokens: The new token ids.
        text: The new text, as far as it is final; empty without a tokenizer.
        finish_reason: Why it ended; None while it waits or runs.
        error: With finish_reason "error", what went wrong: an EngineError, or what a function of the request's raised.
        cancelled: Whether it is to end before the next step; see Engine.cancel.
        token_logprobs: A log-probability for each new token, where the request asks for logprobs.
        top_logprobs: For each new token {token id: log-probability} of the most likely ones, best first.
        prompt_token_logprobs, prompt_top_logprobs: The same for the prompt's tokens after its first, where the request
            asks for prompt_logprobs.
        logits, scores: float32 [n_vocab] for each new token, where the request asks for output_logits, output_scores.
        hypotheses: With beams, the finished continuations, best first. tokens and text are those of the best.
    """

    request: Request
    tokens: list[int] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    cancelled: bool = field(default=False, init=False)
    token_logprobs: list[float] = field(default_factory=list, init=False)
    top_logprobs: list[dict[int, float]] = field(default_factory=list, init=False)
    prompt_token_logprobs: list[float] = field(default_factory=list, init=False)
    prompt_top_logprobs: list[dict[int, float]] = field(default_factory=list, init=False)
    logits: list[np.ndarray] = field(default_factory=list, init=False)
    scores: list[np.ndarray] = field(default_factory=list, init=False)
    hypotheses: Sequence[Hypothesis] = field(default=(), init=False)

    @property
    def continuations(self) -> Sequence[Continuation]:
        """What is returned: its hypotheses, best first, or without beams itself alone."""
        return self.hypotheses or [self]

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the new tokens, where logprobs are kept; minus infinity without any."""
        logprobs = self.token_logprobs
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf

    def add_token(self, token: int) -> None:
        """Appends a new token."""
        self.tokens.append(token)

    def add_text(self, text: str) -> None:
        """Appends text that is final."""
        self.text += text

    def add_logprob(self, logprob: float, top: dict[int, float]) -> None:
        """Keeps the log-probability of a new token, and those of the most likely ones."""
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(top)

    def add_prompt_logprob(self, logprob: float, top: dict[int, float]) -> None:
        """Keeps the same for the prompt's next token."""
        self.prompt_token_logprobs.append(logprob)
        self.prompt_top_logprobs.append(top)

    def add_logits(self, logits: np.ndarray) -> None:
        """Keeps the logits of a new token, float32 [n_vocab]."""
        self.logits.append(logits)

    def add_scores(self, scores: np.ndarray) -> None:
        """Keeps the scores that a new token was chosen by, float32 [n_vocab]."""
        self.scores.append(scores)

    def finish(self, reason: FinishReason) -> None:
        """Ends it."""
        self.finish_reason = reason

    def finish_with(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Ends it with the finished beams, best first."""
        best = hypotheses[0]
        self.hypotheses = hypotheses
        self.tokens, self.text = best.tokens, best.text
        self.finish_reason = FinishReason(best.finish_reason)

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        self.error = error
        self.finish_reason = FinishReason.ERROR

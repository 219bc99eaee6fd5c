"""When a request ends: its tokens, its text, and its time."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .generation import FinishReason, Generation
from .request import Request

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from ..text_stream import TextStream


class Stopping:
    """Adds new tokens and their text to a Generation, and ends it when it is finished.

    Call it with each new token, or with None where no token could be chosen. It returns the text that is final now.

    Args:
        generation: What comes of the request; its time runs from `begin` on.
        config: The model's.
    """

    def __init__(self, generation: Generation, config: "GPTNeoConfig") -> None:
        request = generation.request
        self._generation = generation
        self._clock = Clock(request.max_time)
        self._limit = request.limit(config)
        self._stop_token_ids = frozenset(request.stop_token_ids)
        self._stream = text_stream(request) if request.tokenizer else None

    def begin(self) -> None:
        """Starts the request's time."""
        self._clock.begin()

    def __call__(self, token: int | None) -> str:
        """Takes the next token; returns the text that is final with it."""
        generation, stream = self._generation, self._stream
        piece = ""
        if token is not None:
            generation.add_token(token)
            piece = stream(token) if stream else ""
        reason = self._reason(token)
        if stream and reason:
            piece += stream.finish()
        generation.add_text(piece)
        if reason:
            generation.finish(reason)
        return piece

    def _reason(self, token: int | None) -> FinishReason | None:
        if token is None or token in self._stop_token_ids or (self._stream and self._stream.stopped):
            return FinishReason.STOP
        if len(self._generation.tokens) >= self._limit:
            return FinishReason.LENGTH
        return FinishReason.TIME if self._clock.is_over else None


class Clock:
    """Says when a time is over.

    Args:
        max_time: Seconds; None is never over.
    """

    def __init__(self, max_time: float | None) -> None:
        self._max_time = max_time
        self._begin = 0.0

    def begin(self) -> None:
        """Starts the time."""
        self._begin = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._max_time is not None and time.perf_counter() - self._begin > self._max_time


def stop_test(request: Request) -> Callable[[list[int]], bool] | None:
    """A function that tells whether the last of a list of new tokens completes a stop string; None without any."""
    if not request.stop_strings or not request.tokenizer:
        return None
    tokenizer = request.tokenizer
    # The number of last tokens that a stop string may lie in: a character can take four.
    tail = 4 * max(map(len, request.stop_strings))
    prompt = [int(token) for token in request.prompt]

    def stops(tokens: list[int]) -> bool:
        last = tokens[-tail:]
        before = prompt[-tail:] if len(last) == len(tokens) else []
        # Not as one prompt: the first token after a prompt may have another text than one in the middle.
        stream = tokenizer.stream(before, request.stop_strings, **_writing(request))
        for token in last:
            stream(token)
        return stream.stopped

    return stops


def text_of(request: Request, tokens: list[int]) -> str:
    """The text of new tokens after a request's prompt, up to their end or a stop string."""
    stream = text_stream(request)
    return "".join([*map(stream, tokens), stream.finish()])


def text_stream(request: Request) -> "TextStream":
    """Writes the text that follows a request's prompt."""
    assert request.tokenizer is not None
    return request.tokenizer.stream(
        request.prompt, request.stop_strings, request.include_stop_str_in_output, **_writing(request)
    )


def _writing(request: Request) -> dict[str, Any]:
    """How a request's tokens become text."""
    return {
        "skip_special_tokens": request.skip_special_tokens,
        "clean_up_tokenization_spaces": request.clean_up_tokenization_spaces,
    }

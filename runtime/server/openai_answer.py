"""What the answers of OpenAI's completions and chats have in common, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from .errors import ServerError, openai_form
from .streaming import EventStream

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.request import Request
    from .call import Update
    from .serving import Serving


async def answer(
    make: Callable[[], OpenAIAnswer], serving: Serving, http: HttpRequest, prompt: object, streams: bool
) -> Response:
    """Runs one request, and answers it.

    Args:
        make: Checks the request and makes its answer; it is called in a thread.
        serving: The model.
        http: The HTTP request.
        prompt: What is written into the log, where prompts are.
        streams: Whether the answer is a stream.
    """
    made = await asyncio.to_thread(make)
    serving.log_prompt(http, prompt)
    call = serving.start(made.requests, streams=streams)
    if streams:
        return EventStream(call, made)
    async with call.watched(http.receive):
        generations = await call.results()
    return JSONResponse(await asyncio.to_thread(made.whole, generations))


class OpenAIAnswer:
    """Writes one answer, whole or in chunks; an EventWriter. A subclass makes the requests and writes the choices.

    Args:
        serving: The model.
        kind: What `object` says.
        id: The answer's id.
        include_usage: Whether the numbers of tokens follow in the end.

    Attributes:
        requests: What is run for it.
    """

    requests: list[Request]

    def __init__(self, serving: Serving, kind: str, id: str, include_usage: bool) -> None:
        self._serving = serving
        self._head = {"id": id, "object": kind, "created": int(time.time()), "model": serving.name}
        self._include_usage = include_usage
        self._told: dict[int, int] = {}  # {sequence: its tokens that were written}

    def choice(self, update: Update, generation: Generation, begin: int, is_first: bool) -> Mapping[str, Any] | None:
        """A chunk's choice.

        Args:
            update: What came.
            generation: The sequence's.
            begin: The number of its tokens that were written before.
            is_first: Whether nothing of the sequence was written before.

        Returns:
            None where there is nothing to write yet.
        """
        raise NotImplementedError

    def whole(self, generations: list[Generation]) -> dict[str, Any]:
        """The answer that does not stream."""
        raise NotImplementedError

    def usage(self, generations: Sequence[Generation]) -> Mapping[str, int]:
        """The numbers of tokens."""
        raise NotImplementedError

    def head(self) -> dict[str, Any]:
        """What every answer and every chunk begins with."""
        return dict(self._head)

    def begin(self) -> Iterator[str]:
        """See EventWriter."""
        yield from ()

    def write(self, update: Update, generation: Generation) -> Iterator[str]:
        """See EventWriter."""
        begin = self._told.get(update.index)
        choice = self.choice(update, generation, begin or 0, begin is None)
        if choice is not None:
            self._told[update.index] = update.tokens
            yield self._chunk([choice])

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        """See EventWriter."""
        if self._include_usage:
            yield _json({**self._head, "choices": [], "usage": self.usage(generations)})
        yield "[DONE]"

    def fail(self, error: ServerError) -> Iterator[str]:
        """See EventWriter."""
        yield _json(openai_form(error))
        yield "[DONE]"

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> str:
        chunk = {**self._head, "choices": choices}
        return _json({**chunk, "usage": None} if self._include_usage else chunk)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

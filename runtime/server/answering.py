"""From a request that a protocol has checked to its answer, whole or as a stream: the same way for every protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from .streaming import EventStream, EventWriter

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.request import Request
    from .serving import Serving


class Answer(EventWriter, Protocol):
    """Writes one answer in a protocol's form, as events or whole."""

    @property
    def requests(self) -> Sequence[Request]:
        """What is run for it."""
        ...

    def whole(self, generations: list[Generation]) -> Any:
        """The answer that does not stream, as JSON.

        Args:
            generations: What came of the requests, in their order.
        """
        ...


async def answer(
    make: Callable[[], Answer], serving: Serving, http: HttpRequest, prompt: object, streams: bool
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

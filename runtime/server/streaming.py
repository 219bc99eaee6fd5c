"""Answers that stream: server-sent events, written as the sequences of a call go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response

from .errors import ClientGoneError, ServerError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ..engine.generation import Generation
    from .call import Call, Update

# json.dumps would make an encoder for each event, which takes longer than its work.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# What a route's OpenAPI says of an answer that may stream.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventWriter(Protocol):
    """What a protocol writes into its stream: the data of events, each a line of JSON or a word."""

    def begin(self) -> Iterable[str]:
        """The events before the first token."""
        ...

    def write(self, update: Update, generation: Generation) -> Iterable[str]:
        """The events of what came to one sequence."""
        ...

    def end(self, generations: Sequence[Generation]) -> Iterable[str]:
        """The events after all sequences have ended."""
        ...

    def fail(self, error: ServerError) -> Iterable[str]:
        """The events where something failed on the way."""
        ...


class EventStream(Response):
    """Streams a call. A client that disconnects ends the call's sequences before the next step.

    Args:
        call: The call, started with streams=True.
        writer: Writes the events.
        headers: More headers of the answer.
    """

    media_type = "text/event-stream"

    def __init__(self, call: Call, writer: EventWriter, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})
        self._call = call
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""

        async def write(events: list[str]) -> None:
            if events:
                body = "".join(f"data: {event}\n\n" for event in events)
                await send({"type": "http.response.body", "body": body.encode(), "more_body": True})

        call = self._call
        writer = self._writer
        async with call.watched(receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await write([*writer.begin()])
                async for updates in call.updates():
                    events: list[str] = []
                    for update in updates:
                        events += writer.write(update, call.generation(update.index))
                    await write(events)
                await write([*writer.end(await call.results())])
            except ClientGoneError:
                scope["state"]["gone"] = True
                return
            except ServerError as error:
                scope["state"]["error"] = error
                await write([*writer.fail(error)])
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_json(value: Any) -> str:
    """JSON in one line, as the data of an event."""
    return _encode(value)

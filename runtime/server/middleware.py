"""What happens to every request before and after its route: its id, its key, its body's size, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from .errors import ClientStalledError, ServerError, shutting_down

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .serving import Serving

access_log = logging.getLogger("neo_tf.access")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

# Answers (method, path, error) in the form of the protocol that the path belongs to.
AnswerError = Callable[[str, str, ServerError], Response]


class Entrance:
    """The outermost layer of the app.

    A request gets an id, which its answer and its log lines carry. It is answered at once where the server ends, the
    key is wrong, or the body is too large or does not come.

    Args:
        app: What answers the others.
        serving: The model, its options and its counters.
        answer_error: Answers an error.
        open_paths: Paths that may be read (GET, HEAD) without a key.
        always_open: Paths that may be read while the server ends.
        own_checks: Paths whose routes check the key themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        serving: Serving,
        answer_error: AnswerError,
        open_paths: frozenset[str],
        always_open: frozenset[str],
        own_checks: frozenset[str],
    ) -> None:
        self._app = app
        self._serving = serving
        self._answer_error = answer_error
        self._open_paths = open_paths
        self._always_open = always_open
        self._own_checks = own_checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id, self._serving.options.send_timeout)
        try:
            try:
                body = await self._enter(scope, headers, receive)
            except ServerError as error:
                scope["state"]["error"] = error
                response = self._answer_error(scope["method"], scope["path"], error)
                await response(scope, receive, answer.send)
            else:
                await self._app(scope, body, answer.send)
        except ClientStalledError:  # returning without the rest of the answer closes the connection
            scope["state"]["gone"] = True
        except asyncio.CancelledError:  # Ray Serve cancels the task of a client that has disconnected
            scope["state"]["gone"] = True
            raise
        finally:
            self._log(scope, answer, request_id, time.perf_counter() - begin)

    async def _enter(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """What the routes receive the whole body from.

        Raises:
            ServerError: The request is not let in.
        """
        options = self._serving.options
        path = scope["path"]
        reads = scope["method"] in ("GET", "HEAD")  # of the same path, a POST may generate
        if options.keys and path not in self._own_checks and not (reads and path in self._open_paths):
            options.keys.check(headers.get("authorization", ""))
        if self._serving.admission.draining and not (reads and path in self._always_open):
            raise shutting_down()
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > options.max_body:
            raise _too_large(options.max_body)
        try:
            messages = await asyncio.wait_for(_whole_body(receive, options.max_body), options.body_timeout)
        except TimeoutError:
            raise ServerError(408, f"the body has not come within {options.body_timeout:g} seconds") from None

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        return again

    def _log(self, scope: Scope, answer: _Answer, request_id: str, seconds: float) -> None:
        state = scope["state"]
        route = scope.get("route")
        # Not the path as it came: anybody could make as many labels as he likes.
        path = getattr(route, "path", "other")
        error = state.get("error")
        gone = state.get("gone", False)
        status = 499 if gone else answer.status
        self._serving.metrics.answered(path, status, seconds)
        if gone:
            self._serving.metrics.client_gone()
        elif error is not None:
            self._serving.metrics.failed(error.code or error.type)
        client = scope.get("client")
        access_log.info(
            "answered",
            extra={
                "fields": {
                    "request_id": request_id,
                    "client": client[0] if client else None,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "bytes": answer.size,
                    "error": None if error is None else error.message,
                }
            },
        )


class _Answer:
    """An answer on its way out: its status and size; with the request's id in its headers."""

    def __init__(self, send: Send, request_id: str, timeout: float) -> None:
        self.status = 500  # where none is ever sent
        self.size = 0
        self._send = send
        self._id = request_id
        self._timeout = timeout

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._id
        else:
            self.size += len(message.get("body", b""))
        try:
            async with asyncio.timeout(self._timeout):
                await self._send(message)
        except TimeoutError:
            raise ClientStalledError from None


async def _whole_body(receive: Receive, limit: int) -> list[Message]:
    """The body's message, or what came in its place.

    Raises:
        ServerError: It is too large, whether its length was announced or not.
    """
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return [message]
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return [{"type": "http.request", "body": b"".join(parts), "more_body": False}]


def _too_large(limit: int) -> ServerError:
    return ServerError(413, f"the body has more than {limit} bytes", code="body_too_large")

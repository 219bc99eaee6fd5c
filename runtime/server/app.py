"""The app: every protocol's routes over one model. The server runs it, and so can any other ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

import neo_tf
from neo_tf.errors import RequestError

from . import docs_page, operations, page_routes
from .errors import ClientGoneError, ServerError, error_of, error_responses, openai_form
from .field_errors import field_error
from .hosted import npu, pipeline_ai
from .middleware import Entrance
from .openai import chat, completions, embeddings, tokens
from .serving import Serving
from .tgi import generate
from .tgi.errors import TGI_STATUSES, tgi_form


@dataclass(frozen=True)
class Protocol:
    """The routes of one protocol, and how it writes errors.

    Args:
        router: The routes.
        error_form: Writes an error as this protocol's clients read it.
        error_statuses: The statuses that they know for errors, where those are others: {ours: theirs}.
        error_paths: The paths whose errors it writes, with all paths under them; "/" is itself alone, where it is
            posted to.
        open_paths: Paths that may be read (GET, HEAD) without a key.
        always_open: Paths that may be read while the server ends, too.
        own_checks: Paths whose routes check the key themselves.
    """

    router: APIRouter
    error_form: Callable[[ServerError], dict[str, Any]] = openai_form
    error_statuses: Mapping[int, int] = field(default_factory=dict)
    error_paths: tuple[str, ...] = field(default=())
    open_paths: frozenset[str] = frozenset()
    always_open: frozenset[str] = frozenset()
    own_checks: frozenset[str] = frozenset()

    def writes_error(self, method: str, path: str) -> bool:
        """Whether an error of a request is written in this protocol's form."""
        if path == "/":
            return path in self.error_paths and method == "POST"
        return any(path == own or path.startswith(f"{own}/") for own in self.error_paths)


_OPENAI = Protocol(completions.router)  # writes the errors of all paths that no other protocol has
PROTOCOLS = (
    Protocol(page_routes.router, open_paths=page_routes.page_paths(), always_open=page_routes.page_paths()),
    _OPENAI,
    Protocol(chat.router),
    Protocol(embeddings.router),
    Protocol(tokens.router),
    Protocol(docs_page.router),
    Protocol(generate.router, tgi_form, TGI_STATUSES, ("/", "/generate", "/generate_stream", "/info")),
    Protocol(
        npu.router,
        npu.npu_form,
        error_paths=("/npu",),
        own_checks=frozenset((npu.TOKEN_PATH,)),
    ),
    Protocol(pipeline_ai.router, pipeline_ai.pipeline_ai_form, error_paths=("/v2",)),
    Protocol(
        operations.router,
        open_paths=frozenset(("/health", "/ready")),
        always_open=frozenset(("/health", "/ready", "/metrics", "/version")),
    ),
)
_THREADS = 64
_TEXT = {"type": "string"}
_MAYBE_TEXT = {"anyOf": [_TEXT, {"type": "null"}]}
_OPENAI_ERROR = {"message": _TEXT, "type": _TEXT, "param": _MAYBE_TEXT, "code": _MAYBE_TEXT}
_ERRORS = error_responses(
    {"error": {"type": "object", "properties": _OPENAI_ERROR}}, "400 with the field that is wrong"
)
_DOCS = frozenset(("/docs", "/openapi.json"))


class _App(FastAPI):
    """FastAPI, whose schema says how errors are answered here: not with its own 422."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI schema."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    operation["responses"] = {**_ERRORS, **operation["responses"]}
            for unused in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(unused, None)
        return self.openapi_schema or {}


def create_app(serving: Serving, protocols: Sequence[Protocol] = PROTOCOLS) -> ASGIApp:
    """The ASGI app of a model. Its end closes the model's service.

    Args:
        serving: The model.
        protocols: What it speaks.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A request's fields are worked out in threads: long texts must not take the last one from short texts.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "neo-tf requests"))
        yield
        await asyncio.to_thread(serving.close)

    app = _App(title="neo-tf", version=neo_tf.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = serving
    for protocol in protocols:
        app.include_router(protocol.router)

    def answer_error(method: str, path: str, error: ServerError) -> JSONResponse:
        protocol = next((one for one in protocols if one.writes_error(method, path)), _OPENAI)
        status = protocol.error_statuses.get(error.status, error.status)
        return JSONResponse(protocol.error_form(error), status, dict(error.headers))

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGoneError):
            request.scope["state"]["gone"] = True
            return Response(status_code=499)  # goes nowhere
        told = _told(error)
        request.scope["state"]["error"] = told
        return answer_error(request.method, request.url.path, told)

    for kind in (ServerError, RequestError, RequestValidationError, HTTPException, ClientGoneError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)  # Starlette still raises it after the answer, for the log
    open_paths = _DOCS.union(*(protocol.open_paths for protocol in protocols))
    always_open = frozenset[str]().union(*(protocol.always_open for protocol in protocols))
    own_checks = frozenset[str]().union(*(protocol.own_checks for protocol in protocols))
    return Entrance(app, serving, answer_error, open_paths, always_open, own_checks)


def _told(error: Exception) -> ServerError:
    """What a client is told of an error."""
    if isinstance(error, RequestValidationError):
        return field_error(error.errors())
    if isinstance(error, HTTPException):
        return ServerError(error.status_code, str(error.detail), headers=error.headers or {})
    return error_of(error)

"""What a client is told where its request cannot be served: a status, a message, and the field that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neo_tf.errors import NeoTFError, RequestError, one_line

# OpenAI's names of the kinds of errors, by status.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_LONGEST = 500  # characters of a message


@dataclass(eq=False)
class ServerError(NeoTFError):
    """An answer that is an error. Each protocol writes it in its own form.

    Args:
        status: The HTTP status.
        message: One line for who reads it.
        param: The field of the request that is wrong, where one is.
        code: A word for programs, such as "model_not_found".
        headers: Headers of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        """OpenAI's name of its kind."""
        return _TYPES.get(self.status, "invalid_request_error")


class ClientGoneError(Exception):
    """The client has closed its connection: nobody waits for an answer."""


class ClientStalledError(Exception):
    """The client has read nothing of its answer for too long: its connection is given up."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ServerError:
    """The error of a request that is wrong. A message that repeats a long value is cut."""
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]} ..."
    return ServerError(400, message, param, code)


def shutting_down() -> ServerError:
    """The error of a request that comes, or still runs, while the server ends."""
    return ServerError(503, "the server is shutting down", code="shutting_down", headers={"retry-after": "5"})


def engine_stopped(why: str) -> ServerError:
    """The error of every request once the engine is broken."""
    return ServerError(503, why, code="engine_stopped")


def error_of(error: BaseException) -> ServerError:
    """What the client is told of an error that ended its request."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, RequestError):
        return bad_request(one_line(error))
    return ServerError(500, f"{type(error).__name__}: {one_line(error)}", code="failed")


def error_responses(error: Mapping[str, Any], such_as: str = "") -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the errors of some routes.

    Args:
        error: The JSON schema of an error's properties, {name: schema}. Every error has all of them.
        such_as: An example, such as "400 with the field that is wrong".
    """
    schema = {"type": "object", "properties": error, "required": list(error)}
    description = f"An error, such as {such_as}" if such_as else "An error"
    return {"default": {"description": description, "content": {"application/json": {"schema": schema}}}}


def openai_form(error: ServerError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": told}

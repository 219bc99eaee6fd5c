"""A request's first wrong field, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neo_tf.errors import RequestError, first_line

from .errors import ServerError, bad_request


def field_error(errors: Sequence[Any]) -> ServerError:
    """The error of a body that pydantic refuses: what is wrong with its first wrong field.

    Args:
        errors: pydantic's list of errors. It holds the values that were sent, which are not repeated.
    """
    error = errors[0]
    # A name from JSON may hold half of a surrogate pair, which no answer can.
    location = [str(part).encode("utf-8", "replace").decode()[:100] for part in error["loc"] if part != "body"]
    param = location[0] if location else None
    path = ".".join(location)
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, RequestError):
        return bad_request(first_line(cause), param, "invalid_value")
    kind = error["type"]
    if kind == "json_invalid":
        return bad_request("the body is not valid JSON", code="invalid_json")
    if kind == "extra_forbidden":
        return bad_request(f"unknown field {path!r}", param, "unknown_field")
    if kind == "missing":
        what = f"the field {path!r}" if path else "the body, a JSON object,"
        return bad_request(f"{what} is missing", param, "missing_field")
    if not path:
        return bad_request("the body must be a JSON object, sent as application/json", code="invalid_body")
    return bad_request(f"{path}: {error['msg']}", param, "invalid_value")

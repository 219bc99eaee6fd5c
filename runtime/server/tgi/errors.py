"""Errors as Text Generation Inference writes them."""

from __future__ import annotations

from typing import Any

from ..errors import ServerError, error_responses

# Its statuses for what is 400 and 500 elsewhere.
TGI_STATUSES = {400: 422, 500: 424}
# Its names of the kinds of errors, by our status. Its clients raise an exception of their own for each.
_TYPES = {400: "validation", 408: "validation", 413: "validation", 429: "overloaded", 500: "generation"}
TGI_ERRORS = error_responses(
    {"error": {"type": "string"}, "error_type": {"type": "string"}}, "422 with the field that is wrong"
)


def tgi_form(error: ServerError) -> dict[str, Any]:
    """An error as its clients read it: the text alone can name the field."""
    message = error.message
    if error.param not in (None, "parameters") and error.param not in message:
        message = f"{error.param}: {message}"
    return {"error": message, "error_type": _TYPES.get(error.status, error.code or error.type)}

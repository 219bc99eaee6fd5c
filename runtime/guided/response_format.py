"""OpenAI's response_format, as the argument that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neo_tf.errors import RequestError


def guided_arguments(response_format: Any) -> dict[str, Any]:
    """The arguments of generation that a response_format stands for: {} or {"guided_json": schema}.

    Args:
        response_format: None, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema":
            {"name": ..., "schema": {...}}}, or as huggingface_hub writes it, {"type": "json_object", "value": schema}.

    Raises:
        RequestError: It is something else.
    """
    if response_format is None:
        return {}
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"guided_json": _schema(response_format.get("value", {"type": "object"}), "value")}
    if kind != "json_schema":
        raise RequestError("response_format must have the type text, json_object or json_schema")
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    return {"guided_json": _schema(schema, "json_schema.schema")}


def _schema(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"response_format.{place} must be a JSON schema, as an object")
    return dict(value)

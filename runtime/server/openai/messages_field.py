"""The field `messages` of a chat: each has a role and a content, which is a text or a list of parts of text."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from neo_tf.errors import RequestError

from ...argument_kinds import is_well_formed


class Messages:
    """Marks the field. In its value every content is one text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_messages)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        part = {
            "type": "object",
            "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
        content = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}
        message = {
            "type": "object",
            "properties": {"role": {"type": "string", "minLength": 1}, "content": content},
            "required": ["role", "content"],
        }
        return {"type": "array", "items": message, "minItems": 1, "description": "The chat, the oldest message first."}


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list of at least one message, each with role and content")
    return [_message(place, message) for place, message in enumerate(value)]


def _message(place: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
        raise RequestError(f"messages: number {place} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(place, part) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"messages: the content of number {place} must be a text, or a list of parts of text")
    if not is_well_formed(f"{message['role']}{content}"):  # JSON can write half of a surrogate pair
        raise RequestError(f"messages: number {place} is not a text that UTF-8 can write")
    return {**message, "content": content}


def _part(place: int, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f"messages: number {place} has a part that is no text, and the model reads text alone")
    return part["text"]

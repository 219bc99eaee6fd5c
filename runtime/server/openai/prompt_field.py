"""A field of prompts: a text, several texts, token ids, or several lists of token ids."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from neo_tf.errors import RequestError

from ...argument_kinds import is_well_formed

_FORMS = "a text, a list of texts, token ids, or a list of lists of token ids"


class Prompts:
    """Marks the field. Its value becomes a list of prompts, each a text or a list of token ids.

    The check ends at the first item that is wrong: a body of a million of them costs no more.

    Args:
        meaning: What the field does.
        is_optional: Whether it may be null.
    """

    def __init__(
        self, meaning: str = "What is continued. Without it a new document begins.", is_optional: bool = True
    ) -> None:
        self._meaning = meaning
        self._is_optional = is_optional

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        text = {"type": "string"}
        ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        forms = [text, {"type": "array", "items": text, "minItems": 1}, ids]
        forms += [{"type": "array", "items": ids, "minItems": 1}]
        if self._is_optional:
            forms.append({"type": "null"})
        return {"anyOf": forms, "description": self._meaning}

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> list[str | list[int]] | None:
        if value is None and self._is_optional:
            return None
        return _prompts(value, str(info.field_name))


def _prompts(value: Any, name: str) -> list[str | list[int]]:
    if isinstance(value, str):
        return [_checked(value, name)]
    if not isinstance(value, list):
        found = "null" if value is None else type(value).__name__
        raise RequestError(f"{name} must be {_FORMS}, not {found}")
    if not value:
        raise RequestError(f"{name} is an empty list: give at least one text or token id")
    first = value[0]
    if isinstance(first, str) and all(isinstance(text, str) for text in value):
        return [_checked(text, name) for text in value]
    if _are_ids(value):
        return [value]
    if isinstance(first, list) and all(isinstance(ids, list) and ids and _are_ids(ids) for ids in value):
        return value
    raise RequestError(f"{name} must be {_FORMS}, and this list is none of them")


def _checked(text: str, name: str) -> str:
    if not is_well_formed(text):  # JSON can write half of a surrogate pair
        raise RequestError(f"{name} is not a text that UTF-8 can write")
    return text


def _are_ids(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)

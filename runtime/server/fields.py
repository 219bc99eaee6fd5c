"""Fields of a protocol that are arguments of generation: their checks and schemas come from the table of arguments."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from neo_tf.errors import RequestError

from ..argument_kinds import (
    Choice,
    Choices,
    Flag,
    JsonSchema,
    Kind,
    Number,
    Text,
    Texts,
    TokenBiases,
    TokenId,
    TokenIds,
    TokenSequences,
    WellFormedText,
    Whole,
)
from ..argument_table import ARGUMENTS


class Checked:
    """Marks a field whose value a kind checks, under the field's own name. None stands for the default.

    Args:
        kind: The kind of value.
        meaning: What the field does.
        also: Values beyond the kind's range that the protocol gives a meaning of its own.
        schema: The kind as JSON schema; by default that of schema_of.
    """

    def __init__(
        self, kind: Kind, meaning: str, also: tuple[Any, ...] = (), schema: dict[str, Any] | None = None
    ) -> None:
        self._kind = kind
        self._schema = schema_of(kind) if schema is None else schema
        self._also = also
        self._meaning = meaning

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        options = [self._schema, {"type": "null"}]
        if self._also:
            options.insert(1, {"enum": list(self._also)})
        return {"anyOf": options, "description": self._meaning}

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if value is None or any(type(value) in (int, float) and value == one for one in self._also):
            return value
        name = str(info.field_name)
        if isinstance(self._kind, Flag) and not isinstance(value, bool):  # 1 is no bool in JSON
            raise self._kind.refusal(name, value)
        value = self._kind.normal(value)
        self._kind.check(name, value)
        return value


class Argument(Checked):
    """Marks a field that is an argument of generation: `Annotated[Any, Argument("top_k")] = None`.

    Args:
        name: The argument's name in the table, which has its kind, range and meaning.
        also: See Checked.
        meaning: What the field does, where the protocol differs from the table.
    """

    def __init__(self, name: str, also: tuple[Any, ...] = (), meaning: str = "") -> None:
        row = ARGUMENTS[name]
        super().__init__(row.kind, meaning or row.meaning, also)
        self.name = name


class NotServed:
    """Marks a field that is refused by its name, unless it is null or has a value that changes nothing.

    Args:
        reason: Why, and what to do.
        harmless: Values that change nothing.
    """

    def __init__(self, reason: str, harmless: tuple[Any, ...] = ()) -> None:
        self._reason = reason
        self._harmless = harmless

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        return {"enum": [None, *self._harmless], "description": f"Not served: {self._reason}."}

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if value is not None and value not in self._harmless:
            raise RequestError(f"{info.field_name} is not served: {self._reason}")
        return None


class Ignored:
    """Marks a field that is taken whatever it says, because it does not change a text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.any_schema()

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        return {"description": "This has no effect."}


def arguments_of(body: BaseModel) -> dict[str, Any]:
    """{argument's name: value} of the fields of a request that are arguments and are given."""
    found = {}
    for field, argument in argument_fields(type(body)).items():
        value = getattr(body, field)
        if value is not None:
            found[argument] = value
    return found


def argument_fields(body: type[BaseModel]) -> dict[str, str]:
    """{field: argument's name} of a protocol's request."""
    return {
        name: mark.name
        for name, field in body.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Argument)
    }


def foreign_id(field: str, argument: str, value: Any, n_vocab: int) -> str | None:
    """What is wrong with the token ids that an argument names: the first one outside the vocabulary, if there is one.

    Args:
        field: What the message calls the argument.
        argument: Its name in the table.
        value: Its value, in the kind's normal form.
        n_vocab: The size of the vocabulary.
    """
    for token in ARGUMENTS[argument].kind.token_ids(value):
        if not 0 <= token < n_vocab:
            return f"{field}: token id {token} is outside the vocabulary of {n_vocab}"
    return None


def schema_of(kind: Kind) -> dict[str, Any]:
    """A kind of value as JSON schema, with its range."""
    if isinstance(kind, Whole):
        return _with_limits({"type": "integer"}, minimum=kind.least, maximum=kind.most)
    if isinstance(kind, Number):
        limits = {
            "minimum": kind.least,
            "maximum": kind.most,
            "exclusiveMinimum": kind.above,
            "exclusiveMaximum": kind.below,
        }
        return _with_limits({"type": "number"}, **limits)
    if isinstance(kind, Choice):
        return {"enum": list(kind.values)}
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    text = {"type": "string"}
    some_text = {"type": "string", "minLength": 1}
    if isinstance(kind, TokenIds):
        return {"anyOf": [ids, ids["items"]]} if kind.or_one else ids
    if isinstance(kind, Texts):
        texts = {"type": "array", "items": some_text}
        return {"anyOf": [some_text, {**texts, "minItems": 1} if isinstance(kind, Choices) else texts]}
    by_type: dict[type[Kind], dict[str, Any]] = {
        Flag: {"type": "boolean"},
        Text: text,
        WellFormedText: text,
        JsonSchema: {"anyOf": [{"type": "object"}, text]},
        TokenId: {"type": "integer", "minimum": 0},
        TokenSequences: {"type": "array", "items": ids},
        TokenBiases: {
            "type": "object",
            "patternProperties": {"^[0-9]{1,9}$": {"type": "number"}},
            "additionalProperties": False,
        },
    }
    return by_type.get(type(kind), {})


def _with_limits(schema: dict[str, Any], **limits: float | None) -> dict[str, Any]:
    finite = {name: limit for name, limit in limits.items() if limit is not None and abs(limit) != float("inf")}
    return {**schema, **finite}

"""What a text must keep to, as the library of grammars takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neo_tf.errors import RequestError

# A grammar of llguidance. With no_forcing every token is allowed that keeps to the grammar; otherwise only the
# tokenizer's own way of writing what must come next is.
_HEADER = '%llguidance {"no_forcing": true}\nstart: '
# White space in JSON: at most one space. Without a limit a model may write it for ever.
_JSON_OPTIONS = {
    "whitespace_pattern": " ",
    "lenient": False,  # a keyword that cannot be kept to is refused
    "json_allow_general_unicode_escapes": False,  # with them a key could be written a second time, in other letters
}
MOST_SCHEMAS = 10_000  # in one schema, itself and all inside it
_OPTIONS_KEY = "x-guidance"  # the schema's keyword for these options
# Keywords whose values are no schemas.
_NO_SCHEMAS = frozenset(("const", "enum", "default", "examples", "example", "required", "dependentRequired"))
# Keywords whose values are objects with a schema for each of their names.
_NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


@dataclass(frozen=True)
class Guide:
    """What a text must keep to.

    Args:
        name: The argument that says so.
        grammar: The same as a grammar of llguidance.
    """

    name: str
    grammar: str

    @classmethod
    def of_regex(cls, pattern: str) -> Guide:
        """The whole text matches a regular expression, in the syntax of Rust's crate regex."""
        return cls("guided_regex", f"{_HEADER}/{_between_slashes(pattern)}/")

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> Guide:
        """The text is one of several."""
        texts = "|".join(_without_meaning(text) for text in choices)
        return cls("guided_choice", f"{_HEADER}/{_between_slashes(f'(?:{texts})')}/")

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any]) -> Guide:
        """The text is JSON, and what it says keeps to a schema.

        Raises:
            RequestError: The schema has a keyword that is known not to be kept to, or too many parts.
        """
        if _OPTIONS_KEY in schema:
            raise RequestError(f"guided_json: the keyword {_OPTIONS_KEY} is not served")
        for number, part in enumerate(_schemas(schema)):
            if number == MOST_SCHEMAS:
                raise RequestError(f"guided_json: the schema has more than {MOST_SCHEMAS} schemas inside it")
            least = part.get("minProperties", 0)
            required = part.get("required", ())
            # A name that the schema does not know may come twice, and then it counts once.
            if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
                raise RequestError("guided_json: minProperties above the number of required names is not served")
        return cls("guided_json", f"{_HEADER}%json {json.dumps({**schema, _OPTIONS_KEY: _JSON_OPTIONS})}")


def _between_slashes(pattern: str) -> str:
    """A regular expression as it stands between two slashes in a grammar."""
    if re.fullmatch(r"(?:[^\\]|\\.)*\\", pattern, re.DOTALL):
        raise RequestError("guided_regex: the backslash at the end stands for nothing")
    spelled = {"\n": r"\n", "\\\n": r"\n", "/": r"\/"}
    return re.sub(r"\\.|\n|/", lambda found: spelled.get(found[0], found[0]), pattern, flags=re.DOTALL)


def _without_meaning(text: str) -> str:
    """A regular expression that matches one text alone."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"\\{found[0]}", text)


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas inside it."""
    if isinstance(schema, list):
        for part in schema:
            yield from _schemas(part)
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key, value in schema.items():
        if key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            for part in value.values():
                yield from _schemas(part)
        elif key not in _NO_SCHEMAS:
            yield from _schemas(value)

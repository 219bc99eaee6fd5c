"""Kinds of values that an argument can have: how a value is checked, described, and read from a command line."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from neo_tf.errors import RequestError


class Kind:
    """A kind of value. Subclasses say what is allowed.

    Attributes:
        option_type: what the command line reads: int, float, bool, str, or list[str], an option that can be repeated.
            None means that a command line cannot give such a value.
    """

    option_type: Any = str

    @property
    def words(self) -> str:
        """What a value must be: it completes "NAME must be ..."."""
        raise NotImplementedError

    @property
    def metavar(self) -> str:
        """What stands for a value in the command line's help."""
        return "TEXT"

    def check(self, name: str, value: Any) -> None:
        """Raises RequestError, with the argument's name, where a value is not allowed."""
        raise NotImplementedError

    def normal(self, value: Any) -> Any:
        """The value's usual form, where a kind allows several forms."""
        return value

    def read(self, name: str, given: Any) -> Any:
        """The value of an option, from what the command line read as option_type.

        Raises:
            RequestError: a text that cannot be read.
        """
        return given

    def token_ids(self, value: Any) -> list[int]:
        """All token ids in a checked value, so that they can be compared with the vocabulary."""
        return []

    def refusal(self, name: str, value: Any) -> RequestError:
        """The error for a value that is not allowed."""
        return RequestError(f"{name} must be {self.words}, not {value!r}")


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number, within limits that are allowed values themselves."""

    least: int | None = None
    most: int | None = None
    metavar = "N"
    option_type = int

    @property
    def words(self) -> str:
        """What a value must be."""
        limits = _limits(self.least, None, self.most, None)
        return f"a whole number, {limits}" if limits else "a whole number"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise RequestError(f"{name} must be a whole number, not {value!r}")
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            raise RequestError(f"{name} must be {_limits(self.least, None, self.most, None)}, not {value}")


@dataclass(frozen=True)
class Number(Kind):
    """A number within limits: `least` and `most` are allowed values themselves, `above` and `below` are not.

    Args:
        hint: words for who gave a number outside the limits.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    hint: str = ""
    metavar = "X"
    option_type = float

    @property
    def words(self) -> str:
        """What a value must be."""
        return "a finite number" if self._limits == "finite" else f"a number {self._limits}"

    @property
    def _limits(self) -> str:
        return _limits(self.least, self.above, self.most, self.below)

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise RequestError(f"{name} must be a number, not {value!r}")
        try:
            float(value)
        except OverflowError:  # a whole number of more than 308 digits
            raise RequestError(f"{name} must be a number that a float can hold, and this one is too large") from None
        # NaN compares as False: it is outside of all limits.
        allowed = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        if not allowed:
            hint = f" ({self.hint})" if self.hint else ""
            raise RequestError(f"{name} must be {self._limits}{hint}, not {value}")


def _limits(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """Limits in words, such as "greater than 0 and at most 1"."""
    if least is not None and most is not None:
        return f"from {least} to {most}"
    if above == -math.inf and below == math.inf:
        return "finite"
    parts = []
    if least is not None:
        parts.append(f"at least {least}")
    if above is not None:
        parts.append(f"greater than {above}")
    if most is not None:
        parts.append(f"at most {most}")
    if below is not None:
        parts.append("below infinity" if below == math.inf else f"less than {below}")
    return " and ".join(parts)


class Flag(Kind):
    """True or False."""

    words = "True or False"
    metavar = ""
    option_type = bool

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if value not in (False, True):
            raise self.refusal(name, value)

    def normal(self, value: Any) -> Any:
        """True or False, where 1, 0 or numpy's own were given."""
        return bool(value) if value in (False, True) else value


class Text(Kind):
    """A text."""

    words = "a text"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, str):
            raise self.refusal(name, value)


class Texts(Kind):
    """A list of texts; its short form is one text."""

    words = "a list of texts, none of them empty"
    option_type = list[str]

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
            raise self.refusal(name, value)

    def normal(self, value: Any) -> Any:
        """A list, where one text was given."""
        return [value] if isinstance(value, str) else value


class WellFormedText(Text):
    """A text of whole characters: it can be written as UTF-8."""

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        super().check(name, value)
        if not is_well_formed(value):
            raise RequestError(f"{name} must be valid UTF-8 text")


class Choices(Texts):
    """At least one text to choose from."""

    words = "a list of one or more texts, none of them empty"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        super().check(name, value)
        if not value:
            raise self.refusal(name, value)
        if not all(map(is_well_formed, value)):
            raise RequestError(f"{name} must be valid UTF-8 texts")


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few values. The command line spells True and False in small letters."""

    values: tuple[bool | str, ...]

    @property
    def words(self) -> str:
        """What a value must be."""
        return _alternatives([repr(value) for value in self.values])

    @property
    def metavar(self) -> str:
        """The values, as the command line spells them."""
        return "|".join(self._spelled)

    @property
    def _spelled(self) -> dict[str, bool | str]:
        return {str(value).lower(): value for value in self.values}

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        # 1 == True, but only True is one of the values.
        if not any(type(value) is type(one) and value == one for one in self.values):
            raise self.refusal(name, value)

    def read(self, name: str, given: str) -> bool | str:
        """See Kind."""
        if given.lower() not in self._spelled:
            raise RequestError(f"{name} must be {_alternatives(list(self._spelled))}, not {given!r}")
        return self._spelled[given.lower()]


def _alternatives(words: list[str]) -> str:
    """ "a, b or c"."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"


class TokenId(Kind):
    """A token id. Whether the vocabulary has it is checked where a model is known."""

    words = "a token id"
    metavar = "ID"
    option_type = int

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if _indices([value]) is None:
            raise self.refusal(name, value)

    def token_ids(self, value: Any) -> list[int]:
        """See Kind."""
        return [operator.index(value)]


@dataclass(frozen=True)
class TokenIds(Kind):
    """Several token ids.

    Args:
        or_one: whether a token id that stands alone is allowed too.
    """

    or_one: bool = False
    metavar = "IDS"
    option_type = list[str]

    @property
    def words(self) -> str:
        """What a value must be."""
        return "a token id or a list of token ids" if self.or_one else "token ids"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if _indices(self._listed(value)) is None:
            raise self.refusal(name, value)

    def normal(self, value: Any) -> Any:
        """A list, where token ids came as an array or in another form that can be gone through."""
        if (
            isinstance(value, list | tuple | str | bytes)
            or not hasattr(value, "__iter__")
            or not getattr(value, "ndim", 1)
        ):
            return value
        return list(value)

    def _listed(self, value: Any) -> Any:
        return [value] if self.or_one and not isinstance(value, list | tuple) else value

    def token_ids(self, value: Any) -> list[int]:
        """See Kind."""
        return [operator.index(token) for token in self._listed(value)]

    def read(self, name: str, given: list[str]) -> list[int]:
        """["5,7", "9"] -> [5, 7, 9]."""
        try:
            return [int(part) for text in given for part in text.split(",")]
        except ValueError:
            raise RequestError(
                f"{name} must be token ids with commas between, such as 5,7, not {','.join(given)!r}"
            ) from None


class _FromJson(Kind):
    """A value with a structure, which the command line reads as JSON."""

    metavar = "JSON"

    def read(self, name: str, given: str) -> Any:
        """See Kind."""
        try:
            return json.loads(given)
        except (ValueError, RecursionError):
            raise RequestError(f"{name} must be JSON, not {given!r}") from None


class JsonSchema(Kind):
    """A JSON schema, as an object or as its text. The command line takes the name of a file, too."""

    words = "a JSON schema, as an object or as its text"
    metavar = "FILE|JSON"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, dict):
            raise RequestError(f"{name} must be {self.words}, not {_shortened(value)}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{name} must hold what JSON can hold: {error}") from None

    def normal(self, value: Any) -> Any:
        """An object, where its text was given."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value

    def read(self, name: str, given: str) -> Any:
        """See Kind."""
        if given.lstrip().startswith("{"):
            return self.normal(given)
        try:
            content = Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"{name}: {given!r} is neither a JSON schema nor a file to read: {reason}") from None
        found = self.normal(content)
        if not isinstance(found, dict):
            raise RequestError(f"{name}: the file {given!r} holds no JSON schema")
        return found


class TokenSequences(_FromJson):
    """Sequences of token ids: [[5], [7, 8]]."""

    words = "a list of sequences of token ids, none of them empty"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, list | tuple) or not all(map(_is_sequence_of_ids, value)):
            raise self.refusal(name, value)

    def token_ids(self, value: Any) -> list[int]:
        """See Kind."""
        return [operator.index(token) for ids in value for token in ids]


_BIAS = Number(below=math.inf)


class SequenceBiases(_FromJson):
    """A bias for each of several sequences of token ids, in either of transformers' forms."""

    words = "{(token id, ...): bias} or [[[token id, ...], bias]]"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, dict | list | tuple):
            raise self.refusal(name, value)
        pairs = self.pairs(value)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise self.refusal(name, value)
        if not all(_is_sequence_of_ids(ids) for ids, _ in pairs):
            raise self.refusal(name, value)
        for _, bias in pairs:
            _BIAS.check(f"{name}: a bias", bias)

    @staticmethod
    def pairs(value: Any) -> list[Any]:
        """Both forms as pairs of a sequence and its bias."""
        return list(value.items()) if isinstance(value, dict) else list(value)

    def token_ids(self, value: Any) -> list[int]:
        """See Kind."""
        return [operator.index(token) for ids, _ in self.pairs(value) for token in ids]


class TokenBiases(_FromJson):
    """A bias for each of several tokens. The token ids may be texts, as the keys of a JSON object are."""

    words = "{token id: bias}"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, dict) or _indices(map(_without_quotes, value)) is None:
            raise self.refusal(name, value)
        for bias in value.values():
            _BIAS.check(f"{name}: a bias", bias)

    def token_ids(self, value: Any) -> list[int]:
        """See Kind."""
        return [operator.index(_without_quotes(key)) for key in value]


class Decay(_FromJson):
    """A pair (start, factor): a number of tokens, and a factor for each token after them."""

    words = "(start, factor)"
    _START: ClassVar[Kind] = Whole(least=0)
    _FACTOR: ClassVar[Kind] = Number(above=0, below=math.inf)

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise self.refusal(name, value)
        self._START.check(f"{name}'s start", value[0])
        self._FACTOR.check(f"{name}'s factor", value[1])


class Dicts(Kind):
    """A list of dicts, which a chat template sees."""

    words = "a list of dicts"
    option_type = None

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, list | tuple) or not all(isinstance(one, dict) for one in value):
            raise self.refusal(name, value)


class NamedValues(Kind):
    """Arguments by their names."""

    words = "a dict of arguments"
    option_type = None

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self.refusal(name, value)


class Functions(Kind):
    """A list of functions that change scores."""

    words = "a list of functions of (history, scores)"
    option_type = None

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not isinstance(value, list | tuple) or not all(map(callable, value)):
            raise self.refusal(name, value)


class Streamer(Kind):
    """What receives text while it is written."""

    words = "a function of text, or an object with put and end"
    option_type = None

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        if not callable(value) and not hasattr(value, "put"):
            raise self.refusal(name, value)


def _indices(values: Iterable[Any] | Any) -> list[int] | None:
    """Values as ints; None where there are none, or one of them is no whole number. True is none, either."""
    if isinstance(values, str | bytes):
        return None
    try:
        listed = list(values)
        return None if any(isinstance(value, bool) for value in listed) else [operator.index(value) for value in listed]
    except TypeError:
        return None


def is_well_formed(text: str) -> bool:
    """Whether a text can be written as UTF-8: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shortened(value: Any) -> str:
    """A value in a message, with its end left out where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _is_sequence_of_ids(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and len(ids) > 0 and _indices(ids) is not None


def _without_quotes(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() else key

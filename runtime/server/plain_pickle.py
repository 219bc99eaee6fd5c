"""Reading a pickle of plain values from somebody who must not run code here.

Python's unpickler is not used: the few opcodes that build lists, dicts, tuples, texts, numbers, booleans and None are
carried out here. There is none among them that names, imports or calls anything.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from neo_tf.errors import RequestError

_MOST_OPCODES = 100_000
_MOST_DEPTH = 16  # of lists in lists
_MOST_KEYS = 1000  # of a dict: keys that were chosen to collide must not take long
_MOST_CHARACTERS = 4_000_000  # of all texts together, those that come twice counted twice
_LARGEST = 2**64  # of a whole number, without its sign
_PROTOCOLS = range(2, 6)  # those whose opcodes are binary; Python has written no lower one by itself since 3.0


class _Mark:
    """Where the items of a list, a tuple or a dict begin on the stack."""


_MARK = _Mark()


def read_plain_pickle(data: bytes) -> Any:
    """The value that a pickle builds.

    Args:
        data: The pickle, of protocol 2 to 5.

    Raises:
        RequestError: It is damaged, holds anything but plain values, or is larger than its values need to be.
    """
    return _Reader().read(data)


class _Reader:
    """Carries out a pickle's opcodes.

    A list or a dict has one place in the value: a pickle that puts it into several is refused. So what is built is a
    tree, no larger than the pickle, and going through it takes no longer than reading it.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[Any, int]] = []  # values with their depth
        self._memo: dict[int, Any] = {}
        self._characters = 0

    def read(self, data: bytes) -> Any:
        """See read_plain_pickle."""
        count = 0
        end = 0
        try:
            for opcode, argument, place in pickletools.genops(data):
                count += 1
                if count > _MOST_OPCODES:
                    raise RequestError(f"the pickle has more than {_MOST_OPCODES} parts")
                end = place or 0
                if opcode.name == "STOP":
                    break
                self._carry_out(opcode.name, argument)
        except RequestError:
            raise
        except (ValueError, IndexError, OverflowError):  # of genops, and of a stack that is empty
            raise RequestError("the pickle is damaged") from None
        if len(self._stack) != 1 or self._stack[0][0] is _MARK or end + 1 != len(data):
            raise RequestError("the pickle is damaged: it does not hold one value")
        return self._stack[0][0]

    def _carry_out(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _VALUES:
            self._push(self._checked(argument))
        elif name in _CONTAINERS:
            self._push(_CONTAINERS[name](), 1)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif "BYTES" in name:
            raise RequestError("the pickle holds bytes: a prompt is a text")
        else:
            raise RequestError(
                f"the pickle holds more than lists, dicts, texts and numbers: {name} is refused, and nothing is run"
            )

    def _checked(self, value: Any) -> Any:
        """A text or a number that is small enough."""
        if isinstance(value, str):
            self._characters += len(value)
            if self._characters > _MOST_CHARACTERS:
                raise RequestError(f"the pickle's texts have more than {_MOST_CHARACTERS} characters together")
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            raise RequestError("the pickle holds a whole number of more than 64 bits")
        return value

    # ---- the stack

    def _push(self, value: Any, depth: int = 0) -> None:
        self._stack.append((value, depth))

    def _pop(self) -> tuple[Any, int]:
        found = self._stack.pop()
        if found[0] is _MARK:
            raise ValueError("a value was expected")
        return found

    def _pop_to_mark(self) -> list[tuple[Any, int]]:
        items = []
        while (found := self._stack.pop())[0] is not _MARK:
            items.append(found)
        return items[::-1]

    def _fill(self, kind: type, items: list[tuple[Any, int]]) -> Any:
        """The list or dict on top of the stack, which now holds the items and is as deep as they make it."""
        top, depth = self._stack[-1]
        if type(top) is not kind:
            raise ValueError("another container was expected")
        self._stack[-1] = (top, _around(items, depth))
        return top

    # ---- opcodes

    def _mark(self, argument: Any) -> None:
        self._push(_MARK)

    def _nothing(self, argument: Any) -> None:
        """FRAME. How much a frame holds does not matter: all of it is here."""

    def _proto(self, argument: int) -> None:
        if argument not in _PROTOCOLS:
            raise RequestError(
                f"the pickle has protocol {argument}: write it with one of {_PROTOCOLS[0]} to {_PROTOCOLS[-1]}"
            )

    def _append(self, argument: Any) -> None:
        item = self._pop()
        self._fill(list, [item]).append(item[0])

    def _appends(self, argument: Any) -> None:
        items = self._pop_to_mark()
        self._fill(list, items).extend(value for value, _ in items)

    def _set_item(self, argument: Any) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _set_items(self, argument: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[tuple[Any, int]]) -> None:
        found = self._fill(dict, items)
        pairs = zip(items[::2], items[1::2], strict=True)
        for (key, _), (value, _) in pairs:
            if not _is_key(key):
                raise RequestError(f"the pickle holds a dict with a key that is a {type(key).__name__}")
            found[key] = value
            if len(found) > _MOST_KEYS:
                raise RequestError(f"the pickle holds a dict of more than {_MOST_KEYS} keys")

    def _tuple(self, argument: Any) -> None:
        items = self._pop_to_mark()
        self._push(tuple(value for value, _ in items), _around(items))

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)][::-1]
        self._push(tuple(value for value, _ in items), _around(items))

    def _memoize(self, place: int | None) -> None:
        value, _ = self._stack[-1]
        self._memo[len(self._memo) if place is None else place] = value

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError("it was not kept")
        value = self._memo[place]
        if not isinstance(value, str):
            raise RequestError(f"the pickle holds the same {type(value).__name__} in several places: give copies of it")
        self._push(self._checked(value))


def _around(items: list[tuple[Any, int]], depth: int = 1) -> int:
    """The depth of a container with these items, and with others that made it `depth` deep."""
    found = max([depth, *(inner + 1 for _, inner in items)])
    if found > _MOST_DEPTH:
        raise RequestError(f"the pickle's lists are more than {_MOST_DEPTH} deep")
    return found


def _is_key(key: Any) -> bool:
    """Whether a value may be a key: a text, a number, or token ids in a tuple."""
    if isinstance(key, tuple):
        return all(type(part) is int for part in key)
    return isinstance(key, str | int | float) or key is None


_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
# Their value stands in the opcode.
_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
)
_ACTIONS: Mapping[str, Callable[[_Reader, Any], None]] = {
    "PROTO": _Reader._proto,
    "FRAME": _Reader._nothing,
    "MARK": _Reader._mark,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "SETITEM": _Reader._set_item,
    "SETITEMS": _Reader._set_items,
    "TUPLE": _Reader._tuple,
    "TUPLE1": lambda reader, _: reader._tuple_of(1),
    "TUPLE2": lambda reader, _: reader._tuple_of(2),
    "TUPLE3": lambda reader, _: reader._tuple_of(3),
    "MEMOIZE": _Reader._memoize,
    "BINPUT": _Reader._memoize,
    "LONG_BINPUT": _Reader._memoize,
    "BINGET": _Reader._get,
    "LONG_BINGET": _Reader._get,
}

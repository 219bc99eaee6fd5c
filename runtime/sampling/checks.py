"""Checks of single values that a user gave."""

import operator

from neo_tf.errors import RequestError


def check_number(name, value, kind, test, words):
    """Raises RequestError unless value is a number of that kind, int or float, that passes a test."""
    if value is None and name == "seed":
        return
    if isinstance(value, bool) or not hasattr(value, "__index__" if kind is int else "__float__"):
        raise RequestError(f"{name} must be a {'whole ' * (kind is int)}number, not {value!r}")
    if not test(value):
        raise RequestError(f"{name} must {words}, not {value}")


def check_ids(name, ids):
    """A list of token ids as ints; raises RequestError where it is none."""
    try:
        if isinstance(ids, str | bytes):
            raise TypeError
        return [operator.index(token) for token in ids]
    except TypeError:
        raise RequestError(f"{name} must be token ids, not {ids!r}") from None

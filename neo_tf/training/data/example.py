"""tf.train.Example with one list of numbers, as bytes: what a record of the original's training data is.

In protobuf's words: Example has a field 1, Features; that has a map as its field 1, of which each entry is a name
(field 1) and a Feature (field 2); a Feature has an Int64List in its field 3, and that the numbers in its field 1.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from neo_tf.training.data.varints import decode_varints, encode_varints

TEXT = "text"  # the original's name for the list of token ids
_BYTES, _VARINT, _FIXED_64, _FIXED_32 = 2, 0, 1, 5  # protobuf's wire types


def encode_example(token_ids: npt.ArrayLike) -> bytes:
    """The bytes of an Example whose feature `text` holds the token ids [n], as TensorFlow writes them."""
    numbers = _field(1, encode_varints(token_ids))
    entry = _field(1, TEXT.encode()) + _field(2, _field(3, numbers))
    return _field(1, _field(1, entry))


def decode_example(data: bytes) -> npt.NDArray[np.int64]:
    """The token ids [n] in the feature `text` of an Example.

    Raises:
        ValueError: The bytes are no Example, or it has no such list of numbers. The message says what it has.
    """
    features: dict[str, npt.NDArray[np.int64] | None] = {}
    for features_field in _values(memoryview(data), 1):
        for entry in _values(features_field, 1):
            name = b"".join(bytes(value) for value in _values(entry, 1)).decode("utf-8", "replace")
            features[name] = _numbers(entry)
    found = features.get(TEXT)
    if found is None:
        names = ", ".join(sorted(features)) or "nothing"
        raise ValueError(f"no list of token ids named {TEXT!r} in it (it holds {names})")
    return found


def _numbers(entry: memoryview) -> npt.NDArray[np.int64] | None:
    """The numbers of a map's entry, packed or each in a field of its own; None where it holds another kind of list."""
    lists = [value for feature in _values(entry, 2) for value in _values(feature, 3)]
    if not lists:
        return None
    parts = []
    for numbers in lists:
        for number, kind, value in _fields(numbers):
            if number == 1 and kind in (_BYTES, _VARINT):
                parts.append(decode_varints(value))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes: its number and wire type, its length, its content."""
    return encode_varints([number << 3 | _BYTES]) + encode_varints([len(content)]) + content


def _values(data: memoryview, number: int) -> Iterator[memoryview]:
    """The contents of all fields of bytes with a number."""
    for found, kind, value in _fields(data):
        if found == number and kind == _BYTES:
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(number, wire type, content) of all fields of a message. A varint's content is its bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        start = position
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _BYTES:
            size, start = _varint(data, position)
            position = start + size
        elif kind in (_FIXED_64, _FIXED_32):
            position += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError("no tf.train.Example")
        if position > len(data):
            raise ValueError("no tf.train.Example")
        yield key >> 3, kind, data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """(a number, the position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("no tf.train.Example")

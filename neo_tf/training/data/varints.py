"""Whole numbers as protobuf packs them: seven bits a byte, the lowest first; the last byte's top bit is 0."""

import numpy as np
import numpy.typing as npt

_MOST_BYTES = 10  # of a number of 64 bits


def encode_varints(values: npt.ArrayLike) -> bytes:
    """Packs int64 values [n] one after the other. Negative ones take ten bytes, as in protobuf."""
    numbers = np.asarray(values, np.int64).view(np.uint64)
    if not numbers.size:
        return b""
    columns = int(max(1, -(-int(numbers.max()).bit_length() // 7)))
    shifts = np.arange(columns, dtype=np.uint64) * np.uint64(7)
    parts = (numbers[:, None] >> shifts) & np.uint64(0x7F)  # [n, columns]
    lengths = np.ones(len(numbers), np.int64)
    for column in range(1, columns):
        lengths[numbers >> shifts[column] != 0] = column + 1
    positions = np.arange(columns)
    has_next = positions < lengths[:, None] - 1
    table = parts.astype(np.uint8) | np.where(has_next, 0x80, 0).astype(np.uint8)
    return table[positions < lengths[:, None]].tobytes()


def decode_varints(data: bytes | memoryview) -> npt.NDArray[np.int64]:
    """Unpacks what encode_varints packs.

    Raises:
        ValueError: The last number is cut short, or one has more than ten bytes.
    """
    raw = np.frombuffer(data, np.uint8)
    if not raw.size:
        return np.zeros(0, np.int64)
    if raw[-1] & 0x80:
        raise ValueError("a number is cut short")
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if int((ends - starts).max()) >= _MOST_BYTES:
        raise ValueError("a number has more than ten bytes")
    within = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    parts = (raw & 0x7F).astype(np.uint64) << (within.astype(np.uint64) * np.uint64(7))
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)

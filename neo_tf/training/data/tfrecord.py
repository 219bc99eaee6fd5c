"""tfrecord files without TensorFlow: each record's length, its bytes, and a checksum of either.

A record is: its length as 8 bytes, the lowest first; a checksum of these (4 bytes); its bytes; a checksum of these. The
checksum is a CRC-32C, rotated and shifted by a constant ("masked").
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from neo_tf.errors import DataError, MissingExtraError, first_line
from neo_tf.git_lfs import WHAT_IT_IS, is_pointer
from neo_tf.training.data.example import decode_example

_HEAD = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
AROUND = _HEAD.size + _CHECKSUM.size  # bytes of a record beside its own


def frame(data: bytes) -> bytes:
    """A record as it lies in a file."""
    length = struct.pack("<Q", len(data))
    return length + _CHECKSUM.pack(masked_crc(length)) + data + _CHECKSUM.pack(masked_crc(data))


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C of some bytes.

    Raises:
        MissingExtraError: The extra `data` is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise MissingExtraError.of("tfrecord files need a CRC-32C", error, "data") from None
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path | str) -> Iterator[bytes]:
    """The records of a file, in order, with their checksums checked.

    Raises:
        DataError: The file cannot be read, or a record is damaged or cut short. The message names file and record.
    """
    with open_records(path) as file:
        size = _size(file)
        index = 0
        while file.tell() < size:
            length = _length(file, path, index)
            if file.tell() + length > size:
                raise cut_short(path, index)
            data = file.read(length)
            end = file.read(_CHECKSUM.size)
            if len(data) < length or len(end) < _CHECKSUM.size:
                raise cut_short(path, index)
            if masked_crc(data) != _CHECKSUM.unpack(end)[0]:
                raise _damaged(path, index)
            yield data
            index += 1


def read_token_ids(path: Path | str) -> Iterator[npt.NDArray[np.int64]]:
    """The token ids of a file's records, in order.

    Raises:
        DataError: As read_records; or a record holds no token ids.
    """
    for index, data in enumerate(read_records(path)):
        try:
            yield decode_example(data)
        except ValueError as error:
            raise DataError(f"{path}: record {index}: {first_line(error)}") from None


def count_records(path: Path | str, at_most: int | None = None) -> int:
    """Counts a file's records by their lengths alone: nothing but these is read.

    Args:
        path: The file.
        at_most: Where to stop counting. By default all are counted.

    Raises:
        DataError: The file cannot be read, or is cut short. The message names file and record.
    """
    with open_records(path) as file:
        size = _size(file)
        position = 0
        count = 0
        while position < size and (at_most is None or count < at_most):
            file.seek(position)
            position += _length(file, path, count) + AROUND
            if position > size:
                raise cut_short(path, count)
            count += 1
        return count


def open_records(path: Path | str) -> BinaryIO:
    """Opens a tfrecord file, which may lie where only TensorFlow reads, such as gs://bucket/name.

    Raises:
        DataError: It cannot be read, or is a Git LFS pointer.
    """
    if is_remote(path):
        from neo_tf.keras_backend import import_tensorflow

        return import_tensorflow().io.gfile.GFile(str(path), "rb")
    if is_pointer(path):
        raise DataError(f"{path}: {WHAT_IT_IS}")
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from None


def _length(file: BinaryIO, path: Path | str, index: int) -> int:
    """The bytes of the next record, `index`, without what is around them."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise cut_short(path, index)
    length, checksum = _HEAD.unpack(head)
    if masked_crc(head[:8]) != checksum:
        raise _damaged(path, index)
    return length


def _size(file: BinaryIO) -> int:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    return size


def is_remote(path: Path | str) -> bool:
    """Whether a path names a place that only TensorFlow reads, such as gs://bucket/name."""
    return "://" in str(path)


def cut_short(path: Path | str, index: int) -> DataError:
    """The error for a file that ends inside record `index`."""
    if index == 0:
        return DataError(f"{path}: no tfrecord file, or cut short inside its first record (record 0)")
    return DataError(f"{path}: cut short: it ends inside record {index}")


def _damaged(path: Path | str, index: int) -> DataError:
    if index == 0:
        return DataError(f"{path}: no tfrecord file, or its first record (record 0) is damaged: wrong checksum")
    return DataError(f"{path}: record {index} is damaged: wrong checksum")

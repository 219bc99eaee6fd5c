"""tfrecord files without TensorFlow: byte for byte those that TensorFlow wrote, and no damage goes unnoticed."""

import struct

import numpy as np
import pytest
from conftest import FIXTURES

from neo_tf.errors import DataError
from neo_tf.training.data.example import decode_example, encode_example
from neo_tf.training.data.tfrecord import count_records, frame, read_records, read_token_ids
from neo_tf.training.data.varints import decode_varints, encode_varints

pytest.importorskip("google_crc32c", reason="the tests of training data need the extra data")

FILES = sorted((FIXTURES / "training-data").rglob("*.tfrecords"))


def test_the_originals_files_are_written_again_byte_for_byte():
    assert len(FILES) > 40
    for path in FILES:
        assert b"".join(frame(encode_example(ids)) for ids in read_token_ids(path)) == path.read_bytes(), path
        assert count_records(path) == sum(1 for _ in read_records(path))


def test_numbers_of_every_size_are_packed_as_protobuf_packs_them():
    numbers = [0, 1, 127, 128, 300, 16383, 16384, 2**31, 2**63 - 1, -1, -(2**63)]
    assert decode_varints(encode_varints(numbers)).tolist() == numbers
    assert encode_varints([300]) == b"\xac\x02" and encode_varints([-1]) == b"\xff" * 9 + b"\x01"
    assert encode_varints([]) == b"" and decode_varints(b"").tolist() == []
    with pytest.raises(ValueError, match="cut short"):
        decode_varints(b"\x80")


def test_numbers_that_are_not_packed_are_read_too():
    numbers = b"\x08\x07\x08\xac\x02"  # the field 1 twice: 7 and 300
    feature = b"\x1a" + bytes([len(numbers)]) + numbers
    entry = b"\x0a\x04text\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert decode_example(b"\x0a" + bytes([len(features)]) + features).tolist() == [7, 300]


def test_a_record_of_other_features_is_told_by_their_names(tmp_path):
    data = encode_example([1, 2]).replace(b"text", b"toks")
    path = tmp_path / "other.tfrecords"
    path.write_bytes(frame(encode_example([1])) + frame(data))
    with pytest.raises(DataError, match=r"other\.tfrecords: record 1: no list of token ids named 'text' .*toks"):
        list(read_token_ids(path))


@pytest.fixture
def small(tmp_path):
    """A file of three records."""
    path = tmp_path / "small.tfrecords"
    path.write_bytes(b"".join(frame(encode_example(np.arange(3) + 200 * number)) for number in range(3)))
    return path


def test_a_file_that_is_cut_anywhere_is_noticed(small):
    whole = small.read_bytes()
    borders = [0, len(whole) // 3, len(whole) // 3 * 2]
    for size in range(len(whole)):
        small.write_bytes(whole[:size])
        if size in (0, len(frame(encode_example([0, 1, 2]))), len(whole) - len(frame(encode_example([400, 401, 402])))):
            assert len(list(read_records(small))) == borders.index(min(borders, key=lambda one: abs(one - size)))
            continue
        for read in (lambda: list(read_records(small)), lambda: count_records(small)):
            with pytest.raises(DataError, match=r"small\.tfrecords: .*record \d"):
                read()


def test_every_byte_that_changes_is_noticed(small):
    whole = small.read_bytes()
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 0x10
        small.write_bytes(changed)
        with pytest.raises(DataError, match=r"small\.tfrecords: .*record \d"):
            list(read_records(small))


def test_a_huge_length_needs_no_huge_memory(small):
    length = struct.pack("<Q", 2**60)
    from neo_tf.training.data.tfrecord import masked_crc

    small.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"abc")
    with pytest.raises(DataError, match="cut short"):
        list(read_records(small))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a text, no records at all", "no tfrecord file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_tfrecord_file_is_told(tmp_path, content, said):
    path = tmp_path / "x.tfrecords"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tfrecords: .*{said}"):
        list(read_records(path))

"""The original's sequential_input: records one after the other, file after file, for ever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.keras_backend import import_tensorflow
from neo_tf.training.data.files import check_files, find_files, natural_order, place_of, training_order
from neo_tf.training.data.records import (
    Limits,
    batched,
    checked,
    place,
    records_of,
    require,
    sequences,
    token_ids_of,
    unconverted,
)

if TYPE_CHECKING:
    import tensorflow as tf


def training_batches(
    paths: Iterable[Path | str],
    n_ctx: int,
    batch_size: int,
    *,
    first_step: int = 0,
    seed: int = 1,
    shuffle_input_filenames: bool = True,
    n_vocab: int | None = None,
    check_counts: bool = True,
) -> tf.data.Dataset:
    """Batches in the order in which the original trains on them.

    The files of all globs are one list, sorted naturally and then shuffled once. It is read again and again, in the
    same order; the records of a file keep theirs. Batches run across the borders of files and of epochs.

    Args:
        paths: Globs, files, or folders of *.tfrecords.
        n_ctx: The number of tokens of a sequence. Longer records are cut to n_ctx + 1 tokens.
        batch_size: The number of sequences of a batch.
        first_step: The step of the first batch: the records of the steps before are skipped, by the counts in the
            files' names; see place_of.
        seed: The config's `seed`.
        shuffle_input_filenames: The config's key of that name.
        n_vocab: The size of the model's vocabulary. Ids that are not smaller are an error; without it they are not.
        check_counts: Whether counts in names are compared with the files; see check_files.

    Returns:
        A dataset without an end of inputs and labels, int32 [batch_size, n_ctx] each. Iterate over it inside
        data_errors.

    Raises:
        DataError: There are no files or no records, or what can be seen before training is wrong; see check_files.
    """
    tf = import_tensorflow()
    files = training_order(find_files(paths), seed, shuffle_input_filenames)
    skipped = first_step * batch_size
    check_files(files, n_ctx, skipped, check_counts)
    first_file, first_record = place_of(files, skipped)
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().skip(first_file)
    dataset = dataset.flat_map(unconverted(records_of)).skip(first_record)
    return _sequences(dataset, Limits(n_ctx, n_vocab), batch_size)


def evaluation_batches(
    paths: Iterable[Path | str],
    n_ctx: int,
    batch_size: int,
    *,
    shuffle: bool = False,
    n_vocab: int | None = None,
) -> tf.data.Dataset:
    """Batches for evaluation. The original takes the first `eval_steps` of them.

    Args:
        paths: Globs, files, or folders of *.tfrecords.
        n_ctx: The number of tokens of a sequence.
        batch_size: The number of sequences of a batch.
        shuffle: Whether the files are drawn as in the original: at random, without a seed, from a list that is
            repeated before, so that a file may come twice before another comes once. By default they are read in
            natural order, again and again, so that all evaluations are of the same batches. With one file both are
            the same.
        n_vocab: As in training_batches.

    Returns:
        A dataset without an end, as in training_batches.

    Raises:
        DataError: There are no files or no records, or a first record is too short.
    """
    tf = import_tensorflow()
    files = natural_order(find_files(paths))
    check_files(files, n_ctx, check_counts=False)
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat()
    if shuffle:
        dataset = dataset.shuffle(len(files))
    return _sequences(dataset.flat_map(unconverted(records_of)), Limits(n_ctx, n_vocab), batch_size)


def _sequences(dataset: tf.data.Dataset, limits: Limits, batch_size: int) -> tf.data.Dataset:
    """Batches of the first n_ctx + 1 tokens of each record."""
    tf = import_tensorflow()
    size = limits.n_ctx + 1

    def cut(path: Any, index: Any, data: Any) -> tuple[Any, Any]:
        where = place(path, index)
        token_ids = token_ids_of(path, index, data)
        length = tf.size(token_ids)
        said = tf.strings.join([where, " has ", tf.strings.as_string(length)])
        said = tf.strings.join([said, f" tokens, but n_ctx + 1 = {size} are needed"])
        window = require(length >= size, said, token_ids)[:size]
        return sequences(checked(window, limits, where), limits.n_ctx)

    return batched(dataset.map(unconverted(cut)), batch_size)

"""The original's generic_text: whole documents, shuffled, stitched together and cut to windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import ConfigError, DataError
from neo_tf.keras_backend import import_tensorflow
from neo_tf.training.data.files import find_files
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
from neo_tf.training.data.tfrecord import count_records

if TYPE_CHECKING:
    import tensorflow as tf

_RANDOM = "documents_random"
_AT_ONCE = 4  # files that are read in turn
_SHUFFLED = 1000  # groups of `stitch` documents in the buffer that they are drawn from


@dataclass(frozen=True)
class DocumentSet:
    """One of the `datasets` that generic_text mixes. The records of its files are whole documents.

    Args:
        paths: Globs, files, or folders of *.tfrecords.
        stitch: The number of documents that are put together, with the end-of-text id between them.
        datatype: "documents_random": a window of n_ctx + 1 tokens that is drawn from them. Any other name with
            "documents" in it, such as "documents_fixed": their first n_ctx + 1 tokens.
        weight: How often it is drawn, relative to the others.

    Raises:
        ConfigError: The original crashes for such a datatype, or a number is out of range.
    """

    paths: Sequence[Path | str]
    stitch: int
    datatype: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if "documents" not in self.datatype:
            raise ConfigError(
                f"datatype {self.datatype!r}: the original's generic_text crashes for every datatype without "
                "'documents' in its name (TypeError: cannot unpack SparseTensor): read such records with "
                "sequential_input"
            )
        if isinstance(self.stitch, bool) or not isinstance(self.stitch, int) or self.stitch < 1:
            raise ConfigError(f"stitch must be a whole number of at least 1, not {self.stitch!r}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight < 1e30:
            raise ConfigError(f"the weight of a dataset must be a number above 0, not {self.weight!r}")


def document_batches(
    sets: Iterable[DocumentSet],
    n_ctx: int,
    batch_size: int,
    *,
    eos_id: int,
    seed: int | None = None,
    first_step: int = 0,
    n_vocab: int | None = None,
) -> tf.data.Dataset:
    """Batches as the original's generic_text makes them, for training and for evaluation.

    With a seed the batches are those of the original with this seed: they come from TensorFlow's own operations, in
    the same order and with the same seeds. Without one they differ from run to run. TensorFlow's global seed counts,
    too: without one the batches are those of the function itself, and after tf.random.set_seed(1) those that the
    original's main.py trains on, whose estimator sets that seed.

    Args:
        sets: What is mixed. Each repeats for ever.
        n_ctx: The number of tokens of a sequence.
        batch_size: The number of sequences of a batch.
        eos_id: The id between documents.
        seed: The config's `seed`.
        first_step: The step of the first batch. The original begins anew after a restart, which is 0. With a seed,
            another step goes on where a run stopped.
        n_vocab: The size of the model's vocabulary. Ids that are not smaller are an error; without it they are not.

    Returns:
        A dataset without an end of inputs and labels, int32 [batch_size, n_ctx] each. Iterate over it inside
        data_errors.

    Raises:
        ConfigError: There are no sets, or first_step is given without a seed.
        DataError: There are no files, or fewer documents than `stitch`.
    """
    tf = import_tensorflow()
    sets = list(sets)
    if not sets:
        raise ConfigError("generic_text needs at least one dataset")
    if first_step and seed is None:
        raise ConfigError("generic_text can go on at a step only with a seed: without one its order is random")
    limits = Limits(n_ctx, n_vocab)
    datasets = [_windows(one, limits, eos_id, seed) for one in sets]
    weights = [float(one.weight) for one in sets]
    mixed = tf.data.Dataset.sample_from_datasets(datasets, weights, seed)
    return batched(mixed, batch_size).skip(first_step)


def document_files(sets: Iterable[DocumentSet]) -> list[str]:
    """The files of all sets, for data_errors."""
    return [path for one in sets for path in find_files(one.paths)]


def _windows(one: DocumentSet, limits: Limits, eos_id: int, seed: int | None) -> tf.data.Dataset:
    """The sequences of one set, again and again."""
    tf = import_tensorflow()
    files = find_files(one.paths)
    _check_number(files, one.stitch)
    dataset = tf.data.Dataset.from_tensor_slices(files)
    dataset = dataset.interleave(unconverted(records_of), cycle_length=_AT_ONCE)
    dataset = dataset.shuffle(_SHUFFLED * one.stitch, seed=seed).batch(one.stitch, drop_remainder=True)

    def window(paths: Any, indices: Any, records: Any) -> tuple[Any, Any]:
        pieces = []
        for place_in_group in range(one.stitch):
            path = paths[place_in_group]
            index = indices[place_in_group]
            token_ids = token_ids_of(path, index, records[place_in_group])
            if place_in_group:
                pieces.append(tf.constant([eos_id], tf.int64))
            pieces.append(checked(token_ids, limits, place(path, index)))
        group = " has " if one.stitch == 1 else f" and the {one.stitch - 1} drawn after it have "
        where = tf.strings.join([place(paths[0], indices[0]), group])
        return sequences(_cut(tf.concat(pieces, 0), one.datatype, limits.n_ctx, seed, where), limits.n_ctx)

    return dataset.map(unconverted(window)).repeat()


def _cut(text: Any, datatype: str, n_ctx: int, seed: int | None, where: Any) -> Any:
    """A window of n_ctx + 1 of the token ids [n]."""
    tf = import_tensorflow()
    is_random = datatype == _RANDOM
    # The last place where a window could begin is never drawn in the original, and so it needs one token more.
    needed = n_ctx + 2 if is_random else n_ctx + 1
    length = tf.size(text)
    said = tf.strings.join([where, tf.strings.as_string(length)])
    said = tf.strings.join([said, f" tokens, but {datatype} needs {needed}, where the original stops: raise `stitch`"])
    text = require(length >= needed, said, text)
    if not is_random:
        return text[: n_ctx + 1]
    # The length after the check: the number must not be drawn before it.
    start = tf.random.uniform([], maxval=tf.size(text) - (n_ctx + 1), dtype=tf.int32, seed=seed)
    return text[start : start + n_ctx + 1]


def _check_number(files: list[str], stitch: int) -> None:
    """Raises DataError where there are fewer documents than a group needs: the original then waits for ever."""
    count = 0
    for path in files:
        count += count_records(path, at_most=stitch - count)
        if count >= stitch:
            return
    raise DataError(f"{files[0]}: {count} documents in all files together, but stitch is {stitch}")

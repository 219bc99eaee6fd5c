"""tfrecords as a tf.data.Dataset whose elements know where they come from, and what is said when one is wrong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neo_tf.errors import DataError
from neo_tf.keras_backend import import_tensorflow
from neo_tf.training.data.example import TEXT
from neo_tf.training.data.tfrecord import read_records

if TYPE_CHECKING:
    import tensorflow as tf

# What stands between these in TensorFlow's message is ours. TensorFlow puts much around it.
_BEGIN, _END = "neo-tf<<", ">>"
_OURS = re.compile(f"{re.escape(_BEGIN)}(.*?){re.escape(_END)}", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What every record must keep to.

    Args:
        n_ctx: The number of tokens of a sequence.
        n_vocab: The size of the model's vocabulary. Ids must be smaller; without it they are not looked at.
    """

    n_ctx: int
    n_vocab: int | None = None


def records_of(path: Any) -> tf.data.Dataset:
    """The records of a file [], a string tensor, as (path, record's index, its bytes)."""
    tf = import_tensorflow()

    def with_place(index: Any, data: Any) -> tuple[Any, Any, Any]:
        return path, index, data

    return tf.data.TFRecordDataset(path).enumerate().map(unconverted(with_place))


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for Dataset.map that TensorFlow takes as it is: there is no Python in it to be made into a graph."""
    return import_tensorflow().autograph.experimental.do_not_convert(function)


def token_ids_of(path: Any, index: Any, data: Any) -> Any:
    """The token ids int64 [n] in the feature `text` of one record."""
    tf = import_tensorflow()
    # A record whose list is missing has no ids: it is refused for being too short.
    parsed = tf.io.parse_single_example(data, {TEXT: tf.io.VarLenFeature(tf.int64)})
    return parsed[TEXT].values


def checked(token_ids: Any, limits: Limits, where: Any) -> Any:
    """The token ids [n], which must be smaller than n_vocab and not negative.

    Args:
        token_ids: int64 [n].
        limits: Their limits.
        where: A string tensor that names file and record.
    """
    tf = import_tensorflow()
    if limits.n_vocab is None:
        return token_ids
    is_wrong = tf.logical_or(token_ids < 0, token_ids >= limits.n_vocab)
    wrong = tf.boolean_mask(token_ids, is_wrong)
    first = tf.concat([wrong, tf.zeros([1], tf.int64)], 0)[0]
    said = tf.strings.join([where, " has the id ", tf.strings.as_string(first)])
    said = tf.strings.join([said, f", but the model's vocabulary has {limits.n_vocab} ids"])
    return require(tf.logical_not(tf.reduce_any(is_wrong)), said, token_ids)


def place(path: Any, index: Any) -> Any:
    """A string tensor that names a file and a record."""
    tf = import_tensorflow()
    return tf.strings.join([path, ": record ", tf.strings.as_string(index)])


def require(condition: Any, message: Any, value: Any) -> Any:
    """The value, or an error with a message (string tensor []) where the condition is false; see data_errors."""
    tf = import_tensorflow()
    ours = tf.strings.join([_BEGIN, message, _END])
    with tf.control_dependencies([tf.debugging.Assert(condition, [ours], summarize=1)]):
        return tf.identity(value)


def sequences(window: Any, n_ctx: int) -> tuple[Any, Any]:
    """Inputs and labels int32 [n_ctx] of n_ctx + 1 token ids: the labels are one token further."""
    tf = import_tensorflow()
    window = tf.reshape(tf.cast(window, tf.int32), [n_ctx + 1])
    return window[:-1], window[1:]


def batched(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches of a fixed size, prepared ahead, which several workers share row by row."""
    tf = import_tensorflow()
    options = tf.data.Options()
    # Workers of tf.distribute read the same batches and take their rows of each. Shared by files, the order would
    # be another one.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)


@contextlib.contextmanager
def data_errors(files: Sequence[str]) -> Iterator[None]:
    """Turns TensorFlow's errors about data into a DataError of one line that names file and record.

    Iterate over the datasets of this package, or call model.fit with them, inside it.

    Args:
        files: The files that are read. Where one is damaged, they are searched for it, since TensorFlow does not say
            which it is.
    """
    errors = import_tensorflow().errors
    try:
        yield
    except errors.InvalidArgumentError as error:
        found = _OURS.search(str(error))
        if found is None:
            raise
        raise DataError(_unescaped(found[1])) from None
    except errors.DataLossError:
        for path in files:
            for _ in read_records(path):
                pass
        raise
    except errors.NotFoundError as error:
        missing = next((path for path in files if path in str(error)), None)
        if missing is None:
            raise
        raise DataError(f"{missing}: has gone while it was read") from None


def _unescaped(text: str) -> str:
    """A string as it was before TensorFlow put it into its message, where quotes and backslashes are escaped."""
    return re.sub(r"\\(['\"\\])", r"\1", text)

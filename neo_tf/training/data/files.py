"""Which tfrecord files are read, in which order, and where a run that goes on begins: the original's rules."""

import glob
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from neo_tf.errors import DataError
from neo_tf.notes import note
from neo_tf.training.data.tfrecord import count_records, is_remote, read_token_ids

_COUNT = re.compile(r"_(\d+).tfrecords$")  # the original's own expression
# Names with wrong counts are looked for at a run's start where all files together are no larger than this.
_COUNTED_AT_START = 2 * 10**9  # bytes


def find_files(patterns: Iterable[Path | str]) -> list[str]:
    """The files that globs name, each glob's in the order of their names.

    Args:
        patterns: Globs or paths. A folder stands for the *.tfrecords in it.

    Raises:
        DataError: A glob names no file. The message names the glob.
    """
    found: list[str] = []
    for pattern in map(str, patterns):
        wanted = pattern
        if not is_remote(pattern) and Path(pattern).is_dir():
            wanted = f"{glob.escape(pattern.rstrip('/'))}/*.tfrecords"
        if is_remote(wanted):
            from neo_tf.keras_backend import import_tensorflow

            files = import_tensorflow().io.gfile.glob(wanted)
        else:
            files = [path for path in glob.glob(wanted, recursive=True) if not Path(path).is_dir()]
        if not files:
            raise DataError(f"{pattern}: no tfrecord files there")
        found += sorted(files)
    if not found:
        raise DataError("no tfrecord files: no path or glob is given")
    return found


def natural_order(paths: Iterable[str]) -> list[str]:
    """Paths sorted as the original sorts them: runs of digits as numbers, letters without regard to their case."""
    return sorted(paths, key=_natural_key)


def training_order(paths: Iterable[str], seed: int = 1, shuffle: bool = True) -> list[str]:
    """The order in which the original's sequential_input reads files, again and again.

    Args:
        paths: The files, in any order.
        seed: The config's `seed`.
        shuffle: The config's `shuffle_input_filenames`.
    """
    ordered = natural_order(paths)
    if shuffle:
        random.Random(seed).shuffle(ordered)
    return ordered


def count_in_name(path: Path | str) -> int | None:
    """The number of records that a name such as data_0_500.tfrecords tells; None where it tells none."""
    found = _COUNT.search(str(path))
    return int(found[1]) if found else None


def place_of(files: Sequence[str], records: int) -> tuple[int, int]:
    """Where a run goes on that has read some records already.

    As in the original, the counts in the files' names decide. Of files whose names tell none, the first is counted,
    and all others are taken to have as many.

    Args:
        files: The files in training order.
        records: The number of records that were read.

    Returns:
        (the index of the file in which the next record lies, the records to skip in it).

    Raises:
        DataError: No file has a record, or a file that has to be counted is damaged.
    """
    counts = _counts(files)
    if sum(counts) == 0:
        raise DataError(f"{files[0]}: no records, nor in any other file")
    rest = records % sum(counts)
    for index, count in enumerate(counts):
        if rest < count:
            return index, rest
        rest -= count
    raise AssertionError("the rest is smaller than the sum of all counts")


def check_files(files: Sequence[str], n_ctx: int, first_record: int = 0, check_counts: bool = True) -> None:
    """Looks at what can be seen before training: that there are records, what the first ones are, counts in names.

    Args:
        files: The files in training order.
        n_ctx: The number of tokens of a sequence. A record must have one more.
        first_record: The number of records that were read before. Where it is not 0, the counts of the files that are
            skipped decide what is read next, so they must be right.
        check_counts: Whether the counts in names are compared with the files. Where a run goes on, that takes a look
            at each record that is skipped, which for hundreds of gigabytes takes its time.

    Raises:
        DataError: A file is no tfrecord file, or its first record is too short; or a run goes on, and the name of a
            file that is skipped tells a wrong count.
    """
    is_empty = True
    for path in files:
        first = next(read_token_ids(path), None)
        if first is not None:
            is_empty = False
            if len(first) <= n_ctx:
                raise too_short(path, 0, len(first), n_ctx)
    if is_empty:
        raise DataError(f"{files[0]}: no records, nor in any other file")
    if not check_counts:
        return
    if first_record:
        _check_counts(files, first_record)
    elif not any(map(is_remote, files)) and sum(Path(path).stat().st_size for path in files) <= _COUNTED_AT_START:
        wrong = [said for path in files if (said := _wrong_count(path))]
        if wrong:
            note(f"{wrong[0]}: a run that goes on after a stop would be refused")


def too_short(path: Path | str, index: int, length: int, n_ctx: int) -> DataError:
    """The error for a record that has too few tokens for a sequence."""
    return DataError(f"{path}: record {index} has {length} tokens, but n_ctx + 1 = {n_ctx + 1} are needed")


def _natural_key(path: str) -> list[int | str]:
    return [int(part) if part.isascii() and part.isdigit() else part.lower() for part in re.split("([0-9]+)", path)]


def _counts(files: Sequence[str]) -> list[int]:
    counted: int | None = None
    counts = []
    for path in files:
        count = count_in_name(path)
        if count is None:
            if counted is None:
                counted = count_records(path)
            count = counted
        counts.append(count)
    return counts


def _check_counts(files: Sequence[str], first_record: int) -> None:
    """Raises DataError where the count that is used for a file that is skipped is not its own."""
    read = 0
    for path, count in zip(files, _counts(files), strict=True):
        if read >= first_record:
            return
        real = count_records(path)
        if real != count:
            told = "its name tells" if count_in_name(path) is not None else "like the first file it should have"
            raise DataError(
                f"{path}: holds {real} records, but {told} {count}: the run would not go on where it stopped. Put the "
                f"right count into the name (…_{real}.tfrecords)"
            )
        read += count


def _wrong_count(path: str) -> str | None:
    count = count_in_name(path)
    if count is None:
        return None
    real = count_records(path)
    return f"{path}: its name tells {count} records, but it holds {real}" if real != count else None

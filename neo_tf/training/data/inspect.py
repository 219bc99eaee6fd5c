"""What is in tfrecord files: every record is read, and every checksum is checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neo_tf.errors import DataError
from neo_tf.progress import Progress, no_progress
from neo_tf.training.data.files import count_in_name, too_short
from neo_tf.training.data.tfrecord import read_token_ids

_FIRST_TOKENS = 64  # of the first record, that are kept to be shown


@dataclass
class FileReport:
    """What is in one file.

    Args:
        path: The file.
        records: Its records; where it is damaged, those before.
        tokens: The token ids of all records.
        shortest: The number of token ids of the shortest record.
        longest: The number of token ids of the longest record.
        lowest: The lowest token id.
        highest: The highest token id.
        first: The first token ids of the first record.
        faults: What is wrong with it: a line each.
    """

    path: str
    records: int = 0
    tokens: int = 0
    shortest: int = 0
    longest: int = 0
    lowest: int = 0
    highest: int = 0
    first: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def inspect_files(
    files: Sequence[str], n_ctx: int | None = None, n_vocab: int | None = None, progress: Progress = no_progress
) -> Iterator[FileReport]:
    """Reads files from their beginning to their end.

    Args:
        files: The files.
        n_ctx: Where it is given, records of less than n_ctx + 1 token ids are faults.
        n_vocab: Where it is given, token ids that are not smaller are faults.
        progress: Is told of the bytes that were read.
    """
    for path in files:
        yield _inspect(path, n_ctx, n_vocab)
        progress(Path(path).stat().st_size, Path(path).name)


def _inspect(path: str, n_ctx: int | None, n_vocab: int | None) -> FileReport:
    report = FileReport(path)
    short: DataError | None = None
    foreign: DataError | None = None
    is_whole = False
    try:
        for index, token_ids in enumerate(read_token_ids(path)):
            length = len(token_ids)
            lowest = int(token_ids.min()) if length else report.lowest
            highest = int(token_ids.max()) if length else report.highest
            if index == 0:
                report.first = token_ids[:_FIRST_TOKENS].tolist()
                report.shortest, report.lowest = length, lowest
            report.records += 1
            report.tokens += length
            report.shortest = min(report.shortest, length)
            report.longest = max(report.longest, length)
            report.lowest = min(report.lowest, lowest)
            report.highest = max(report.highest, highest)
            if short is None and n_ctx is not None and length <= n_ctx:
                short = too_short(path, index, length, n_ctx)
            if foreign is None and length:
                foreign = _foreign_id(path, index, lowest, highest, n_vocab)
        is_whole = True
    except DataError as error:
        report.faults.append(str(error))
    report.faults += [str(error) for error in (short, foreign) if error is not None]
    told = count_in_name(path)
    if is_whole and told is not None and told != report.records:
        report.faults.append(f"{path}: its name tells {told} records, but it holds {report.records}")
    return report


def _foreign_id(path: str, index: int, lowest: int, highest: int, n_vocab: int | None) -> DataError | None:
    """The error for a record with an id that no vocabulary has, or not this one."""
    if lowest < 0:
        return DataError(f"{path}: record {index} has the id {lowest}")
    if n_vocab is not None and highest >= n_vocab:
        return DataError(f"{path}: record {index} has the id {highest}, but the vocabulary has {n_vocab} ids")
    return None

"""Reading the documents of many files in batches, from any document on."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neo_tf.errors import DataError
from neo_tf.progress import Progress
from neo_tf.training.data.texts import Unreadable, read_documents

_LETTERS = 200_000  # of a batch
_TEXTS = 256


@dataclass(frozen=True)
class Position:
    """Where the next document lies, and what was left out before it.

    Args:
        file: The file's index.
        document: The document's index in it.
        skipped: The number of documents that could not be read.
        first_error: Why the first of these could not be read.
    """

    file: int = 0
    document: int = 0
    skipped: int = 0
    first_error: str = ""


@dataclass(frozen=True)
class Batch:
    """Some texts that follow each other.

    Args:
        texts: The texts.
        begins_file: For each, whether it is the first of its file.
        end: The position behind them.
    """

    texts: list[str]
    begins_file: list[bool]
    end: Position


def text_batches(
    files: Sequence[Path], start: Position, text_field: str, skip_errors: bool, progress: Progress
) -> Iterator[Batch]:
    """The documents of some files, in batches; the last may be empty.

    Args:
        files: The files, in order.
        start: The first document that is wanted.
        text_field: In lines of JSON, the key of the text.
        skip_errors: Whether documents that cannot be read are left out.
        progress: Is told of the bytes of the files that were read.

    Raises:
        DataError: A file is damaged, or a document cannot be read.
    """
    texts: list[str] = []
    begins: list[bool] = []
    letters = 0
    end = start
    for number, path in enumerate(files[start.file :], start.file):
        first = start.document if number == start.file else 0
        is_first = True
        told = 0
        try:
            file = open(path, "rb")  # noqa: SIM115  (the with statement below closes it)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        with file:
            for index, document in enumerate(read_documents(path, file, text_field)):
                is_readable = not isinstance(document, Unreadable)
                if index >= first:
                    end = replace(end, file=number, document=index + 1)
                    if isinstance(document, Unreadable):
                        end = _skipped(end, document, skip_errors)
                    else:
                        texts.append(document.text)
                        begins.append(is_first)
                        letters += len(document.text)
                if is_readable:
                    is_first = False
                if letters >= _LETTERS or len(texts) >= _TEXTS:
                    yield Batch(texts, begins, end)
                    texts, begins, letters = [], [], 0
                    progress(file.tell() - told, path.name)
                    told = file.tell()
            progress(os.fstat(file.fileno()).st_size - told, path.name)
    yield Batch(texts, begins, replace(end, file=len(files), document=0))


def _skipped(position: Position, document: Unreadable, skip_errors: bool) -> Position:
    """The position, with one more document that was left out."""
    if not skip_errors:
        raise DataError(f"{document.reason} (--skip-errors leaves such documents out)")
    first_error = position.first_error or document.reason
    return replace(position, skipped=position.skipped + 1, first_error=first_error)

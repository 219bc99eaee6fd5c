"""The folder that is being written: tfrecord files, and how far the work is, so that a killed job can go on."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from neo_tf.errors import OutputError
from neo_tf.file_locks import lock
from neo_tf.file_names import TOKENIZER_FILES
from neo_tf.training.data.example import encode_example
from neo_tf.training.data.tfrecord import frame

MADE_FILE = "made.json"  # how the files were made; while they are made, how far the work is
DATASET_FILE = "dataset.json"
_UNFINISHED = ".unfinished"
_PARTIAL = ".partial"
_OURS = ("*.tfrecords", f"*{_UNFINISHED}", MADE_FILE, f"{MADE_FILE}.new", DATASET_FILE, *TOKENIZER_FILES)


def partial_of(folder: Path) -> Path:
    """The folder in which the files lie until all are there."""
    return folder.with_name(folder.name + _PARTIAL)


def read_made(folder: Path) -> dict[str, Any]:
    """The content of MADE_FILE in a folder; {} if the folder has no such file, or the file cannot be read."""
    try:
        value = json.loads((folder / MADE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_made(folder: Path, value: dict[str, Any]) -> None:
    """Writes MADE_FILE. A process that is killed meanwhile leaves the old file as it was."""
    new = folder / f"{MADE_FILE}.new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / MADE_FILE)


def locked(folder: Path) -> int:
    """Keeps other processes from writing a folder, until the descriptor that is returned is closed; -1 is none.

    Raises:
        OutputError: Another process is writing it.
    """
    if os.name != "posix":  # Windows opens no folders
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
    except OutputError:
        os.close(descriptor)
        raise
    return descriptor


def check_replaceable(folder: Path) -> None:
    """Raises OutputError where a folder holds something that is not written here, so that it must not be removed."""
    if not folder.is_dir():
        raise OutputError(f"{folder}: exists and is a file")
    if folder.samefile(Path.cwd()):
        raise OutputError(f"{folder}: is the current folder, which cannot be replaced: name one inside it")
    held = sorted(folder.iterdir())
    foreign = [entry.name for entry in held if entry.is_dir() or not any(map(entry.match, _OURS))]
    if foreign:
        raise OutputError(f"{folder}: holds {foreign[0]!r}, which this command did not write: not replaced")
    if held and not read_made(folder):
        raise OutputError(f"{folder}: was not made by this command: not replaced even with --force")


class RecordFiles:
    """Writes records into files, of which each has as many as it should, but the last of a part.

    A file gets its name when a state that knows it has been noted: `state`, then `publish`. So whatever is there after
    a kill, `restore` finds the files as they were when the last state was noted.

    Args:
        folder: Where they lie.
        per_file: The records of a file.
        name_of: Gives a file's name: its number, its records, and whether it is full.
    """

    def __init__(self, folder: Path, per_file: int, name_of: Callable[[int, int, bool], str]) -> None:
        self.folder = folder
        self.per_file = per_file
        self.name_of = name_of
        self.names: list[str] = []  # of all files that are whole
        self._number = 0  # of the file that is written
        self._count = 0  # records in it
        self._file: BinaryIO | None = None

    def write(self, token_ids: npt.NDArray[np.int64]) -> None:
        """Adds a record."""
        if self._file is None:
            self._file = open(self._path(len(self.names)), "wb")  # noqa: SIM115  (_end_file closes it)
        self._file.write(frame(encode_example(token_ids)))
        self._count += 1
        if self._count == self.per_file:
            self._end_file(is_full=True)

    def end_part(self) -> None:
        """Ends the last file of a part. The next part's files are numbered from 0 again."""
        if self._count:
            self._end_file(is_full=False)
        self._number = 0

    def state(self) -> dict[str, Any]:
        """Where it is, after all of it is on the disk; for `restore`."""
        offset = 0
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            offset = self._file.tell()
        return {"names": [*self.names], "number": self._number, "count": self._count, "offset": offset}

    def publish(self) -> None:
        """Gives the files that are whole their names, after their state has been noted."""
        for serial, name in enumerate(self.names):
            if self._path(serial).exists():
                self._path(serial).rename(self.folder / name)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state: what was written after it is removed, to be written again."""
        self.names = [*state["names"]]
        self._number = state["number"]
        self._count = state["count"]
        self.publish()
        current = self._path(len(self.names))
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            if path != current or not self._count:
                path.unlink()
        if self._count:
            self._file = open(current, "r+b")  # noqa: SIM115  (_end_file closes it)
            self._file.truncate(state["offset"])
            self._file.seek(state["offset"])

    def close(self) -> None:
        """Lets go of the file that is being written, which stays for the next run."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: the next run writes it again
                self._file.close()
            self._file = None

    def _path(self, serial: int) -> Path:
        return self.folder / f"records-{serial}{_UNFINISHED}"

    def _end_file(self, is_full: bool) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.names.append(self.name_of(self._number, self._count, is_full))
        self._number += 1
        self._count = 0

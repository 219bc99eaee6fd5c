"""The results of a job: in a file that a killed job goes on with, or on standard output."""

import contextlib
import json
import os
import re
import secrets
import sys
from array import array
from pathlib import Path
from typing import Any, Protocol

from neo_tf.atomic import new_file
from neo_tf.errors import OutputError, RequestError
from neo_tf.file_locks import lock

from .prompts import Line

_HEADER = "neo-tf job"
_FORMAT = 1
_BEGIN = f'{{"{_HEADER}":'.encode()
_RESULT = re.compile(rb"(\d+) ([0-9a-f]{8}) (ok|error) \{.*\}\n")


class JobResults(Protocol):
    """Where a job's results go.

    Attributes:
        done: The number of results that are there.
        errors: How many of them are errors.
        ordered: Whether a result waits for those of the prompts before it.
        partial: The file that holds the results of an unfinished job, or None.
    """

    done: int
    errors: int

    @property
    def ordered(self) -> bool: ...  # noqa: D102

    @property
    def partial(self) -> Path | None: ...  # noqa: D102

    def begin(self, job: dict[str, Any]) -> int:
        """Starts the job, or goes on with it.

        Args:
            job: {name: value} of what decides the results, in values that JSON has. Its "seed" may be None.

        Returns:
            The seed: the unfinished job's, or a new one where "seed" is None.

        Raises:
            OutputError: Another job is unfinished there.
        """

    def holds(self, line: Line) -> bool:
        """Whether a line's result is there.

        Raises:
            RequestError: It is there, but the line has changed since.
        """

    def add(self, line: Line, result: dict[str, Any]) -> None:
        """Takes a line's result. Raises OutputError where it cannot be written."""

    def finish(self, count: int) -> None:
        """Ends the job after `count` prompts.

        Raises:
            RequestError: There are results of more prompts.
        """

    def close(self) -> None:
        """Lets go of what it holds; after `finish`, or in its place."""


class JobFile:
    """Results in a file; JobResults. Each is appended to FILE.partial as it ends; FILE has all in their prompts' order.

    FILE.partial begins with a line of what decides the results. Each other line is a result's index, the checksum of
    its prompt's line, the word ok or error, and the result.

    Args:
        path: FILE. Neither it nor FILE.partial may exist, unless `resume` or `force` is set.
        resume: Goes on with FILE.partial where it exists.
        force: Starts again, and replaces FILE at last.

    Raises:
        OutputError: It cannot be written, or exists already.
    """

    ordered = False

    def __init__(self, path: Path | str, *, resume: bool = False, force: bool = False) -> None:
        self.path = Path(path)
        self.partial = self.partial_of(self.path)
        self.done = 0
        self.errors = 0
        self._resume = resume
        self._header: dict[str, Any] | None = None  # the first line's
        self._offsets = array("q")  # where each result's line begins in FILE.partial; -1 where there is no result yet
        self._checksums = array("I")
        unfinished = self.partial.exists() and self.partial.stat().st_size > 0
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path}: exists and is no plain file")
        if unfinished and not (resume or force):
            raise OutputError(f"{self.partial}: an unfinished job (--resume goes on with it, --force starts again)")
        if self.path.exists() and not (force or unfinished):
            raise OutputError(f"{self.path}: exists (--force replaces it)")
        try:
            self._file = open(self.partial, "a+b", buffering=0)  # noqa: SIM115  (close closes it)
            lock(self._file, self.partial)
            self._scan()
        except OSError as error:
            raise self._failed(error) from None

    @staticmethod
    def partial_of(path: Path) -> Path:
        """The path of FILE.partial."""
        return Path(f"{path}.partial")

    def begin(self, job: dict[str, Any]) -> int:
        """Starts the job, or goes on with it; see JobResults."""
        job = json.loads(json.dumps(job))
        if self._resume and self._header:
            self._compare(self._header, job)
            return self._header["seed"]
        self._offsets = array("q")
        self._checksums = array("I")
        self.done = 0
        self.errors = 0
        try:
            self._file.truncate(0)
            self._file.seek(0)
        except OSError as error:
            raise self._failed(error) from None
        job["seed"] = _seed(job)
        self._append(json.dumps({_HEADER: _FORMAT, **job}).encode() + b"\n")
        return job["seed"]

    def holds(self, line: Line) -> bool:
        """Whether a line's result is there; see JobResults."""
        if line.index >= len(self._offsets) or self._offsets[line.index] < 0:
            return False
        if self._checksums[line.index] != line.checksum:
            raise RequestError(
                f"{line.where}: has changed since its result was written to {self.partial}: --force starts again"
            )
        return True

    def add(self, line: Line, result: dict[str, Any]) -> None:
        """Writes a line's result: whole, or so that the next run sees that it is not whole."""
        kind = "error" if "error" in result else "ok"
        before = f"{line.index} {line.checksum:08x} {kind} ".encode()
        offset = self._file.tell()
        self._append(before + to_json(result))
        self._note(line.index, line.checksum, offset, kind)

    def finish(self, count: int) -> None:
        """Writes all results to FILE, in their prompts' order, and removes FILE.partial; see JobResults."""
        if len(self._offsets) > count:
            raise RequestError(
                f"{self.partial}: has a result of prompt {len(self._offsets)}, but there are {count} now: "
                "--force starts again"
            )
        with new_file(self.path) as final, open(self.partial, "rb") as source, open(final, "wb") as target:
            for offset in self._offsets:
                source.seek(offset)
                target.write(source.readline().split(b" ", 3)[3])
            target.flush()
            os.fsync(target.fileno())
        self._file.close()  # some systems do not remove an open file
        self.partial.unlink()

    def close(self) -> None:
        """Leaves FILE.partial for the next run, unless it holds no result."""
        self._file.close()
        if not self.done:
            self.partial.unlink(missing_ok=True)

    def _scan(self) -> None:
        """Finds the results that are there, and cuts off the line that a kill left half written."""
        with open(self.partial, "rb") as file:
            first = file.readline()
            if first.endswith(b"\n") or not first.startswith(_BEGIN[: len(first)]):
                with contextlib.suppress(ValueError):
                    self._header = json.loads(first)
                if not isinstance(self._header, dict) or self._header.pop(_HEADER, None) != _FORMAT:
                    raise OutputError(f"{self.partial}: no unfinished job of this neo-tf: move it away")
            end = file.tell() if self._header else 0
            for text in file:
                found = _RESULT.fullmatch(text)
                if not found:
                    break
                self._note(int(found[1]), int(found[2], 16), end, found[3].decode())
                end += len(text)
        self._file.truncate(end)
        self._file.seek(end)

    def _note(self, index: int, checksum: int, offset: int, kind: str) -> None:
        if index >= len(self._offsets):
            missing = index + 1 - len(self._offsets)
            self._offsets.extend([-1] * missing)
            self._checksums.extend([0] * missing)
        self._offsets[index] = offset
        self._checksums[index] = checksum
        self.done += 1
        if kind == "error":
            self.errors += 1

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Raises OutputError where a job is not the one that was begun."""
        if now["seed"] is None:
            now = {**now, "seed": before["seed"]}
        before, now = ({**job, **job["arguments"]} for job in (before, now))
        for name in sorted({*before, *now} - {"arguments"}):
            was, value = before.get(name), now.get(name)
            if was == value:
                continue
            change = f"{name} {json.dumps(was)}, not {json.dumps(value)}"
            if name == "model":
                change = "another model, tokenizer or version of neo-tf"
            raise OutputError(f"{self.partial}: began with {change}: --force starts again")

    def _append(self, text: bytes) -> None:
        try:
            while text:
                text = text[self._file.write(text) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        if isinstance(error, OutputError):
            return error
        return OutputError(f"{self.path}: cannot be written: {error.strerror}")


class JobStream:
    """Results on standard output, in the order of their prompts; JobResults. A result that ends early waits."""

    ordered = True
    partial = None

    def __init__(self) -> None:
        self.done = 0
        self.errors = 0
        self._stream = sys.stdout  # the one of now, also where other output is sent elsewhere meanwhile
        self._waiting: dict[int, bytes] = {}  # lines of results, by index
        self._next = 0  # the index that is shown next

    def begin(self, job: dict[str, Any]) -> int:
        """The job's seed."""
        return _seed(job)

    def holds(self, line: Line) -> bool:
        """False: a stream begins with no results."""
        return False

    def add(self, line: Line, result: dict[str, Any]) -> None:
        """Shows a line's result, when all results before it are shown."""
        self.done += 1
        if "error" in result:
            self.errors += 1
        self._waiting[line.index] = to_json(result)
        while self._next in self._waiting:
            self._stream.buffer.write(self._waiting.pop(self._next))
            self._next += 1
        self._stream.flush()

    def finish(self, count: int) -> None:
        """Has nothing left to do."""

    def close(self) -> None:
        """Has nothing to let go of."""


def _seed(job: dict[str, Any]) -> int:
    return secrets.randbits(32) if job["seed"] is None else job["seed"]


def to_json(result: dict[str, Any]) -> bytes:
    """A line of JSON in UTF-8. Lone surrogates, which UTF-8 cannot write, are escaped as in JSON."""
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

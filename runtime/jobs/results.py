"""The results of a job: in a file that a killed job goes on with, or on standard output."""

import contextlib
import json
import os
import re
import secrets
import sys
from array import array
from pathlib import Path

from neo_tf.atomic import new_file
from neo_tf.errors import OutputError, RequestError

_HEADER = "neo-tf job"
_FORMAT = 1
_BEGIN = f'{{"{_HEADER}":'.encode()
_RESULT = re.compile(rb"(\d+) ([0-9a-f]{8}) (ok|error) \{.*\}\n")


class JobFile:
    """Results that are appended to FILE.partial as they end; at last FILE has them in the order of their prompts.

    FILE.partial begins with what decides the results. Its other lines are a result's index, the checksum of its
    prompt's line, ok or error, and the result.

    Args:
        path: FILE. Neither it nor FILE.partial may be there, unless:
        resume: goes on with FILE.partial, where it is there;
        force: starts again, and replaces FILE at last.

    Attributes:
        done: results that are there.
        errors: so many of them are errors.
        ordered: whether results wait for those of the prompts before.

    Raises:
        OutputError: it cannot be written, or is there already.
    """

    ordered = False

    def __init__(self, path, *, resume=False, force=False):
        self.path, self._resume = Path(path), resume
        self.partial = self.partial_of(self.path)
        self._header, self._offsets, self._checksums = None, array("q"), array("I")
        self.done = self.errors = 0
        unfinished = self.partial.exists() and self.partial.stat().st_size > 0
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path}: exists and is no plain file")
        if unfinished and not (resume or force):
            raise OutputError(f"{self.partial}: an unfinished job (--resume goes on with it, --force starts again)")
        if self.path.exists() and not (force or unfinished):
            raise OutputError(f"{self.path}: exists (--force replaces it)")
        try:
            self._file = open(self.partial, "a+b", buffering=0)  # noqa: SIM115  (close closes it)
            self._lock()
            self._scan()
        except OSError as error:
            raise self._failed(error) from None

    @staticmethod
    def partial_of(path):
        """The path of FILE.partial."""
        return Path(f"{path}.partial")

    def begin(self, job):
        """Starts the job, or goes on with it.

        Args:
            job: {name: value} of what decides the results, JSON. Its "seed" may be None.

        Returns:
            The seed: the unfinished job's, or a new one, where it is None.

        Raises:
            OutputError: another job is unfinished there.
        """
        job = json.loads(json.dumps(job))
        if self._resume and self._header:
            self._compare(self._header, job)
            return self._header["seed"]
        self._offsets, self._checksums, self.done, self.errors = array("q"), array("I"), 0, 0
        try:
            self._file.truncate(0)
            self._file.seek(0)
        except OSError as error:
            raise self._failed(error) from None
        job["seed"] = _seed(job)
        self._append(json.dumps({_HEADER: _FORMAT, **job}).encode() + b"\n")
        return job["seed"]

    def holds(self, line):
        """Whether a line's result is there.

        Raises:
            RequestError: it is there, but the line was another then.
        """
        if line.index >= len(self._offsets) or self._offsets[line.index] < 0:
            return False
        if self._checksums[line.index] != line.checksum:
            raise RequestError(
                f"{line.where}: has changed since its result was written to {self.partial}: --force starts again"
            )
        return True

    def add(self, line, result):
        """Writes a line's result: whole, or so that the next run sees that it is not."""
        kind = "error" if "error" in result else "ok"
        before = f"{line.index} {line.checksum:08x} {kind} ".encode()
        offset = self._file.tell()
        self._append(before + to_json(result))
        self._note(line.index, line.checksum, offset, kind)

    def finish(self, count):
        """Puts the results of so many prompts under the final name.

        Raises:
            RequestError: there are results of more prompts.
        """
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
        self._file.close()  # some systems remove no open file
        self.partial.unlink()

    def close(self):
        """Leaves FILE.partial for the next run, unless nothing is there."""
        self._file.close()
        if not self.done:
            self.partial.unlink(missing_ok=True)

    def _lock(self):
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self.partial}: another process is writing it") from None

    def _scan(self):
        """Finds the results that are there, and cuts off what a kill left half written."""
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

    def _note(self, index, checksum, offset, kind):
        if index >= len(self._offsets):
            missing = index + 1 - len(self._offsets)
            self._offsets.extend([-1] * missing)
            self._checksums.extend([0] * missing)
        self._offsets[index], self._checksums[index] = offset, checksum
        self.done += 1
        self.errors += kind == "error"

    def _compare(self, before, now):
        """Raises OutputError where a job is not the one that began."""
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

    def _append(self, text):
        try:
            while text:
                text = text[self._file.write(text) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error):
        return (
            error
            if isinstance(error, OutputError)
            else OutputError(f"{self.path}: cannot be written: {error.strerror}")
        )


class JobStream:
    """Results on standard output, in the order of their prompts; those that end early wait.

    Attributes: as a JobFile's.
    """

    ordered, partial = True, None
    done = errors = 0

    def __init__(self):
        self._waiting, self._next = {}, 0

    def begin(self, job):
        """The job's seed."""
        return _seed(job)

    def holds(self, line):
        """False: nothing is there before."""
        return False

    def add(self, line, result):
        """Shows a line's result, when all before it are shown."""
        self.done += 1
        self.errors += "error" in result
        self._waiting[line.index] = to_json(result)
        while self._next in self._waiting:
            sys.stdout.buffer.write(self._waiting.pop(self._next))
            self._next += 1
        sys.stdout.flush()

    def finish(self, count):
        """Nothing is left."""

    def close(self):
        """Nothing is held."""


def _seed(job):
    return secrets.randbits(32) if job["seed"] is None else job["seed"]


def to_json(result):
    """A line of JSON in UTF-8; what UTF-8 cannot say is escaped, as JSON does."""
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

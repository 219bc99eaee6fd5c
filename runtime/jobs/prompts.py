"""The prompts of a job: lines that are read one by one, as they come."""

import contextlib
import json
import os
import select
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from neo_tf.errors import RequestError

_BLOCK = 1 << 16  # bytes that are read at once


@dataclass(frozen=True)
class Line:
    """One prompt of a job, as it stands in its file.

    Args:
        index: Its number among the prompts, from 0.
        where: What an error message begins with, such as "prompts.jsonl:17".
        raw: Its bytes.
        json: Whether they are a JSON object, rather than the prompt itself.
    """

    index: int
    where: str
    raw: bytes
    json: bool

    @property
    def checksum(self) -> int:
        """Tells a resumed job whether the line is the same as before."""
        return zlib.crc32(self.raw)

    def read(self) -> dict[str, Any]:
        """What it says: {"prompt": a text or token ids, and arguments of generation}.

        Raises:
            RequestError: It is not UTF-8, or not such an object.
        """
        try:
            text = self.raw.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError("not a text in UTF-8") from None
        if not self.json:
            return {"prompt": text}
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise RequestError('not a JSON object such as {"prompt": "a text"}')
        return values


class JobLines(Protocol):
    """Where a job's lines come from.

    Attributes:
        waits: Whether the next line has yet to come, for example from a pipe.
    """

    @property
    def waits(self) -> bool: ...  # noqa: D102

    def __iter__(self) -> Iterator[Line]: ...

    def __next__(self) -> Line: ...


class Lines:
    """The lines of an open file that are not blank, one by one; no more of the file is read than they need.

    Args:
        file: A file with a file descriptor, which nobody has read from yet.
        name: The file's name in error messages.
        json: See Line.
    """

    def __init__(self, file: IO[Any], name: Path | str, json: bool) -> None:
        self._file = file
        self._name = name
        self._json = json
        self._lines: deque[bytes] = deque()
        self._rest = b""  # of a block, after its last line break
        self._ended = False
        self._index = 0  # of the next prompt
        self._number = 0  # of the last line, from 1

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        while True:
            while not self._lines and not self._ended:
                self._read()
            if not self._lines:
                raise StopIteration
            raw = self._lines.popleft()
            self._number += 1
            raw = (raw.removeprefix(b"\xef\xbb\xbf") if self._number == 1 else raw).removesuffix(b"\r")
            if raw.strip():
                self._index += 1
                return Line(self._index - 1, f"{self._name}:{self._number}", raw, self._json)

    @property
    def waits(self) -> bool:
        """Whether the next line has yet to come, for example from a pipe."""
        with contextlib.suppress(OSError, ValueError):  # select cannot ask every kind of file: those are read at once
            while not self._lines and not self._ended:
                if not select.select([self._file.fileno()], [], [], 0)[0]:
                    return True
                self._read()
        return False

    def _read(self) -> None:
        block = os.read(self._file.fileno(), _BLOCK)
        *whole, self._rest = (self._rest + block).split(b"\n")
        if not block:
            self._ended = True
            whole += [self._rest] if self._rest else []
        self._lines.extend(whole)


class Given:
    """The prompts that were given on the command line, as lines of a job."""

    waits = False

    def __init__(self, prompts: Sequence[str]) -> None:
        raws = [prompt.encode("utf-8", "surrogateescape") for prompt in prompts]
        self._lines = iter([Line(index, f"prompt {index + 1}", raw, False) for index, raw in enumerate(raws)])

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def __next__(self) -> Line:
        return next(self._lines)


def count_lines(path: Path) -> int:
    """The number of a file's lines that are not blank."""
    with open(path, "rb") as file:
        return sum(not line.isspace() for line in file)

"""The prompts of a job: lines that are read one by one, as far as they have come."""

import contextlib
import json
import os
import select
import zlib
from collections import deque
from dataclasses import dataclass

from neo_tf.errors import RequestError

_BLOCK = 1 << 16  # bytes that are read at once


@dataclass(frozen=True)
class Line:
    """One prompt of a job, as it stands in its file.

    Args:
        index: the how manieth prompt it is, from 0.
        where: what an error begins with, as "prompts.jsonl:17".
        raw: its bytes.
        json: whether they are a JSON object, rather than the prompt itself.
    """

    index: int
    where: str
    raw: bytes
    json: bool

    @property
    def checksum(self):
        """By which a resumed job sees that the line is the same."""
        return zlib.crc32(self.raw)

    def read(self):
        """What it says: {"prompt": a text or token ids, ...}.

        Raises:
            RequestError: it is no such thing.
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


class Lines:
    """The lines of an open file that are not blank, one by one; more of the file is not read than they need.

    Args:
        file: with a fileno, not read from yet.
        name: for errors.
        json: see Line.
    """

    def __init__(self, file, name, json):
        self._file, self._name, self._json = file, name, json
        self._lines, self._rest, self._ended = deque(), b"", False
        self._index, self._number = 0, 0

    def __iter__(self):
        return self

    def __next__(self):
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
    def waits(self):
        """Whether the next line has yet to come, as from a pipe."""
        with contextlib.suppress(OSError, ValueError):  # where select knows no such file it is read at once
            while not self._lines and not self._ended:
                if not select.select([self._file.fileno()], [], [], 0)[0]:
                    return True
                self._read()
        return False

    def _read(self):
        block = os.read(self._file.fileno(), _BLOCK)
        *whole, self._rest = (self._rest + block).split(b"\n")
        if not block:
            self._ended = True
            whole += [self._rest] if self._rest else []
        self._lines.extend(whole)


class Given:
    """Prompts of the command line, as Lines."""

    waits = False

    def __init__(self, prompts):
        raws = [prompt.encode("utf-8", "surrogateescape") for prompt in prompts]
        self._lines = iter([Line(index, f"prompt {index + 1}", raw, False) for index, raw in enumerate(raws)])

    def __iter__(self):
        return self._lines

    def __next__(self):
        return next(self._lines)


def count_lines(path):
    """How many lines of a file are not blank."""
    with open(path, "rb") as file:
        return sum(not line.isspace() for line in file)

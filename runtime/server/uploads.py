"""What clients leave in the server for some minutes: their files, and what came of their tasks. All is in memory."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from .errors import ServerError

_Value = TypeVar("_Value")


def owner_of(http: HttpRequest) -> bytes:
    """Whose request it is: a hash of its bearer token, whether the server has keys or not."""
    _, _, token = http.headers.get("authorization", "").partition(" ")
    return hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Limits:
    """How much is kept.

    Args:
        seconds: How long something is kept after it was put in or last asked for.
        each: The number of things that one owner has at most.
        each_bytes: Their bytes.
        all: The number of things that all owners have together at most.
        all_bytes: Their bytes.
    """

    seconds: float = 600
    each: int = 256
    each_bytes: int = 16_000_000
    all: int = 4096
    all_bytes: int = 64_000_000


@dataclass
class _Entry:
    owner: bytes
    value: Any
    size: int
    until: float


class Uploads:
    """Things with ids that nobody can guess. Each belongs to its owner: for others it does not exist.

    Where there is no room left, what was not asked for the longest goes: the owner's own first, and then anybody's. It
    is used in the server's loop alone.

    Args:
        what: What an error message calls a thing.
        limits: How much is kept.
        forget: Called with each thing that goes.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        what: str,
        limits: Limits | None = None,
        forget: Callable[[Any], None] = lambda value: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._limits = limits or Limits()
        self._forget = forget
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # what was asked for last comes last
        self._timer: asyncio.TimerHandle | None = None  # forgets them where nobody comes any more

    def __len__(self) -> int:
        self._forget_old()
        return len(self._entries)

    def may_hold(self, size: int) -> bool:
        """Whether one owner may have a thing of `size` bytes."""
        return size <= min(self._limits.each_bytes, self._limits.all_bytes)

    def put(self, owner: bytes, value: Any, size: int) -> str:
        """Keeps something.

        Args:
            owner: Whose it is.
            value: What is kept.
            size: Its bytes.

        Returns:
            Its id, of 24 hexadecimal digits.

        Raises:
            ServerError: It is larger than all that one owner may keep.
        """
        limits = self._limits
        if not self.may_hold(size):
            raise ServerError(413, f"the {self._what} has more than {limits.each_bytes} bytes", code="upload_too_large")
        self._forget_old()
        own = [name for name, entry in self._entries.items() if entry.owner == owner]
        self._make_room(own, limits.each - 1, limits.each_bytes - size)
        self._make_room(list(self._entries), limits.all - 1, limits.all_bytes - size)
        name = secrets.token_hex(12)
        self._entries[name] = _Entry(owner, value, size, self._clock() + limits.seconds)
        if self._timer is None:
            self._wait()
        return name

    def get(self, owner: bytes, name: str, kind: type[_Value]) -> _Value:
        """What was kept under an id.

        Raises:
            ServerError: 404. The owner has nothing of this id and kind, or no more.
        """
        self._forget_old()
        entry = self._entries.get(name)
        if entry is None or entry.owner != owner or not isinstance(entry.value, kind):
            raise ServerError(
                404, f"there is no {self._what} of this id: it is kept for a few minutes", code="upload_not_found"
            )
        entry.until = self._clock() + self._limits.seconds
        self._entries.move_to_end(name)
        return entry.value

    def find(self, owner: bytes, kind: type[_Value], is_it: Callable[[_Value], bool]) -> str | None:
        """The id of a thing of this kind that an owner has; None where it has no such thing."""
        self._forget_old()
        for name, entry in self._entries.items():
            if entry.owner == owner and isinstance(entry.value, kind) and is_it(entry.value):
                return name
        return None

    def _make_room(self, names: list[str], count: int, size: int) -> None:
        """Forgets the first of these until there are at most `count` of `size` bytes."""
        total = sum(self._entries[name].size for name in names)
        left = len(names)
        for name in names:
            if left <= count and total <= size:
                return
            left -= 1
            total -= self._remove(name)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._limits.seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if len(self):
            self._wait()

    def _forget_old(self) -> None:
        now = self._clock()
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            if entry.until > now:
                return
            self._remove(name)

    def _remove(self, name: str) -> int:
        """Forgets a thing, and returns its bytes."""
        entry = self._entries.pop(name)
        self._forget(entry.value)
        return entry.size

"""From the engine's thread into an asyncio loop: many items, one wake-up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """Carries items into a loop. A step of the engine that brings a token to each of 32 clients wakes the loop once.

    Args:
        loop: The loop that the items are delivered in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False

    def put(self, deliver: Callable[[Any], None], item: Any) -> None:
        """Calls deliver(item) in the loop, soon, in the order of the calls. It may be called from any thread."""
        self._items.append((deliver, item))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver_all)

    def _deliver_all(self) -> None:
        self._woken = False  # before the items: one that comes now wakes the loop again
        while self._items:
            deliver, item = self._items.popleft()
            deliver(item)

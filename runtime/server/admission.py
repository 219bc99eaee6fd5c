"""How many sequences may be in the server at once: those that run, and a queue of limited length."""

from __future__ import annotations

import threading

from .errors import ServerError, bad_request, shutting_down


class Admission:
    """Counts the sequences that have been taken and have not ended.

    Args:
        slots: The number of sequences that run at once.
        max_queue: The number of sequences that may wait for a slot.

    Attributes:
        draining: Whether nothing new is taken, because the server ends.
        active: The number of sequences that run or wait.
    """

    def __init__(self, slots: int, max_queue: int) -> None:
        self.limit = slots + max_queue
        self.draining = False
        self.active = 0
        self._lock = threading.Lock()

    def check(self, count: int) -> None:
        """Raises ServerError, 400, for more sequences of one request than ever fit: before one of them is made."""
        if count > self.limit:
            raise bad_request(
                f"the request makes {count} sequences, and this server holds at most {self.limit} at once, waiting "
                "ones included: divide it",
                code="too_many_sequences",
            )

    def take(self, count: int) -> None:
        """Takes sequences in.

        Raises:
            ServerError: 503 while the server ends, 429 where the queue is full, 400 for more than ever fit.
        """
        self.check(count)
        with self._lock:
            if self.draining:
                raise shutting_down()
            if self.active + count > self.limit:
                raise ServerError(
                    429,
                    f"the queue is full: {self.active} sequences run or wait, and at most {self.limit} may",
                    code="queue_full",
                    headers={"retry-after": "1"},
                )
            self.active += count

    def give(self, count: int) -> None:
        """Says that sequences have ended. It may be called from any thread."""
        with self._lock:
            self.active -= count

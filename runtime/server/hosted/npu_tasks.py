"""Predictions that run in the background, for npu outside of its deployment mode."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ServerError, error_of
from ..uploads import Uploads

if TYPE_CHECKING:
    from ..call import Call
    from .texts import HostedTexts

_MOST_RUNNING = 128  # of one owner, so that a task that runs is not forgotten for a newer one
_BYTES_OF_TOKEN = 16  # of a result, about
_ALMOST = 0.99  # the progress of what has not ended
_log = logging.getLogger("neo_tf.npu")


class Task:
    """One prediction. It runs until its texts have ended, or until nobody has asked for it for some minutes.

    Args:
        texts: What is predicted.
        call: What runs it.

    Attributes:
        state: "PENDING", "COMPLETE" or "FAILURE", as the client knows them.
        result: What came of it, in the end: the texts, or why there are none.
    """

    def __init__(self, texts: HostedTexts, call: Call) -> None:
        self.state = "PENDING"
        self.result: Any = None
        self._texts: HostedTexts | None = texts
        self._call: Call | None = call
        self._running = asyncio.create_task(self._run(texts, call))

    def when_ended(self, tell: Callable[[object], None]) -> None:
        """Has a function called once the task has ended."""
        self._running.add_done_callback(tell)

    def cancel(self) -> None:
        """Ends its sequences, where they still run."""
        if self._call is not None:
            self._call.cancel()

    @property
    def progress(self) -> float:
        """The share of the new tokens that are there, from 0 to 1."""
        if self._call is None or self._texts is None:
            return 1.0
        tokens = sum(len(submission.generation.tokens) for submission in self._call.submissions)
        return min(tokens / self._texts.new_tokens, _ALMOST)

    async def _run(self, texts: HostedTexts, call: Call) -> None:
        try:
            result = await asyncio.to_thread(texts.results, await call.results())
        except Exception as error:
            if not isinstance(error, ServerError):
                _log.exception("a task failed")
            self.state, self.result = "FAILURE", error_of(error).message
        else:
            self.state, self.result = "COMPLETE", result
        finally:
            call.cancel()  # the others, where one of several sequences failed
            self._texts = None
            self._call = None


class Tasks:
    """The tasks of all owners. It is used in the server's loop alone."""

    def __init__(self) -> None:
        self._kept = Uploads("task", forget=Task.cancel)
        self._running: Counter[bytes] = Counter()

    def check(self, owner: bytes) -> None:
        """Raises ServerError, 429, where an owner has too many tasks that run."""
        if self._running[owner] >= _MOST_RUNNING:
            raise ServerError(
                429,
                f"{_MOST_RUNNING} tasks of this token run or wait, and no more may",
                code="too_many_tasks",
                headers={"retry-after": "1"},
            )

    def start(self, owner: bytes, texts: HostedTexts, call: Call) -> str:
        """Keeps a task that runs, and returns its id."""
        size = sum(len(request.prompt) + (request.max_new_tokens or 1) for request in texts.requests)
        try:
            name = self._kept.put(owner, task := Task(texts, call), size * _BYTES_OF_TOKEN)
        except BaseException:
            call.cancel()
            raise
        self._running[owner] += 1

        def ended(done: object) -> None:
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]

        task.when_ended(ended)
        return name

    def get(self, owner: bytes, name: str) -> Task:
        """An owner's task.

        Raises:
            ServerError: 404. It has no such task.
        """
        return self._kept.get(owner, name, Task)

"""A thread that runs one function after the other: a Service's, or the one that a session's CUDA graphs belong to."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from neo_tf.errors import EngineError


class OneThread:
    """One thread, which begins with its first function, and ends with this object."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._tasks,), name="neo-tf engine", daemon=True)
        self._lock = threading.Lock()
        self._loop: Future[Any] | None = None
        weakref.finalize(self, self._tasks.put, None)

    @property
    def ident(self) -> int | None:
        """The thread's number; None before the first function."""
        return self._thread.ident

    @property
    def is_current(self) -> bool:
        """Whether it is the thread that asks."""
        return threading.current_thread() is self._thread

    def start(self, function: Callable[[], Any], is_loop: bool = False) -> Future[Any]:
        """Lets the thread run a function after those that were given before, and does not wait.

        Args:
            function: The function.
            is_loop: Whether it runs until somebody ends it. Until then the thread takes no other function.

        Raises:
            EngineError: A loop runs.
        """
        done: Future[Any] = Future()
        with self._lock:
            if self._loop and not self._loop.done():
                raise EngineError("the session's thread is a running Service's: go through the Service, or close it")
            if is_loop:
                self._loop = done
            self._tasks.put((function, done))
            if self._thread.ident is None:
                self._thread.start()
        return done

    def run(self, function: Callable[[], Any]) -> Any:
        """Lets the thread run a function, and returns or raises what it does. In the thread itself it is called."""
        if self.is_current:
            return function()
        done = self.start(function)
        try:
            return done.result()
        except BaseException:  # Ctrl-C: the function must not go on while the caller does
            wait([done])
            raise


def _work(tasks: "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]") -> None:
    while (task := tasks.get()) is not None:
        function, done = task
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)
        del task, function, done  # they may hold what this object belongs to

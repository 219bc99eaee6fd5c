"""The engine in a thread of its own: requests come from any thread or coroutine, at any time."""

import asyncio
import atexit
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from typing import Any

from neo_tf.errors import EngineError, one_line

from .engine import Engine
from .generation import Generation
from .request import Request


class Submission(Future[Generation]):
    """A request that a Service has taken: a concurrent.futures.Future of its Generation when it has ended.

    Args:
        generation: What comes of the request.
        service: The service that runs it.

    Attributes:
        generation: What has come of the request so far. It is written by the engine's thread.
    """

    def __init__(self, generation: Generation, service: "Service") -> None:
        super().__init__()
        self.generation = generation
        self._service = service
        self.set_running_or_notify_cancel()  # from here on it ends by the engine alone

    def cancel(self) -> bool:
        """Ends the request before the next step; the result's finish_reason is then "cancelled".

        Returns:
            False, since the future itself is not cancelled: it still has a result. A request that has ended stays as it
            is.
        """
        self._service._cancel(self.generation)
        return False


class Service:
    """Steps an Engine as long as there is something to do, with blocking and asyncio fronts over the one loop.

    Args:
        engine: The engine. Nobody else may use it meanwhile.

    Example:
        >>> with Service(Engine(Session("models/onnx", slots=8))) as service:
        ...     submissions = [service.submit(Request(prompt)) for prompt in prompts]
        ...     tokens = [submission.result().tokens for submission in submissions]
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._submitted: list[Generation] = []
        self._running: dict[int, Submission] = {}  # by the id of the Generation
        self._closing = False
        self._dead: str | None = None  # why
        self._thread = threading.Thread(target=self._run, name="neo-tf engine", daemon=True)
        self._thread.start()
        # A process must not end in the middle of a step.
        atexit.register(self.close)

    @property
    def failure(self) -> str | None:
        """Why no request is served any more; None while the engine's thread runs."""
        if self._dead is None and not self._thread.is_alive():
            return "the service is closed" if self._closing else "the engine's thread has ended"
        return self._dead

    @property
    def waiting(self) -> int:
        """The number of requests that have no slot yet."""
        return len(self._submitted) + self._engine.waiting

    def check(self, request: Request) -> None:
        """Raises RequestError where a request cannot be served; see Engine.check."""
        self._engine.check(request)

    def submit(self, request: Request) -> Submission:
        """Queues a request, and does not wait.

        Raises:
            RequestError: It cannot be served; see Engine.check.
            EngineError: The service is closed, or its engine is dead.
        """
        self._engine.check(request)
        generation = Generation(request)
        submission = Submission(generation, self)
        with self._changed:
            if self._dead or self._closing or not self._thread.is_alive():
                raise EngineError(self.failure or "the service is closed")
            self._running[id(generation)] = submission
            self._submitted.append(generation)
            self._changed.notify()
        return submission

    def generate(self, requests: Iterable[Request]) -> list[Generation]:
        """Runs requests to their ends, together. All are checked before the first one is queued.

        Returns:
            What came of each, in their order.

        Raises:
            RequestError, EngineError: See submit.
            EngineError: A step failed.
        """
        requests = list(requests)
        for request in requests:
            self._engine.check(request)
        if threading.current_thread() is self._thread:
            raise EngineError("a callback of the engine's own cannot wait for it: use submit")
        submissions: list[Submission] = []
        try:
            for request in requests:
                submissions.append(self.submit(request))
            return [submission.result() for submission in submissions]
        except BaseException:
            for submission in submissions:
                submission.cancel()
            raise

    async def generate_async(self, request: Request) -> Generation:
        """Does the same for one request in an asyncio loop. Cancelling the task cancels the request."""
        return await asyncio.wrap_future(self.submit(request))

    async def stream(self, request: Request) -> AsyncIterator[int]:
        """Yields each new token id of a request as it comes. Leaving the loop early cancels the request."""
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[Any] = asyncio.Queue()
        end = object()  # comes after the last token

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for tokens any more
                loop.call_soon_threadsafe(tokens.put_nowait, item)

        def on_token(token: int) -> None:
            put(token)
            if request.on_token:
                request.on_token(token)

        submission = self.submit(dataclasses.replace(request, on_token=on_token))
        submission.add_done_callback(lambda done: put(end))
        try:
            while (token := await tokens.get()) is not end:
                yield token
            submission.result()
        finally:
            if not submission.done():
                submission.cancel()

    def close(self) -> None:
        """Ends all requests as cancelled, and then the thread."""
        with self._changed:
            self._closing = True
            for submission in self._running.values():
                self._engine.cancel(submission.generation)
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # a callback's: the thread ends after this step
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _cancel(self, generation: Generation) -> None:
        self._engine.cancel(generation)
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        """The thread: nobody may wait for it once it has ended, whatever ended it."""
        try:
            self._step()
        except BaseException as error:
            self._die(f"the engine stopped: {type(error).__name__}: {one_line(error)}")

    def _step(self) -> None:
        """Steps the engine until the service is closed."""
        busy = False
        while True:
            with self._changed:
                while not (busy or self._submitted or self._closing):
                    self._changed.wait()
                submitted, self._submitted = self._submitted, []
                if self._closing and not (busy or submitted):
                    return
            for generation in submitted:
                self._engine.enqueue(generation)
            busy = self._engine.step()
            self._tell(self._engine.ended)

    def _tell(self, ended: list[Generation]) -> None:
        """Ends the futures of Generations that have ended."""
        with self._changed:
            submissions = [self._running[id(generation)] for generation in ended]
        for submission in submissions:
            if submission.generation.error:
                submission.set_exception(submission.generation.error)
            else:
                submission.set_result(submission.generation)
            # Not before: where this thread is ended in between, _die must find who is still waiting.
            with self._changed:
                del self._running[id(submission.generation)]

    def _die(self, why: str) -> None:
        with self._changed:
            self._dead = why
            submissions = list(self._running.values())
            self._running = {}
        for submission in submissions:
            if not submission.done():
                submission.set_exception(EngineError(why))

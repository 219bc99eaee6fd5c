"""The engine in a thread of its own: requests come from any thread or coroutine, at any time."""

import asyncio
import atexit
import threading
from concurrent.futures import Future

from neo_tf.errors import EngineError, RequestError, one_line


class Service:
    """Steps an Engine as long as there is something to do; blocking and asyncio fronts over the one loop.

    Args:
        engine: an Engine, which nobody else may use meanwhile.

    Example:
        >>> with Service(Engine(Session("models/onnx", slots=8))) as service:
        ...     futures = [service.submit(Request(prompt)) for prompt in prompts]
        ...     texts = [future.result().tokens for future in futures]
    """

    def __init__(self, engine):
        self._engine = engine
        self._changed = threading.Condition()
        self._submitted, self._futures = [], {}
        self._closing, self._dead = False, None
        self._thread = threading.Thread(target=self._run, name="neo-tf engine", daemon=True)
        self._thread.start()
        # A process must not end in the middle of a step.
        atexit.register(self.close)

    def submit(self, request):
        """Queues a request.

        Returns:
            A concurrent.futures.Future of the request when it has ended; its cancel() is not used: see cancel.

        Raises:
            RequestError: it cannot be served; see Engine.check.
            EngineError: the service is closed, or its engine is dead.
        """
        self._engine.check(request)
        future = Future()
        future.set_running_or_notify_cancel()  # from here on it ends by the engine alone
        with self._changed:
            if self._dead or self._closing:
                raise EngineError(self._dead or "the service is closed")
            if id(request) in self._futures:
                raise RequestError("the request is queued already: make a new one")
            self._futures[id(request)] = (request, future)
            self._submitted.append(request)
            self._changed.notify()
        return future

    def cancel(self, request):
        """Ends a request before the next step; its finish_reason is then "cancelled". One that has ended stays so."""
        self._engine.cancel(request)
        with self._changed:
            self._changed.notify()

    def generate(self, requests):
        """Runs requests to their ends, together, and returns them. All are checked before the first one is queued.

        Raises:
            RequestError, EngineError: see submit; and EngineError where a step failed.
        """
        for request in requests:
            self._engine.check(request)
        if threading.current_thread() is self._thread:
            raise EngineError("a callback of the engine's own cannot wait for it: use submit")
        futures = []
        try:
            for request in requests:
                futures.append(self.submit(request))
            return [future.result() for future in futures]
        except BaseException:
            for request in requests[: len(futures)]:
                self.cancel(request)
            raise

    async def generate_async(self, request):
        """As generate, for one request in an asyncio loop. Cancelling the task cancels the request."""
        future = asyncio.wrap_future(self.submit(request))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancel(request)
            raise

    async def stream(self, request):
        """Yields each new token id of a request as it comes. Leaving the loop early cancels the request."""
        loop, tokens, end = asyncio.get_running_loop(), asyncio.Queue(), object()
        given = request.on_token

        def on_token(token):
            loop.call_soon_threadsafe(tokens.put_nowait, token)
            if given:
                given(token)

        request.on_token = on_token
        future = self.submit(request)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(tokens.put_nowait, end))
        try:
            while (token := await tokens.get()) is not end:
                yield token
            future.result()
        finally:
            if not request.finish_reason:
                self.cancel(request)

    def close(self):
        """Ends what is running as cancelled, and then the thread."""
        with self._changed:
            self._closing = True
            for request, _ in self._futures.values():
                self._engine.cancel(request)
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # a callback's: the thread ends after this step
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _run(self):
        busy = False
        while True:
            with self._changed:
                while not (busy or self._submitted or self._closing):
                    self._changed.wait()
                submitted, self._submitted = self._submitted, []
                if self._closing and not (busy or submitted):
                    return
            try:
                refused = [request for request in submitted if not self._admit(request)]
                busy = self._engine.step()
            except BaseException as error:  # the engine itself is broken: nobody may wait for it
                self._die(f"the engine stopped: {type(error).__name__}: {one_line(error)}")
                return
            self._tell([*refused, *self._engine.ended])

    def _admit(self, request):
        """Whether the engine takes a request."""
        try:
            self._engine.submit(request)
        except RequestError as error:  # changed since it was checked
            request.error, request.finish_reason = error, "error"
        return not request.error

    def _tell(self, ended):
        """Ends the futures of requests that have ended."""
        with self._changed:
            told = [self._futures.pop(id(request)) for request in ended]
        for request, future in told:
            if request.error:
                future.set_exception(request.error)
            else:
                future.set_result(request)

    def _die(self, why):
        with self._changed:
            self._dead = why
            told, self._futures = list(self._futures.values()), {}
        for _, future in told:
            future.set_exception(EngineError(why))

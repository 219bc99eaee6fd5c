"""Many threads and one engine: the thread whose turn it is steps the engine for all of them."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from neo_tf.errors import EngineError, one_line

from ..device.one_thread import OneThread
from .generation import Generation
from .request import Request


class SteppedEngine(Protocol):
    """What a turn needs of an Engine.

    Attributes:
        ended: The Generations that ended in the last step.
    """

    ended: list[Generation]

    def enqueue(self, generation: Generation) -> None: ...  # noqa: D102

    def cancel(self, generation: Generation) -> None: ...  # noqa: D102

    def abandon(self, generations: Sequence[Generation]) -> None: ...  # noqa: D102

    def step(self) -> bool: ...  # noqa: D102


class _Call:
    """One thread's requests.

    Attributes:
        generations: What comes of each request.
        pieces: Calls of the requests' functions that wait for the thread: (function, its argument).
        error: What ended the call early.
    """

    def __init__(
        self, requests: Sequence[Request], hand_over: Callable[[_Call, Callable[[Any], object], Any], None]
    ) -> None:
        self._thread = threading.get_ident()
        self._hand_over = hand_over
        self.generations = [Generation(self._heard_here(request)) for request in requests]
        self.pieces: deque[tuple[Callable[[Any], object], Any]] = deque()
        self.error: Exception | None = None
        self._open = len(self.generations)

    @property
    def is_open(self) -> bool:
        """Whether something is to be waited for."""
        return self._open > 0 and self.error is None

    def end(self, generation: Generation) -> None:
        """One of its Generations has ended. The first error ends the call."""
        self._open -= 1
        self.error = self.error or generation.error

    def deliver(self) -> None:
        """Calls the functions that wait for the thread."""
        while self.pieces:
            function, value = self.pieces.popleft()
            function(value)

    def _heard_here(self, request: Request) -> Request:
        """The request, with functions that are called in the thread of the call, whichever thread steps the engine."""
        if request.on_token:
            request = dataclasses.replace(request, on_token=self._relay(request.on_token))
        if request.on_text:
            request = dataclasses.replace(request, on_text=self._relay(request.on_text))
        return request

    def _relay(self, function: Callable[[Any], object]) -> Callable[[Any], object]:
        def relay(value: Any) -> None:
            if threading.get_ident() == self._thread:
                function(value)
            else:
                self._hand_over(self, function, value)

        return relay


class Turns:
    """Runs the calls of many threads on one engine, together. Each thread waits for its own requests.

    There is no thread beside those that call. The first one steps the engine until its own requests have ended, and the
    requests of the others run in the same steps. Then another one, whose requests have not ended yet, goes on. An
    engine that has a thread of its own is stepped there for all of them, as long as there are calls.

    Args:
        engine: The engine. Nobody else may step it while calls run.
        thread: The engine's own thread, if it has one.
    """

    def __init__(self, engine: SteppedEngine, thread: OneThread | None = None) -> None:
        self._engine = engine
        self._thread = thread
        self._changed = threading.Condition()
        self._stepper: int | None = None  # the thread whose turn it is
        self._submitted: list[Generation] = []  # no step has seen them yet
        self._calls: dict[int, _Call] = {}  # by the id of each Generation that has not ended
        self._steps = 0  # of the engine's own thread
        self._due = 0  # steps that it has to take even if no call is left: they drop what was cancelled

    def run(self, requests: Sequence[Request]) -> list[Generation]:
        """Runs requests, which have been checked, to their ends.

        Returns:
            What came of each, in their order.

        Raises:
            EngineError: A function of a request's calls the engine that it is called by, or another call's thread broke
                off a step.
            Exception: What a request failed with; the call's other requests are given up.
        """
        call = _Call(requests, self._hand_over)
        with self._changed:
            if self._stepper == threading.get_ident():
                raise EngineError(
                    "a streamer or another function of a request cannot wait for the engine that calls it"
                )
            self._submitted += call.generations
            self._calls |= {id(generation): call for generation in call.generations}
        try:
            while call.is_open:
                if self._wait_for_turn(call):
                    self._step_for(call)
                call.deliver()
            call.deliver()
            if call.error:
                raise call.error
        except BaseException:  # Ctrl-C, or an error of a request's: leave nothing of these requests behind
            self._give_up(call)
            raise
        return call.generations

    def _wait_for_turn(self, call: _Call) -> bool:
        """Waits until the call has ended, has something to deliver, or has its turn; tells whether it has its turn."""
        with self._changed:
            while call.is_open and not call.pieces and self._stepper is not None:
                self._changed.wait()
            if not call.is_open or call.pieces:
                return False
            if self._thread:
                self._thread.start(self._step_for_all)
                self._stepper = self._thread.ident
                return False
            self._stepper = threading.get_ident()
            return True

    def _step_for(self, call: _Call) -> None:
        """Steps the engine until a call has ended."""
        try:
            while call.is_open:
                self._step()
        except BaseException as error:
            self._fail_others(call, error)
            raise
        finally:
            with self._changed:
                self._stepper = None
                self._changed.notify_all()

    def _step_for_all(self) -> None:
        """Steps the engine in its own thread until no call is left."""
        try:
            while True:
                with self._changed:
                    if not (self._calls or self._due):
                        self._stepper = None
                        self._changed.notify_all()
                        return
                    self._due = max(self._due - 1, 0)
                self._step()
                with self._changed:
                    self._steps += 1
                    self._changed.notify_all()
        except BaseException as error:
            self._fail_others(None, error)
            with self._changed:
                self._stepper = None
                self._changed.notify_all()

    def _step(self) -> None:
        with self._changed:
            submitted, self._submitted = self._submitted, []
        for generation in submitted:
            self._engine.enqueue(generation)
        self._engine.step()
        if self._engine.ended:
            self._tell(self._engine.ended)

    def _tell(self, ended: Sequence[Generation]) -> None:
        """Ends Generations for their calls."""
        with self._changed:
            for generation in ended:
                call = self._calls.pop(id(generation), None)
                if call:  # otherwise its call was given up, or it is of a job that was interrupted
                    call.end(generation)
            self._changed.notify_all()

    def _fail_others(self, call: _Call | None, error: BaseException) -> None:
        """A step broke off in the middle: what the other calls' requests have come to is not known.

        Args:
            call: The call whose thread it broke off in; None where it was the engine's own.
            error: Why.
        """
        where = "another thread's call broke off a step" if call else "a step broke off"
        with self._changed:
            others = {id(other): other for other in self._calls.values() if other is not call}
            for other in others.values():
                other.error = EngineError(f"{where}: {one_line(error)}")
                other.error.__cause__ = error

    def _hand_over(self, call: _Call, function: Callable[[Any], object], value: Any) -> None:
        """Lets the call's own thread call a function."""
        with self._changed:
            call.pieces.append((function, value))
            self._changed.notify_all()

    def _give_up(self, call: _Call) -> None:
        """Takes a call's requests out of the engine: at once, or before the next step of another call's thread."""
        ours = set(map(id, call.generations))
        with self._changed:
            unseen = set(map(id, self._submitted))
            known = [one for one in call.generations if id(one) not in unseen]  # to the engine
            self._submitted = [one for one in self._submitted if id(one) not in ours]
            for generation in call.generations:
                self._calls.pop(id(generation), None)
            if self._stepper == threading.get_ident():  # it was interrupted when it had just got its turn
                self._stepper = None
                self._changed.notify_all()
            if self._stepper is None:
                if known:
                    self._engine.abandon(known)
                return
            for generation in call.generations:
                if not generation.finish_reason:
                    self._engine.cancel(generation)
            if self._thread:
                # The step that runs may have looked for cancelled ones already.
                self._due = 2
                enough = self._steps + self._due
                self._changed.wait_for(lambda: self._stepper is None or self._steps >= enough)

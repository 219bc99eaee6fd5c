"""The sequences of one HTTP request, while they run: what comes of them, and their end with the client's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ClientGoneError, ServerError, engine_stopped, error_of, shutting_down

if TYPE_CHECKING:
    from starlette.types import Receive

    from ..engine.generation import Generation
    from ..engine.request import Request
    from ..engine.service import Service, Submission
    from .admission import Admission
    from .mailbox import Mailbox
    from .metrics import Metrics, Timing
    from .text_filter import TextFilter


@dataclass(frozen=True)
class Update:
    """What a step has brought to one sequence.

    Args:
        index: The sequence's number in its call.
        text: The text that is final with it; it may be empty.
        tokens: The number of new tokens that the sequence has by now.
        ended: Whether nothing follows.
    """

    index: int
    text: str = ""
    tokens: int = 0
    ended: bool = False


class Call:
    """Requests of one client that run together. Make it with `start`.

    Whatever ends the client's interest (it disconnects, its answer fails, its task is cancelled) ends the sequences
    before the engine's next step: use `results` or `updates` inside `watched`.

    Attributes:
        submissions: One for each request, in their order.
    """

    def __init__(
        self, service: Service, mailbox: Mailbox, admission: Admission, text_filter: TextFilter | None = None
    ) -> None:
        self.submissions: list[Submission] = []
        self._filter = text_filter
        self._filtered: dict[int, Generation] = {}  # what the filter has made of sequences that have ended
        self._not_judged: dict[int, ServerError] = {}  # why it has made nothing of them
        self._judging: set[asyncio.Task[None]] = set()
        self._service = service
        self._give = admission.give
        self._mailbox = mailbox
        self._updates: asyncio.Queue[Update] = asyncio.Queue()
        self._running = 0
        self._all_ended = asyncio.Event()
        self._cut_by: BaseException | None = None

    @classmethod
    def start(
        cls,
        requests: Sequence[Request],
        service: Service,
        admission: Admission,
        mailbox: Mailbox,
        metrics: Metrics,
        streams: bool,
        text_filter: TextFilter | None = None,
    ) -> Call:
        """Submits requests that have been checked. It does not wait.

        Args:
            requests: The requests. None of them has on_token or on_text.
            service: The service that runs them.
            admission: What counts them.
            mailbox: The way into this thread's loop.
            metrics: What is told of their tokens.
            streams: Whether `updates` will be asked for text as it comes.
            text_filter: Judges their texts before they are sent.

        Raises:
            ServerError: They are not taken in; see Admission.take. Or the engine is broken.
        """
        count = sum(request.slots for request in requests)
        admission.take(count)
        call = cls(service, mailbox, admission, text_filter)
        handed_over = 0  # to submissions, with whose ends they are given back
        try:
            for index, request in enumerate(requests):
                timing = metrics.sequence(len(request.prompt))
                if request.beams is None:  # beams know their tokens in the end alone
                    on_text = call._sender(index, timing) if streams else None
                    request = dataclasses.replace(request, on_token=timing.token, on_text=on_text)
                submission = service.submit(request)
                call._running += 1
                call.submissions.append(submission)
                submission.add_done_callback(timing.end)
                submission.add_done_callback(call._ender(index))
                handed_over += request.slots
        except BaseException as error:
            call.cancel()
            admission.give(count - handed_over)
            if service.failure is not None:
                raise engine_stopped(service.failure) from error
            raise
        return call

    # ---- what comes of it

    @contextlib.asynccontextmanager
    async def watched(self, receive: Receive) -> AsyncIterator[None]:
        """Inside the block, a client that disconnects ends the sequences; so does leaving it before their end."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self.cancel()

    async def results(self) -> list[Generation]:
        """Waits for all sequences.

        Returns:
            What came of them, in the order of the requests.

        Raises:
            ClientGoneError: The client has disconnected.
            ServerError: One of them failed, or the server ends.
        """
        await self._all_ended.wait()
        return [self.result(index) for index in range(len(self.submissions))]

    async def updates(self) -> AsyncIterator[list[Update]]:
        """Yields what comes, until all sequences have ended: all updates that are there, in their order.

        Where texts are filtered, nothing comes of a sequence before its end, and then all of it.

        Raises:
            ClientGoneError, ServerError: See results.
        """
        left = len(self.submissions)
        while left:
            updates = [await self._updates.get()]
            while not self._updates.empty():
                updates.append(self._updates.get_nowait())
            for update in updates:
                if update.ended:
                    left -= 1
                    self.result(update.index)
            yield updates if self._filter is None else [self._whole(each) for each in updates if each.ended]

    def result(self, index: int) -> Generation:
        """What came of a sequence that has ended; where texts are filtered, what the filter has made of it.

        Raises:
            ClientGoneError, ServerError: See results.
        """
        submission = self.submissions[index]
        error = submission.exception()
        if error is not None:
            if self._service.failure is not None:
                raise engine_stopped(self._service.failure) from error
            raise error_of(error) from error
        generation = submission.result()
        if generation.finish_reason == "cancelled":
            raise self._cut_by or shutting_down()
        if self._filter is None:
            return generation
        if self._cut_by or index in self._not_judged:
            raise self._cut_by or self._not_judged[index]
        return self._filtered[index]

    def generation(self, index: int) -> Generation:
        """What has come of a sequence so far; where texts are filtered, what the filter has made of it."""
        return self._filtered.get(index) or self.submissions[index].generation

    def _whole(self, update: Update) -> Update:
        generation = self.result(update.index)
        return dataclasses.replace(update, text=generation.text, tokens=len(generation.tokens))

    # ---- how it ends early

    def cut(self, error: ServerError) -> None:
        """Ends the sequences, and lets the client know the error."""
        self._cut_by = self._cut_by or error
        self.cancel()

    def cancel(self) -> None:
        """Ends those sequences that still run, before the engine's next step."""
        for submission in self.submissions:
            if not submission.done():
                submission.cancel()

    async def _watch(self, receive: Receive) -> None:
        await disconnected(receive)
        self._cut_by = self._cut_by or ClientGoneError()
        self.cancel()

    # ---- called in the engine's thread

    def _sender(self, index: int, timing: Timing) -> Callable[[str], None]:
        """The on_text of a sequence. The engine calls it after on_token, and where no token was possible."""

        def send(text: str) -> None:
            self._mailbox.put(self._updates.put_nowait, Update(index, text, timing.tokens))

        return send

    def _ender(self, index: int) -> Callable[[object], None]:
        def end(done: object) -> None:
            self._mailbox.put(self._end, index)

        return end

    # ---- called in the loop

    def _end(self, index: int) -> None:
        if self._filter is None:
            self._close(index)
            return
        task = asyncio.create_task(self._judge(index, self._filter))
        self._judging.add(task)  # a loop forgets tasks that nobody holds
        task.add_done_callback(self._judging.discard)

    async def _judge(self, index: int, text_filter: TextFilter) -> None:
        """Has a text judged. It keeps its place in the server until then: texts that wait for it are bounded, too."""
        submission = self.submissions[index]
        try:
            if submission.exception() is None and submission.result().finish_reason != "cancelled":
                self._filtered[index] = await text_filter.apply(submission.result())
        except ServerError as error:
            self._not_judged[index] = error
        finally:
            self._close(index)

    def _close(self, index: int) -> None:
        """Ends a sequence for its client, and gives its place back."""
        generation = self.submissions[index].generation
        self._give(generation.request.slots)
        self._updates.put_nowait(Update(index, "", len(generation.tokens), ended=True))
        self._running -= 1
        if not self._running:
            self._all_ended.set()


async def disconnected(receive: Receive) -> None:
    """Waits until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass

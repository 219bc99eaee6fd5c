"""The one decode loop: any number of sequences, each at its own length and with its own request."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import EngineError, RequestError, one_line

from ..argument_kinds import Whole
from ..device.buckets import MOST_SILENT, bucket_for
from ..device.session import QUANTISED
from .beam_sequence import BeamSequence
from .generation import FinishReason, Generation
from .prefix_cache import PrefixCache
from .request import Request
from .row_ranges import row_ranges
from .sequence import RunningSequence, SingleSequence
from .short_choice import Row, choose_together
from .slots import Slots
from .turns import Turns

if TYPE_CHECKING:
    from ..device.decoder_session import DecoderSession

# Tokens that a prompt may hold up the running sequences for. Longer chunks are no faster.
PREFILL_CHUNK = 256
CUDA_PREFILL_CHUNK = MOST_SILENT
_WORTH_MOVING = 16  # steps that a sequence must still take for its slot to be changed


class Engine:
    """Decodes requests over the slots of one Session. A request gets the same tokens alone and in company.

    Args:
        session: The session. Nobody else may use it meanwhile.
        cache_bytes: The memory that the slots in use may take; most of the free memory where None. A request waits
            until there is room for its longest text.
        prefix_cache_bytes: The memory of the shared-prefix cache beside it; the memory of one context where None. 0
            turns the shared-prefix cache off.

    Attributes:
        slots: Which slots are in use.
        thread: The thread that every step runs in, where the session's steps are captured as CUDA graphs; else None.
        ended: The Generations that ended in the last step.

    Raises:
        RequestError: A number of bytes that is out of range.

    Example:
        >>> engine = Engine(Session("models/onnx", slots=4))
        >>> requests = [Request([464, 3290], max_new_tokens=20), Request([818, 257], max_new_tokens=5)]
        >>> [generation.tokens for generation in engine.generate(requests)]
    """

    def __init__(
        self, session: "DecoderSession", cache_bytes: int | None = None, prefix_cache_bytes: int | None = None
    ) -> None:
        for name, value, least in (("cache_bytes", cache_bytes, 1), ("prefix_cache_bytes", prefix_cache_bytes, 0)):
            if value is not None:
                Whole(least=least).check(name, value)
        self.session = session
        self.config = session.config
        self.ended: list[Generation] = []
        self.prefixes = _prefix_cache(session, prefix_cache_bytes)
        self.slots = Slots(session.cache, cache_bytes, session.slots)
        self._waiting: deque[Generation] = deque()
        self._prefilling: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._any_cancelled = False
        self._is_warm = False
        self.thread = session.thread
        self._turns = Turns(self, self.thread)

    def generate(self, requests: Iterable[Request]) -> list[Generation]:
        """Runs requests to their ends. All are checked before the first one starts.

        Many threads may call it at once: their requests run together, and each gets its own. A request's on_token and
        on_text are called in the thread of its call.

        Returns:
            The Generations, in the order of the requests.

        Raises:
            RequestError: A request that cannot be served; see check.
            EngineError: A function of a request's calls generate itself.
            Exception: What a request failed with; the call's other requests are given up.
        """
        requests = list(requests)
        for request in requests:
            self.check(request)
        return self._turns.run(requests)

    def submit(self, request: Request) -> Generation:
        """Queues a request, for step to run.

        Returns:
            The request's Generation, which grows with each step.

        Raises:
            RequestError: It cannot be served; see check.
        """
        self.check(request)
        generation = Generation(request)
        self.enqueue(generation)
        return generation

    def enqueue(self, generation: Generation) -> None:
        """Queues a Generation whose request has been checked."""
        self._waiting.append(generation)
        if generation.cancelled:  # by now
            self._any_cancelled = True

    @property
    def waiting(self) -> int:
        """The number of requests that are queued and have no slot yet."""
        return len(self._waiting)

    def cancel(self, generation: Generation) -> None:
        """Ends a Generation before the next step, as "cancelled". It may be called from any thread, at any time.

        A Generation that has ended stays as it is.
        """
        generation.cancelled = True
        self._any_cancelled = True  # in this order: a step that sees the second sees the first

    def check(self, request: Request) -> None:
        """Raises RequestError where a request cannot be served: its prompt's ids, lengths, options, or memory."""
        if not isinstance(request, Request):
            raise RequestError(f"not a Request, but {type(request).__name__}")
        request.check(self.config)
        self.slots.check(request.slots, request.most_cached(self.config))

    def step(self) -> bool:
        """Admits the requests that fit, prefills one chunk of one prompt, and decodes one token of every running one.

        Where a run of the session fails, the requests in it end with an error, and the others go on. An engine that has
        a thread of its own runs the step there, with the functions of the requests.

        Returns:
            Whether anything is left to do.
        """
        return self.thread.run(self._step) if self.thread else self._step()

    def warm_up(self) -> None:
        """Prepares the session for its first step. The first step does it, too; call it earlier to save it the time."""
        if self.thread:
            self.thread.run(self._warm_up)
        else:
            self._warm_up()

    def _warm_up(self) -> None:
        if not self._is_warm:
            self.session.warm_up()
            self._is_warm = True

    def _step(self) -> bool:
        if not self._is_warm:
            self._warm_up()
        self.ended = []
        if self._any_cancelled:
            self._any_cancelled = False
            self._drop_cancelled()
        self._admit()
        if self._prefilling:
            with self._failing([self._prefilling[0]]):
                self._prefill_chunk(self._prefilling[0])
        if self._running:
            self._decode()
        return bool(self._waiting or self._prefilling or self._running)

    # ---- the queue

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0].request
            slots = self.slots.take(request.slots, request.most_cached(self.config))
            if slots is None:
                return
            generation = self._waiting.popleft()
            try:
                self._prefilling.append(self._sequence(generation, slots))
            except Exception as error:  # what check cannot know: a tokenizer's, or a logits processor's of its own
                self.slots.give(slots)
                self._fail(generation, error)

    def _sequence(self, generation: Generation, slots: list[int]) -> RunningSequence:
        if generation.request.beams:
            return BeamSequence(generation, slots, self.config, self.session.cache)
        return SingleSequence(generation, slots, self.config)

    def _drop_cancelled(self) -> None:
        held = [sequence.generation for sequence in (*self._prefilling, *self._running)]
        cancelled = [generation for generation in (*self._waiting, *held) if generation.cancelled]
        self.abandon(cancelled)
        for generation in cancelled:
            generation.finish(FinishReason.CANCELLED)
        self.ended += cancelled

    @contextlib.contextmanager
    def _failing(self, sequences: Iterable[RunningSequence]) -> Iterator[None]:
        """Where a run fails, the requests in it end with the error, and the engine goes on."""
        try:
            yield
        except Exception as error:
            running = [one.generation for one in sequences if not one.generation.finish_reason]
            for generation in running:
                failure = EngineError(f"a step of {len(running)} requests failed: {one_line(error)}")
                failure.__cause__ = error
                self._fail(generation, failure)

    def _fail(self, generation: Generation, error: Exception) -> None:
        self.abandon([generation])
        generation.fail(error)
        self.ended.append(generation)

    def abandon(self, generations: Iterable[Generation]) -> None:
        """Takes Generations out of the queue and out of their slots. No step may run meanwhile."""
        ours = set(map(id, generations))
        self._waiting = deque(one for one in self._waiting if id(one) not in ours)
        for sequence in (*self._prefilling, *self._running):
            if id(sequence.generation) in ours:
                self.slots.give(sequence.slots)
        self._prefilling = deque(one for one in self._prefilling if id(one.generation) not in ours)
        self._running = [one for one in self._running if id(one.generation) not in ours]

    # ---- one step

    @property
    def _chunk(self) -> int:
        return CUDA_PREFILL_CHUNK if self.session.device == "cuda" else PREFILL_CHUNK

    def _prefill_chunk(self, sequence: RunningSequence) -> None:
        request = sequence.generation.request
        slot = sequence.slots[0]
        wanted = request.prompt_logprobs is not None
        if sequence.cached == 0:
            sequence.begin()
            if self.prefixes and not wanted:
                sequence.keys = self.prefixes.keys(request.prompt)
                sequence.cached = self.prefixes.load(slot, sequence.keys)
        # Where tokens without logits are cheaper, the last token is decoded with the others' tokens.
        # A sequence's first one is not: learned keys come before it, and all rows of a step have them or none. Nor is
        # one with beams: it runs in one slot, and its logits are all beams'.
        length = len(request.prompt)
        joins = self.session.prefers_silent_prompts and not wanted and not request.beams and length > 1
        begin = sequence.cached
        end = length - 1 if joins else length
        chunk = request.prompt[begin : min(begin + self._chunk, end)]
        if chunk:
            last = begin + len(chunk) == length
            if wanted:
                logits = self.session.prefill(slot, chunk, begin, logits_of="all")
            else:
                logits = self.session.prefill(slot, chunk, begin, logits_of=1 if last else 0)
            sequence.cached += len(chunk)
            if wanted:
                sequence.see_prompt(begin, logits)
            if self.prefixes:
                self.prefixes.save(slot, sequence.keys, begin, sequence.cached)
        if sequence.cached == end:
            self._prefilling.popleft()
            self._running.append(sequence)
            if not joins:
                self._choose(sequence, logits[-1:])

    def _decode(self) -> None:
        if len(self._running) == 1 and self._decode_guessed(self._running[0]):
            return
        # A moved text is there twice for a moment.
        if not (self._waiting or self._prefilling or self.slots.tight):
            self._close_ranks()
        rows = self._run_rows()
        chosen = choose_together(self._running, rows, self.config.n_vocab)
        for sequence in list(self._running):
            sequence.cached += 1
            if sequence in chosen:
                self._go_on(sequence, partial(sequence.take_short, chosen[sequence]))
                continue
            with self._failing([sequence]):
                logits = [rows[slot].logits for slot in sequence.slots]
                self._choose(sequence, logits[0][None] if len(logits) == 1 else np.stack(logits))

    def _run_rows(self) -> dict[int, Row]:
        """Decodes the next token of every running slot: {slot: its row}."""
        rows: dict[int, tuple[RunningSequence, int]] = {}
        for sequence in self._running:
            for slot, token in zip(sequence.slots, sequence.inputs, strict=True):
                rows[slot] = (sequence, token)
        # What a half-prefilled slot takes as an idle row is written over later.
        idle = {one.slots[0]: one.cached for one in self._prefilling}
        cache = self.session.cache
        held = [slot for slot, cached in idle.items() if not cache.can_idle(cached)]
        kept = {}
        if self.session.in_pairs:  # each row has a partner: these are run along, and get back what that destroys
            kept = {slot: cache.keep(slot) for slot in held}
            held = []
        decoded: dict[int, Row] = {}
        for first, end in self._ranges(sorted(rows), held):
            tokens = np.zeros(end - first, np.int64)
            past = np.zeros(end - first, np.int64)
            inverse_temperatures = None  # ones, as long as nobody wants another
            running = []
            for slot in range(first, end):
                if slot in rows:
                    sequence, tokens[slot - first] = rows[slot]
                    past[slot - first] = sequence.cached
                    if (rule := sequence.short_rule) and rule.temperature != 1:
                        if inverse_temperatures is None:
                            inverse_temperatures = np.ones(end - first, np.float32)
                        inverse_temperatures[slot - first] = 1 / rule.temperature
                    running.append(sequence)
                else:
                    past[slot - first] = idle.get(slot, 0)
            with self._failing(dict.fromkeys(running)):
                step = self.session.decode(first, tokens, past, inverse_temperatures)
                decoded |= {slot: Row(step, slot - first) for slot in range(first, end)}
        for slot, memory in kept.items():
            cache.put_back(slot, memory)
        return decoded

    def _ranges(self, running: list[int], held: list[int]) -> list[tuple[int, int]]:
        """The ranges of slots to run: see row_ranges. Where there are buckets, the smallest one that has them all."""
        if self.session.buckets:
            return [(0, bucket_for(self.session.buckets, running[-1] + 1))]
        return row_ranges(running, held, self.session.cache.slots, self.session.in_pairs)

    def _decode_guessed(self, sequence: RunningSequence) -> bool:
        """Runs the one sequence's next token together with guesses of those after it; False without guesses."""
        guessed = sequence.guess(self.session.cache.room(sequence.cached + 1))
        if not guessed:
            return False
        with self._failing([sequence]):
            tokens = [*sequence.inputs, *guessed]
            logits = self.session.prefill(sequence.slots[0], tokens, sequence.cached, logits_of="all")
            sequence.cached += 1
            self._choose(sequence, logits, guessed)
        return True

    def _close_ranks(self) -> None:
        """Moves the text in the last slot to a free slot before it, so that fewer idle rows are run along."""
        sequence = max(self._running, key=lambda one: max(one.slots))
        source = max(sequence.slots)
        if self.session.buckets:
            rows = sum(len(one.slots) for one in self._running)
            if bucket_for(self.session.buckets, rows) == bucket_for(self.session.buckets, source + 1):
                return  # as many rows would run
        target = self.slots.lowest_free
        if target is not None and target < source and sequence.left >= _WORTH_MOVING:
            self.slots.move(source, target)
            self.session.cache.copy(source, target, 0, sequence.cached)
            sequence.slots[sequence.slots.index(source)] = target

    def _choose(self, sequence: RunningSequence, logits: np.ndarray, guessed: list[int] | None = None) -> None:
        """Takes the next tokens from their logits, and ends the request where that is due."""
        self._go_on(sequence, partial(sequence.take, logits, guessed or ()))

    def _go_on(self, sequence: RunningSequence, take: Callable[[], None]) -> None:
        """Lets a sequence take what was decoded, and ends the request where that is due."""
        generation = sequence.generation
        try:
            take()
        except Exception as error:  # of a function of the request's own
            self._fail(generation, error)
            return
        if generation.finish_reason:
            self._running.remove(sequence)
            self.slots.give(sequence.slots)
            self.ended.append(generation)


def _prefix_cache(session: "DecoderSession", limit: int | None) -> PrefixCache | None:
    cache = session.cache
    if cache.has_sums or limit == 0:
        return None
    # The CPU rounds activations of quantised weights. There a prompt must be cut where it is without the cache: other
    # pieces are rounded otherwise.
    rounds = cache.device == "cpu" and session.precision in QUANTISED
    prefixes = PrefixCache(cache, limit, PREFILL_CHUNK if rounds else None)
    return prefixes if prefixes.blocks else None

"""The one decode loop: any number of sequences, each at its own length and with its own request."""

import contextlib
from collections import deque

import numpy as np

from neo_tf.errors import EngineError, RequestError, one_line

from ..device.session import QUANTISED
from ..sampling.checks import check_number
from .beam_sequence import BeamSequence
from .prefix_cache import PrefixCache
from .request import Request
from .sequence import Sequence
from .slots import Slots

__all__ = ["Engine", "Request"]

# Tokens: so long may a prompt hold up the sequences that are running. Longer chunks are no faster.
PREFILL_CHUNK = 256
_WORTH_MOVING = 16  # steps that a sequence must still take for its slot to be changed


class Engine:
    """Decodes requests over the slots of one Session; the same tokens alone as in company.

    Args:
        session: a Session.
        cache_bytes: memory that the slots in use may take; most of what is there where None. A request waits until
            there is room for its longest text.
        prefix_cache_bytes: memory of the shared-prefix cache beside it; that of one context where None, 0 for none.

    Raises:
        RequestError: sizes that are none.

    Example:
        >>> engine = Engine(Session("models/onnx", slots=4))
        >>> requests = [Request([464, 3290], max_new_tokens=20), Request([818, 257], max_new_tokens=5)]
        >>> engine.generate(requests)
    """

    def __init__(self, session, cache_bytes=None, prefix_cache_bytes=None):
        for name, value, least in (("cache_bytes", cache_bytes, 1), ("prefix_cache_bytes", prefix_cache_bytes, 0)):
            if value is not None:
                check_number(name, value, int, lambda value, least=least: value >= least, f"be at least {least}")
        self.session, self.config = session, session.config
        self._waiting, self._prefilling, self._running = deque(), deque(), []
        self._slots = Slots(session.cache, cache_bytes, session.slots)
        self.prefixes = _prefix_cache(session, prefix_cache_bytes)
        self._any_cancelled = False
        self.ended = []  # requests that ended in the last step

    @property
    def free_slots(self):
        """How many slots nobody is in."""
        return self._slots.free

    def generate(self, requests):
        """Runs requests to their ends and returns them. All are checked before the first one starts.

        Raises:
            RequestError: see check.
        """
        for request in requests:
            self.check(request)
        try:
            for request in requests:
                self._queue(request)
            ours, busy = {id(request) for request in requests}, True
            while busy:
                busy = self.step()
                for request in self.ended:
                    if request.error and id(request) in ours:
                        raise request.error
        except BaseException:  # Ctrl-C, an error of on_token or of the session: leave nothing of these behind
            self._abandon(requests)
            raise
        return requests

    def submit(self, request):
        """Queues a request, for step to run. Raises RequestError as check does."""
        self.check(request)
        self._queue(request)

    def _queue(self, request):
        if request.queued:
            raise RequestError("the request is queued already: make a new one")
        request.queued = True
        self._waiting.append(request)
        if request.cancelled:  # by now
            self._any_cancelled = True

    def cancel(self, request):
        """Ends a request before the next step, as "cancelled"; may be called from any thread, and at any time."""
        request.cancelled = True
        self._any_cancelled = True  # after it: a step that sees this sees that

    def check(self, request):
        """Raises RequestError where a request cannot be served: its prompt's ids, lengths, options, or memory."""
        if not isinstance(request, Request):
            raise RequestError(f"not a Request, but {type(request).__name__}")
        request.check(self.config)
        self._slots.check(request.slots, self._longest(request))

    def _longest(self, request):
        return len(request.prompt) + request.limit(self.config)

    def step(self):
        """Admits what fits, prefills one chunk of one prompt, and decodes one token of every running sequence.

        Where a run of the session fails, the requests in it end with an error, and the others go on.

        Returns:
            Whether anything is left to do.
        """
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

    def _admit(self):
        while self._waiting:
            request = self._waiting[0]
            slots = self._slots.take(request.slots, self._longest(request))
            if slots is None:
                return
            self._waiting.popleft()
            try:
                if request.beams:
                    sequence = BeamSequence(request, slots, self.config, self.session.cache)
                else:
                    sequence = Sequence(request, slots, self.config)
            except Exception as error:  # of what check cannot know: a tokenizer, or a logits processor of its own
                self._slots.give(slots)
                self._fail(request, error)
                continue
            self._prefilling.append(sequence)

    def _drop_cancelled(self):
        held = [one.request for one in (*self._prefilling, *self._running)]
        cancelled = [request for request in (*self._waiting, *held) if request.cancelled]
        self._abandon(cancelled)
        for request in cancelled:
            request.finish_reason = "cancelled"
        self.ended += cancelled

    @contextlib.contextmanager
    def _failing(self, sequences):
        """Ends the requests of a run that fails, in place of the engine."""
        try:
            yield
        except Exception as error:
            requests = [one.request for one in sequences if not one.request.finish_reason]
            for request in requests:
                failure = EngineError(f"a step of {len(requests)} requests failed: {one_line(error)}")
                failure.__cause__ = error
                self._fail(request, failure)

    def _fail(self, request, error):
        self._abandon([request])
        request.error, request.finish_reason = error, "error"
        self.ended.append(request)

    def _abandon(self, requests):
        """Takes requests out of the queue and their slots."""
        ours = {id(request) for request in requests}
        self._waiting = deque(request for request in self._waiting if id(request) not in ours)
        for sequence in (*self._prefilling, *self._running):
            if id(sequence.request) in ours:
                self._slots.give(sequence.slots)
        self._prefilling = deque(one for one in self._prefilling if id(one.request) not in ours)
        self._running = [one for one in self._running if id(one.request) not in ours]

    # ---- one step

    def _prefill_chunk(self, sequence):
        request, slot = sequence.request, sequence.slots[0]
        wanted = request.prompt_logprobs is not None
        if sequence.cached == 0:
            sequence.begin()
            if self.prefixes and not wanted:
                sequence.keys = self.prefixes.keys(request.prompt)
                sequence.cached = self.prefixes.load(slot, sequence.keys)
        begin, end = sequence.cached, len(request.prompt)
        # Where prompts have a graph of their own, without logits, the last token is decoded with the others' tokens.
        # A sequence's first one is not: learned keys come before it, and all rows of a step have them or none. Nor is
        # one with beams: it runs in one slot, and its logits are all beams'.
        joins = self.session.has_prompt_graph and not (wanted or request.beams) and end > 1
        chunk = request.prompt[begin : min(begin + PREFILL_CHUNK, end - joins)]
        if len(chunk):
            last = begin + len(chunk) == end
            if wanted:
                logits = self.session.prefill(slot, chunk, begin, logits_of="all")
            else:
                logits = self.session.prefill(slot, chunk, begin, logits_of=1 if last else 0)
            sequence.cached += len(chunk)
            if wanted:
                sequence.see_prompt(begin, logits)
            if self.prefixes:
                self.prefixes.save(slot, sequence.keys, begin, sequence.cached)
        if sequence.cached == end - joins:
            self._prefilling.popleft()
            self._running.append(sequence)
            if not joins:
                self._choose(sequence, logits[-1:])

    def _decode(self):
        if len(self._running) == 1 and self._decode_guessed(self._running[0]):
            return
        # A moved text is there twice for a moment.
        if not (self._waiting or self._prefilling or self._slots.tight) and self.session.device == "cpu":
            self._close_ranks()
        rows = {}  # {slot: (sequence, token)}
        for sequence in self._running:
            rows |= {slot: (sequence, token) for slot, token in zip(sequence.slots, sequence.inputs, strict=True)}
        # What a half-prefilled slot takes is written over later.
        idle = {one.slots[0]: one.cached for one in self._prefilling}
        logits = {}
        for first, end in self._ranges(sorted(rows)):
            tokens, past = np.zeros(end - first, np.int64), np.zeros(end - first, np.int64)
            running = []
            for slot in range(first, end):
                if slot in rows:
                    sequence, tokens[slot - first] = rows[slot]
                    past[slot - first] = sequence.cached
                    running.append(sequence)
                else:
                    past[slot - first] = idle.get(slot, 0)
            with self._failing(dict.fromkeys(running)):
                logits |= zip(range(first, end), self.session.decode(first, tokens, past), strict=True)
        for sequence in list(self._running):
            sequence.cached += 1
            slots = sequence.slots
            self._choose(sequence, logits[slots[0]][None] if len(slots) == 1 else np.stack([logits[s] for s in slots]))

    def _decode_guessed(self, sequence):
        """Runs the one sequence's next token together with guesses of those after it; False where there are none."""
        room = self.session.cache.room(sequence.cached + 1)
        guessed = sequence.guess(room)
        if not guessed:
            return False
        with self._failing([sequence]):
            tokens = [*sequence.inputs, *guessed]
            logits = self.session.prefill(sequence.slots[0], tokens, sequence.cached, logits_of="all")
            sequence.cached += 1
            self._choose(sequence, logits, guessed)
        return True

    def _ranges(self, running):
        """Contiguous ranges of slots that cover all running ones, and no half-prefilled one that must not idle."""
        held = sorted(one.slots[0] for one in self._prefilling if not self.session.cache.can_idle(one.cached))
        ranges, first = [], running[0]
        for slot, following in zip(running, [*running[1:], None], strict=True):
            if following is None or any(slot < one < following for one in held):
                ranges.append(self._even(first, slot + 1, held))
                first = following
        return ranges

    def _even(self, first, end, held):
        """The range, with an idle slot more where the session wants even numbers."""
        if not self.session.in_pairs or (end - first) % 2 == 0:
            return first, end
        if end < self.session.cache.slots and end not in held:
            return first, end + 1
        # Else the last odd row is rounded otherwise: a slot between two half-prefilled ones that must not idle.
        return (first - 1, end) if first > 0 and first - 1 not in held else (first, end)

    def _close_ranks(self):
        """Moves what is in the last slot to a free one before it, so that fewer idle ones are stepped along."""
        sequence = max(self._running, key=lambda one: max(one.slots))
        source, target = max(sequence.slots), self._slots.lowest_free
        if target is not None and target < source and sequence.left >= _WORTH_MOVING:
            self._slots.move(source, target)
            self.session.cache.copy(source, target, 0, sequence.cached)
            sequence.slots[sequence.slots.index(source)] = target

    def _choose(self, sequence, logits, guessed=()):
        """Takes the next tokens, and ends the request where it is due."""
        request = sequence.request
        try:
            sequence.take(logits, guessed)
        except Exception as error:  # of a function of the request's own
            self._fail(request, error)
            return
        if request.finish_reason:
            self._running.remove(sequence)
            self._slots.give(sequence.slots)
            self.ended.append(request)


def _prefix_cache(session, limit):
    cache = session.cache
    if cache.device != "cpu" or cache.has_sums or limit == 0:
        return None
    # Quantised, a prompt must be cut where it is without the cache: other pieces are rounded otherwise.
    prefixes = PrefixCache(cache, limit, PREFILL_CHUNK if session.precision in QUANTISED else None)
    return prefixes if prefixes.blocks else None

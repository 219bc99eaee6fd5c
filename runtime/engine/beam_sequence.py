"""A request with beams in its slots: each beam has one, and the cache follows the beams."""

import numpy as np

from ..sampling.beams import BeamSearch
from .stopping import Clock, stop_test, text_of


class BeamSequence:
    """One request that runs with beams; its slots are those of the beams, in their order.

    Args:
        request: a Request with beams.
        slots: as many as it has beams; the prompt goes into the first one.
        config: a GPTNeoConfig.
        cache: the KVCache of the slots.

    Attributes:
        cached: tokens of each beam in the cache.
        keys: of its prompt, for the prefix cache.
    """

    def __init__(self, request, slots, config, cache):
        self.request, self.slots, self.cached = request, slots, 0
        self.keys, self.inputs = [], []
        self._cache, self._limit, self._new = cache, request.limit(config), 0
        self._clock = Clock(request.max_time)
        self._search = BeamSearch(
            request.beams,
            request.sampling,
            request.prompt,
            self._limit,
            request.stop_token_ids,
            request.min_new_tokens,
            stop_test(request),
        )
        # The tokens of each slot, int [slots, length]: the same beginnings need not be copied.
        self._held = np.empty((len(slots), config.n_ctx), np.int64)

    def begin(self):
        """The request's time runs from here."""
        self._clock.begin()

    @property
    def left(self):
        """New tokens that may still come."""
        return self._limit - self._new

    def guess(self, room):
        """Beams guess nothing."""
        return []

    def take(self, logits, guessed=()):
        """Goes on with the best beams: float32 [1, n_vocab] after the prompt, [beams, n_vocab] then."""
        request, first = self.request, self._new == 0
        found = self._search(logits, "time" if self._clock.is_over else None)
        self._new += 1
        if found is None:
            self._finish()
            return
        parents, tokens = found
        if first:
            self._held[:, : self.cached] = request.prompt
            for slot in self.slots[1:]:
                self._cache.copy(self.slots[0], slot, 0, self.cached)
        else:
            self._follow(parents)
        self._held[:, self.cached] = tokens
        self.inputs = tokens.tolist()

    def _follow(self, parents):
        """Lets the beams' slots hold what their parents' do: a slot stays with one of those that go on from it."""
        size, length = len(self.slots), self.cached
        places, unplaced = np.full(size, -1), []  # the old beam whose slot each new one has
        for beam, parent in enumerate(parents):
            if parent in places:
                unplaced.append(beam)
            else:
                places[beam] = parent
        free = [place for place in range(size) if place not in places]
        for beam in unplaced:
            # Of the slots that nobody goes on from, the one that differs last.
            shared = [_shared(self._held[parents[beam], :length], self._held[place, :length]) for place in free]
            best = int(np.argmax(shared))
            place, begin = free.pop(best), shared[best]
            self._cache.copy(self.slots[parents[beam]], self.slots[place], begin, length)
            self._held[place, begin:length] = self._held[parents[beam], begin:length]
            places[beam] = place
        self.slots = [self.slots[place] for place in places]
        self._held[:, :length] = self._held[places, :length]

    def _finish(self):
        request = self.request
        request.hypotheses = self._search.hypotheses
        for one in request.hypotheses:
            if request.tokenizer:
                one.text = text_of(request, one.tokens)
        best = request.hypotheses[0]
        request.tokens, request.text, request.finish_reason = best.tokens, best.text, best.finish_reason


def _shared(one, other):
    """How many first tokens two sequences of one length have in common."""
    different = np.flatnonzero(one != other)
    return int(different[0]) if different.size else len(one)

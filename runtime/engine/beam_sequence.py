"""A request with beams in its slots: each beam has one, and the KV cache follows the beams."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..sampling.beams import BeamSearch
from .generation import FinishReason, Generation
from .stopping import Clock, stop_test, text_of

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from ..device.kv_cache import KVCache
    from .short_choice import ShortToken


class BeamSequence:
    """A request with beams; a RunningSequence. Its slots are those of the beams, in the beams' order.

    Args:
        generation: What comes of the request.
        slots: One slot for each beam; the prompt goes into the first one.
        config: The model's.
        cache: The KV cache that the slots belong to.
    """

    def __init__(self, generation: Generation, slots: list[int], config: "GPTNeoConfig", cache: "KVCache") -> None:
        request = generation.request
        assert request.beams is not None
        self.generation = generation
        self.slots = slots
        self.cached = 0
        self.keys: list[bytes] = []
        self.inputs: list[int] = []
        self._cache = cache
        self._limit = request.limit(config)
        self._new = 0  # tokens so far, of each beam
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
        # The tokens of each slot, int [slots, length]: equal beginnings need not be copied.
        self._held = np.empty((len(slots), config.n_ctx), np.int64)

    @property
    def left(self) -> int:
        """The largest number of new tokens that may still come."""
        return self._limit - self._new

    @property
    def short_rule(self) -> None:
        """None: beams are ranked by whole rows."""
        return None

    def begin(self) -> None:
        """Starts the request's time."""
        self._clock.begin()

    def see_prompt(self, past: int, logits: np.ndarray) -> None:
        """Is never called: Request.check refuses prompt_logprobs with beams."""
        raise NotImplementedError("beams keep no log-probabilities of their prompt")

    def guess(self, room: int) -> list[int]:
        """No tokens: nothing is guessed with beams."""
        return []

    def take(self, logits: np.ndarray, guessed: Sequence[int] = ()) -> None:
        """Goes on with the best beams: float32 [1, n_vocab] after the prompt, [beams, n_vocab] then."""
        first = self._new == 0
        found = self._search(logits, FinishReason.TIME if self._clock.is_over else None)
        self._new += 1
        if found is None:
            self._finish()
            return
        parents, tokens = found
        if first:
            self._held[:, : self.cached] = self.generation.request.prompt
            for slot in self.slots[1:]:
                self._cache.copy(self.slots[0], slot, 0, self.cached)
        else:
            self._follow(parents)
        self._held[:, self.cached] = tokens
        self.inputs = tokens.tolist()

    def take_short(self, chosen: "ShortToken") -> None:
        """Is never called: there is no short_rule."""
        raise NotImplementedError("beams need whole rows")

    def _follow(self, parents: np.ndarray) -> None:
        """Lets the beams' slots hold what their parents' do: a slot stays with one of those that go on from it."""
        size = len(self.slots)
        length = self.cached
        places = np.full(size, -1)  # the old beam whose slot each new one has
        unplaced = []
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
            place = free.pop(best)
            begin = shared[best]
            self._cache.copy(self.slots[parents[beam]], self.slots[place], begin, length)
            self._held[place, begin:length] = self._held[parents[beam], begin:length]
            places[beam] = place
        self.slots = [self.slots[place] for place in places]
        self._held[:, :length] = self._held[places, :length]

    def _finish(self) -> None:
        request = self.generation.request
        hypotheses = self._search.hypotheses
        if request.tokenizer:
            for hypothesis in hypotheses:
                hypothesis.text = text_of(request, hypothesis.tokens)
        self.generation.finish_with(hypotheses)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens two sequences of the same length have in common."""
    different = np.flatnonzero(one != other)
    return int(different[0]) if different.size else len(one)

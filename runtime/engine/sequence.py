"""A request in its slot: how much of it is in the cache, how its tokens are chosen, and when it ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .chooser import Chooser
from .generation import Generation
from .lookup import PromptLookup
from .stopping import Stopping

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

    from ..sampling.short_rows import ShortRule
    from .short_choice import ShortToken


class RunningSequence(Protocol):
    """What the engine runs: one request, in a slot of its own or, with beams, in several.

    Attributes:
        generation: What comes of the request.
        slots: The slots of the KV cache that it has, in the order of its rows.
        cached: The number of its tokens that each of its slots holds.
        keys: Its prompt's keys for the prefix cache.
        inputs: For each slot the token to run next.
        left: The largest number of new tokens that may still come.
        short_rule: How the next token is chosen from the most likely ones alone; None where whole rows are needed.
    """

    generation: Generation
    slots: list[int]
    cached: int
    keys: list[bytes]

    @property
    def inputs(self) -> list[int]: ...  # noqa: D102

    @property
    def left(self) -> int: ...  # noqa: D102

    @property
    def short_rule(self) -> "ShortRule | None": ...  # noqa: D102

    def begin(self) -> None:
        """Starts the request's time: its prefill begins."""

    def see_prompt(self, past: int, logits: np.ndarray) -> None:
        """Keeps the prompt's log-probabilities: float32 [n, n_vocab] after position `past` and the next ones."""

    def guess(self, room: int) -> list[int]:
        """Tokens that may follow the one to run next, at most `room`; often none."""

    def take(self, logits: np.ndarray, guessed: Sequence[int] = ()) -> None:
        """Goes on with the logits of a step, and ends the generation where that is due.

        Args:
            logits: float32 [slots, n_vocab] after the tokens of `inputs` (after the prompt: one row); where tokens
                were guessed [1 + guessed, n_vocab], after the token of `inputs` and after each guess.
            guessed: The tokens that were run after it.

        Raises:
            Exception: Whatever a function of the request's own raises.
        """

    def take_short(self, chosen: "ShortToken") -> None:
        """Goes on with a token that was chosen by `short_rule`; otherwise as `take`."""


class SingleSequence:
    """A request without beams, in one slot; a RunningSequence.

    Args:
        generation: What comes of the request.
        slots: The slot, in a list.
        config: The model's.
    """

    def __init__(self, generation: Generation, slots: list[int], config: "GPTNeoConfig") -> None:
        request = generation.request
        self.generation = generation
        self.slots = slots
        self.cached = 0
        self.keys: list[bytes] = []
        self._limit = request.limit(config)
        self._chooser = Chooser(generation, config)
        self._stopping = Stopping(generation, config)
        self._lookup: PromptLookup | None = None
        if request.prompt_lookup_num_tokens:
            self._lookup = PromptLookup(request.prompt_lookup_num_tokens, request.max_matching_ngram_size)
            self._history = [int(token) for token in request.prompt]

    @property
    def inputs(self) -> list[int]:
        """The last token so far."""
        return self.generation.tokens[-1:] or list(self.generation.request.prompt[-1:])

    @property
    def left(self) -> int:
        """The largest number of new tokens that may still come."""
        return self._limit - len(self.generation.tokens)

    @property
    def short_rule(self) -> "ShortRule | None":
        """See Chooser."""
        return self._chooser.short_rule

    def begin(self) -> None:
        """Starts the request's time."""
        self._stopping.begin()

    def see_prompt(self, past: int, logits: np.ndarray) -> None:
        """Keeps the prompt's log-probabilities; see Chooser."""
        self._chooser.see_prompt(past, logits)

    def guess(self, room: int) -> list[int]:
        """Tokens that may follow the one to run next, at most `room`."""
        most = min(room, self.left - 1)
        if self._lookup is None or most < 1:
            return []
        known = len(self._history) - len(self.generation.request.prompt)
        self._history += self.generation.tokens[known:]
        return self._lookup.guess(self._history, most)

    def take(self, logits: np.ndarray, guessed: Sequence[int] = ()) -> None:
        """Chooses tokens until the request ends, or a token is not the one that was guessed."""
        kept = 0
        for row in range(len(logits)):
            token = self._chooser(logits[row : row + 1])
            self._add(token)
            if self.generation.finish_reason or row == len(guessed) or token != guessed[row]:
                break
            kept += 1
        self.cached += kept  # guesses that held stay in the cache
        if self._lookup and guessed:
            self._lookup.held(len(guessed), kept)

    def take_short(self, chosen: "ShortToken") -> None:
        """Goes on with a token that was chosen by `short_rule`."""
        self._chooser.keep_short(chosen)
        self._add(chosen.token)

    def _add(self, token: int | None) -> None:
        """Adds a token and calls the request's own functions. Without a token the request ends."""
        request = self.generation.request
        text = self._stopping(token)
        if request.on_token and token is not None:
            request.on_token(token)
        if request.on_text:
            request.on_text(text)

"""A request in its slot: how much of it is in the cache, how its tokens are chosen, and when it ends."""

from .chooser import Chooser
from .lookup import PromptLookup
from .stopping import Stopping


class Sequence:
    """One request that runs, in one slot.

    Args:
        request: a Request.
        slots: [slot].
        config: a GPTNeoConfig.

    Attributes:
        cached: tokens of it in the cache.
        keys: of its prompt, for the prefix cache.
        begin, see_prompt: of its Stopping and Chooser.
    """

    def __init__(self, request, slots, config):
        self.request, self.slots, self.cached = request, slots, 0
        self._limit = request.limit(config)
        self.keys = []
        self._chooser, self._stopping = Chooser(request, config), Stopping(request, config)
        self.begin, self.see_prompt = self._stopping.begin, self._chooser.see_prompt
        self._lookup = self._history = None
        if request.prompt_lookup_num_tokens:
            self._lookup = PromptLookup(request.prompt_lookup_num_tokens, request.max_matching_ngram_size)
            self._history = [int(token) for token in request.prompt]

    @property
    def inputs(self):
        """The next token to run, for each slot: the last so far."""
        return self.request.tokens[-1:] or self.request.prompt[-1:]

    @property
    def left(self):
        """New tokens that may still come."""
        return self._limit - len(self.request.tokens)

    def guess(self, room):
        """Tokens that may follow the one to run, at most `room`; [] where none are guessed."""
        most = min(room, self.left - 1)
        if not self._lookup or most < 1:
            return []
        self._history += self.request.tokens[len(self._history) - len(self.request.prompt) :]
        return self._lookup.guess(self._history, most)

    def take(self, logits, guessed=()):
        """Chooses tokens until the request ends, or one is not what was guessed.

        Args:
            logits: float32 [1 + guessed, n_vocab], after the last token and after each guess.
            guessed: tokens that were run after it.

        Raises:
            Exception: whatever a function of the request's own raises.
        """
        request, kept = self.request, 0
        for row in range(len(logits)):
            token = self._chooser(logits[row : row + 1])
            text = self._stopping(token)
            if request.on_token and token is not None:
                request.on_token(token)
            if request.on_text:
                request.on_text(text)
            if request.finish_reason or row == len(guessed) or token != guessed[row]:
                break
            kept += 1
        self.cached += kept  # of what was run beyond the first token, so much stays in the cache
        if guessed:
            self._lookup.held(len(guessed), kept)

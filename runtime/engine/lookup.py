"""Prompt lookup: guesses the next tokens from where the last ones came before (Saxena, 2023).

The engine runs the guesses through the graph together and chooses each token as ever: a guess that is not what was
chosen ends the step, and what the cache took too much is written over.
"""

_SHORTEST = 2  # tokens that must repeat: single ones do it everywhere
_FIRST = 4  # tokens of the first guess
_LONGEST_PAUSE = 32  # steps


class PromptLookup:
    """Guesses of one sequence: longer where they hold, and fewer where they do not.

    Args:
        num_tokens: of a guess, at most.
        ngram: the last so many tokens are looked for, then fewer, down to 2.
    """

    def __init__(self, num_tokens, ngram):
        self._most, self._sizes = num_tokens, range(ngram, min(_SHORTEST, ngram) - 1, -1)
        self._after = {}  # {tokens: the position after their latest occurrence}
        self._length = min(_FIRST, num_tokens)
        self._known = self._pause = self._wait = 0

    def guess(self, tokens, most):
        """The next tokens, as far as they can be guessed.

        Args:
            tokens: the prompt's and the new ones so far, a list that has only grown since the last call.
            most: of them are wanted.

        Returns:
            A list of token ids, often empty.
        """
        if self._wait:
            self._wait -= 1
            return []
        found = self._find(tokens)
        return [] if found is None else tokens[found : found + min(self._length, most)]

    def _find(self, tokens):
        """The position after the latest earlier occurrence of the last tokens."""
        # The last token's own n-grams are not earlier: they enter with the next call.
        for end in range(self._known + 1, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._after[tuple(tokens[end - size : end])] = end
        self._known = len(tokens) - 1
        places = (self._after.get(tuple(tokens[-size:])) for size in self._sizes if size <= len(tokens))
        return next((place for place in places if place is not None), None)

    def held(self, guessed, kept):
        """Learns that of so many guessed tokens the first `kept` were right."""
        if kept == guessed:
            self._length = min(2 * self._length, self._most)
        else:
            self._length = min(max(kept + 1, 2), self._most)
        if kept == 0:
            self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE)
        else:  # a token or two may have been luck
            self._pause = 0 if kept == guessed else self._pause // 2
        self._wait = self._pause

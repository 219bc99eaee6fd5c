"""Prompt lookup: guesses the next tokens from where the last ones came before (Saxena, 2023).

The engine runs the guesses through the graph together and chooses each token as always. A guess that is not the token
that was chosen ends the step; what the cache holds of the wrong guesses is written over.
"""

_SHORTEST = 2  # tokens that must repeat: single tokens repeat everywhere
_FIRST = 4  # tokens of the first guess
_LONGEST_PAUSE = 32  # steps


class PromptLookup:
    """Guesses of one sequence: they become longer where they hold, and fewer where they do not.

    Args:
        num_tokens: The largest number of tokens that one guess has.
        ngram: The number of last tokens that are looked for in the earlier text; then fewer, down to 2.
    """

    def __init__(self, num_tokens: int, ngram: int) -> None:
        self._most = num_tokens
        self._sizes = range(ngram, min(_SHORTEST, ngram) - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # {tokens: the position after their latest occurrence}
        self._length = min(_FIRST, num_tokens)  # of the next guess
        self._known = 0  # tokens whose n-grams are in _after
        self._pause = 0  # steps without a guess after the last wrong one
        self._wait = 0  # steps of the pause that are left

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """The next tokens, as far as they can be guessed.

        Args:
            tokens: The prompt and the new tokens so far; a list that has only grown since the last call.
            most: The largest number of tokens that is wanted.

        Returns:
            Token ids; often none.
        """
        if self._wait:
            self._wait -= 1
            return []
        found = self._find(tokens)
        return [] if found is None else tokens[found : found + min(self._length, most)]

    def _find(self, tokens: list[int]) -> int | None:
        """The position after the latest earlier occurrence of the last tokens."""
        # The n-grams that end with the last token are not earlier ones: they enter with the next call.
        for end in range(self._known + 1, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._after[tuple(tokens[end - size : end])] = end
        self._known = len(tokens) - 1
        places = (self._after.get(tuple(tokens[-size:])) for size in self._sizes if size <= len(tokens))
        return next((place for place in places if place is not None), None)

    def held(self, guessed: int, kept: int) -> None:
        """Learns that of the `guessed` tokens the first `kept` were right."""
        if kept == guessed:
            self._length = min(2 * self._length, self._most)
        else:
            self._length = min(max(kept + 1, 2), self._most)
        if kept == 0:
            self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE)
        else:  # a token or two may have been luck
            self._pause = 0 if kept == guessed else self._pause // 2
        self._wait = self._pause

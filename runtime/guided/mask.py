"""A logits processor that lets a text keep to a grammar."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from neo_tf.errors import RequestError

from .grammars import Grammar


class GrammarMask:
    """Allows the tokens alone by which one text keeps to a grammar; it ends only where the grammar is complete.

    It comes after all other processors, so that none of them can allow a token again.

    Args:
        grammar: The grammar.
        prompt_length: The number of the prompt's tokens, which the grammar does not see.
        stop_token_ids: The ids that end a text.
    """

    def __init__(self, grammar: Grammar, prompt_length: int, stop_token_ids: Iterable[int] = ()) -> None:
        self._name = grammar.name
        self._state = grammar.start()
        self._seen = prompt_length
        self._stops = sorted(set(stop_token_ids))

    def __call__(self, history: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Changes the scores of the next token.

        Args:
            history: int [1, length].
            scores: float32 [1, n_vocab].

        Raises:
            RequestError: The text may not end yet, and no token can come next.
        """
        row = scores[0]
        new = history[0, self._seen :].tolist()
        self._seen = history.shape[1]
        if new:
            self._state.add(new)
        ends = [token for token in self._stops if self._state.may_end_with(token)]
        scores_of_ends = row[ends]
        allowed = self._state.allowed()
        known = min(len(allowed), len(row))  # ids above the tokenizer's have no text
        np.copyto(row[:known], -np.inf, where=~allowed[:known])
        row[known:] = -np.inf
        row[self._stops] = -np.inf
        row[ends] = scores_of_ends
        if not self._state.is_complete and row.max() == -np.inf:
            raise RequestError(
                f"{self._name}: no token is left to go on with; other arguments, such as suppress_tokens, "
                "forbid all that would keep to it"
            )
        return scores

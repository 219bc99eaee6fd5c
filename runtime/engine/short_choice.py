"""Choosing on the device, the engine's side: the short rows of a decode step get their tokens in one pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..sampling.short_rows import WHOLE, ShortRule, choose_short

if TYPE_CHECKING:
    from ..device.decoder_session import DecodedRows
    from .sequence import RunningSequence


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a decode step.

    Args:
        decoded: What the step computed.
        place: Its place in it.
    """

    decoded: "DecodedRows"
    place: int

    @property
    def logits(self) -> np.ndarray:
        """Its logits, float32 [n_vocab]."""
        return self.decoded.logits(self.place)


@dataclass(frozen=True, eq=False)
class ShortToken:
    """A token that was chosen from a row's most likely ones.

    Args:
        token: The token.
        ids: int64 [width], the most likely tokens, among them the token.
        logprobs: float32 [width], their log-probabilities at the request's temperature.
    """

    token: int
    ids: np.ndarray
    logprobs: np.ndarray


def choose_short_rows(
    sequences: Iterable["RunningSequence"], rows: Mapping[int, Row], n_vocab: int
) -> dict["RunningSequence", ShortToken]:
    """Chooses the tokens of all short rows.

    Args:
        sequences: The sequences that were decoded.
        rows: {slot: its row}.
        n_vocab: The size of the vocabulary.

    Returns:
        {sequence: its token}, without those sequences that need their whole rows: by their requests, because the graph
        does not choose, or because this row's most likely tokens are not enough.
    """
    steps: dict[int, list[tuple[RunningSequence, ShortRule, Row]]] = {}  # often one, which is one pass
    for sequence in sequences:
        row = rows[sequence.slots[0]]
        rule = sequence.short_rule
        if rule is not None and row.decoded.top_ids is not None:
            steps.setdefault(id(row.decoded), []).append((sequence, rule, row))
    chosen: dict[RunningSequence, ShortToken] = {}
    for members in steps.values():
        decoded = members[0][2].decoded
        assert decoded.top_ids is not None and decoded.top_logprobs is not None
        places = [row.place for _, _, row in members]
        ids, logprobs = decoded.top_ids[places], decoded.top_logprobs[places]
        tokens = choose_short([rule for _, rule, _ in members], ids, logprobs, n_vocab).tolist()
        for number, (sequence, _, _) in enumerate(members):
            if tokens[number] != WHOLE:
                chosen[sequence] = ShortToken(tokens[number], ids[number], logprobs[number])
    return chosen

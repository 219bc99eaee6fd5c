"""A decode step's tokens that are chosen together: short rows, and rows on the host that top-k cuts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..sampling.short_rows import WHOLE, ShortRule, choose_short
from ..sampling.top_k_rows import draw_top_k, draws_by_top_k

if TYPE_CHECKING:
    from ..device.decoder_session import DecodedRows
    from .sequence import RunningSequence


class Row(NamedTuple):
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
        ids: int64 [width], the most likely tokens, among them the token; None where the graph does not choose.
        logprobs: float32 [width], their log-probabilities at the request's temperature; None likewise.
    """

    token: int
    ids: np.ndarray | None = None
    logprobs: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Member:
    """A sequence whose token may be chosen together with others'."""

    sequence: "RunningSequence"
    rule: ShortRule
    row: Row


def choose_together(
    sequences: Sequence["RunningSequence"], rows: Mapping[int, Row], n_vocab: int
) -> dict["RunningSequence", ShortToken]:
    """Chooses the tokens of all rows that are chosen together.

    Args:
        sequences: The sequences that were decoded.
        rows: {slot: its row}.
        n_vocab: The size of the vocabulary.

    Returns:
        {sequence: its token}, without those sequences that take their whole rows: as their requests need, or because
        this row's most likely tokens are not enough, or where nothing is gained.
    """
    if len(sequences) == 1 and rows[sequences[0].slots[0]].decoded.top_ids is None:
        return {}  # alone, and on the host: nothing is gained
    steps: dict[int, list[_Member]] = {}  # of each DecodedRows; often there is one
    on_host: list[_Member] = []
    for sequence in sequences:
        row = rows[sequence.slots[0]]
        rule = sequence.short_rule
        if rule is None:
            continue
        if row.decoded.top_ids is not None:
            steps.setdefault(id(row.decoded), []).append(_Member(sequence, rule, row))
        elif draws_by_top_k(rule):
            on_host.append(_Member(sequence, rule, row))
    chosen: dict[RunningSequence, ShortToken] = {}
    for members in steps.values():
        chosen |= _choose_short(members, n_vocab)
    if len(on_host) > 1:
        tokens = draw_top_k([one.rule for one in on_host], [one.row.logits for one in on_host])
        for one, token in zip(on_host, tokens.tolist(), strict=True):
            if token != WHOLE:
                chosen[one.sequence] = ShortToken(token)
    return chosen


def _choose_short(members: list[_Member], n_vocab: int) -> dict["RunningSequence", ShortToken]:
    """The tokens of short rows of one DecodedRows, without those whose most likely tokens are not enough."""
    decoded = members[0].row.decoded
    assert decoded.top_ids is not None and decoded.top_logprobs is not None
    places = [one.row.place for one in members]
    ids = decoded.top_ids[places]
    logprobs = decoded.top_logprobs[places]
    tokens = choose_short([one.rule for one in members], ids, logprobs, n_vocab).tolist()
    return {
        one.sequence: ShortToken(token, its_ids, its_logprobs)
        for one, token, its_ids, its_logprobs in zip(members, tokens, ids, logprobs, strict=True)
        if token != WHOLE
    }

"""The shapes of the runs on CUDA: arithmetic on numbers of slots and of tokens.

A captured graph has one shape, and a new shape costs a binding. So there are few of them: rows and tokens are rounded
up, and what a padded run writes into the cache is written over later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Tokens of a run without logits, and of one that computes the logits of all its tokens.
_SILENT = (1, 16, 64, 128, 256, 512)
_SCORED = (1, 16, 128)
MOST_SILENT = _SILENT[-1]
MOST_SCORED = _SCORED[-1]


class Piece(NamedTuple):
    """A run of some tokens of one prompt.

    Args:
        tokens: The number of tokens that run.
        length: How many of them are the prompt's; the others pad it.
        is_scored: Whether the logits of all tokens are wanted, and not of none.
    """

    tokens: int
    length: int
    is_scored: bool


def row_buckets(slots: int) -> tuple[int, ...]:
    """The numbers of slots that a decode step runs, in ascending order: powers of two, and all slots."""
    sizes = []
    size = 1
    while size < slots:
        sizes.append(size)
        size *= 2
    return (*sizes, slots)


def bucket_for(buckets: Sequence[int], rows: int) -> int:
    """The smallest of these numbers of slots that holds this number of rows; without buckets the rows themselves."""
    return next((size for size in buckets if size >= rows), rows)


def pieces(silent: int, scored: int, room: int) -> Iterator[Piece]:
    """The runs of a prompt's tokens.

    Args:
        silent: The number of first tokens whose logits are not wanted.
        scored: The number of tokens after them whose logits are wanted.
        room: The number of positions that the slot has left, at least as many as tokens. Padding stays within it.
    """
    for count, sizes, is_scored in ((silent, _SILENT, False), (scored, _SCORED, True)):
        while count:
            fitting = [size for size in sizes if size <= room]
            tokens = next((size for size in fitting if size >= count), fitting[-1])
            length = min(tokens, count)
            yield Piece(tokens, length, is_scored)
            count -= length
            room -= length

"""From documents' token ids to records: one after the other without a loss, by the original's rules, or one each."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int64]
_NONE = np.zeros(0, np.int64)


class Packer(Protocol):
    """Makes records of the documents that it is given, in their order.

    Attributes:
        lost: The number of token ids so far that are in no record and will be in none.
    """

    lost: int

    def add(self, token_ids: TokenIds, begins_file: bool) -> list[TokenIds]:
        """Takes a document; returns the records that are complete with it.

        Args:
            token_ids: int64 [n], without a separator.
            begins_file: Whether it is the first document of its file.
        """
        ...

    def finish(self) -> list[TokenIds]:
        """The records that are left at the end."""
        ...

    def state(self) -> dict[str, Any]:
        """What a packer must know to go on, in values that JSON has."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where another packer was when it returned `state`."""
        ...


@dataclass
class Stream:
    """All documents as one stream, each with a separator behind it, cut into records. Nothing is lost.

    What is left at the end is filled up with separators. Documents without tokens are left out.

    Args:
        size: The token ids of a record, n_ctx + 1.
        separator: The id behind each document.
        overlap: Whether a record begins with the last token of the one before, so that each token but the very first
            is a label once. Without it the first token of every record never is.
    """

    size: int
    separator: int
    overlap: bool = False
    lost: int = 0
    _rest: TokenIds = field(default_factory=lambda: _NONE)
    _new: int = 0  # of the rest, the token ids that are in no record yet

    def add(self, token_ids: TokenIds, begins_file: bool) -> list[TokenIds]:
        """Takes a document; see Packer."""
        if not len(token_ids):
            return []
        self._rest = np.concatenate([self._rest, token_ids, [self.separator]])
        self._new += len(token_ids) + 1
        return list(self._complete())

    def finish(self) -> list[TokenIds]:
        """The last record, where there are token ids that are in none."""
        if not self._new:
            return []
        filling = np.full(self.size - len(self._rest), self.separator)
        self._new = 0
        return [np.concatenate([self._rest, filling])]

    def state(self) -> dict[str, Any]:
        """What it must know to go on; see Packer."""
        return {"rest": self._rest.tolist(), "new": self._new}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state; see Packer."""
        self._rest = np.asarray(state["rest"], np.int64)
        self._new = state["new"]

    def _complete(self) -> Iterator[TokenIds]:
        step = self.size - 1 if self.overlap else self.size
        start = 0
        while len(self._rest) - start >= self.size:
            yield self._rest[start : start + self.size]
            start += step
        if start:
            self._rest = self._rest[start:]
            self._new = len(self._rest) - (1 if self.overlap else 0)


@dataclass
class OriginalRules:
    """The rules of the original's create_tfrecords.py, which lose the ends of documents.

    A document and a separator are cut into records. What is left is carried to the front of the next document, if that
    is the first of another file; all other ends are lost, as are those of less than `minimum_size` token ids.

    Args:
        size: The token ids of a record, n_ctx + 1.
        separator: The id behind each document.
        minimum_size: The token ids that an end must have to be carried on.
    """

    size: int
    separator: int
    minimum_size: int = 100
    lost: int = 0
    _carried: TokenIds = field(default_factory=lambda: _NONE)

    def add(self, token_ids: TokenIds, begins_file: bool) -> list[TokenIds]:
        """Takes a document; see Packer."""
        if begins_file:
            stream = np.concatenate([self._carried, token_ids, [self.separator]])
        else:
            self.lost += len(self._carried)
            stream = np.concatenate([token_ids, [self.separator]])
        whole = len(stream) // self.size * self.size
        end = stream[whole:]
        self._carried = _NONE
        if len(end) >= self.minimum_size:
            self._carried = end
        else:
            self.lost += len(end)
        return list(stream[:whole].reshape(-1, self.size))

    def finish(self) -> list[TokenIds]:
        """Nothing: what is carried last is lost."""
        self.lost += len(self._carried)
        self._carried = _NONE
        return []

    def state(self) -> dict[str, Any]:
        """What it must know to go on; see Packer."""
        return {"carried": self._carried.tolist(), "lost": self.lost}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state; see Packer."""
        self._carried = np.asarray(state["carried"], np.int64)
        self.lost = state["lost"]


@dataclass
class WholeDocuments:
    """A record for each document that has tokens, without separators, as the original's generic_text reads them."""

    lost: int = 0

    def add(self, token_ids: TokenIds, begins_file: bool) -> list[TokenIds]:
        """Takes a document; see Packer."""
        return [token_ids] if len(token_ids) else []

    def finish(self) -> list[TokenIds]:
        """Nothing is left."""
        return []

    def state(self) -> dict[str, Any]:
        """Nothing must be known to go on."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Has nothing to go on from."""

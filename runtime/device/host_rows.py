"""The rows of a decode step whose logits lie in the host's memory: DecodedRows of a graph that does not choose."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, eq=False)
class HostRows:
    """Logits in the host's memory. It is a DecodedRows.

    Args:
        values: float32 [count, n_vocab], a buffer that a later step writes over.
    """

    values: np.ndarray
    top_ids: ClassVar[None] = None
    top_logprobs: ClassVar[None] = None

    def logits(self, row: int) -> np.ndarray:
        """The logits of a row, float32 [n_vocab]: a view of the buffer."""
        return self.values[row]

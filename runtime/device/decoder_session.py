"""What the engine needs of a session: the interface between the rooms device and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from neo_tf.config import GPTNeoConfig

    from .kv_cache import KVCache


class DecodedRows(Protocol):
    """What a decode step computed for the slots [first, first + count). The next step of such a slot writes over it.

    Where the graph chooses, a row whose request needs nothing but its most likely tokens is a short row: they are
    enough for it. A whole row asks for its logits, which are copied from the device then.
    """

    @property
    def top_ids(self) -> np.ndarray | None:
        """int64 [count, K], each row's most likely tokens, best first; None where the graph does not choose."""
        ...

    @property
    def top_logprobs(self) -> np.ndarray | None:
        """float32 [count, K], their log-probabilities in softmax(logits * inverse_temperature); None as above."""
        ...

    def logits(self, row: int) -> np.ndarray:
        """The logits of a row, float32 [n_vocab]."""
        ...


class DecoderSession(Protocol):
    """A decoder and its KV cache. Session is the one that runs an ONNX folder; a class that wraps it can be another."""

    @property
    def config(self) -> GPTNeoConfig:
        """The model's config."""
        ...

    @property
    def cache(self) -> KVCache:
        """The KV cache, whose slots prefill and decode write."""
        ...

    @property
    def slots(self) -> int:
        """The number of sequences that may be decoded at once. The cache may have one slot more: see in_pairs."""
        ...

    @property
    def device(self) -> str:
        """Where the model runs: "cpu" or "cuda"."""
        ...

    @property
    def precision(self) -> str:
        """The precision of the weights: "fp32", "fp16", "bf16", "int8" or "int4"."""
        ...

    @property
    def has_prompt_graph(self) -> bool:
        """Whether prompts run through a graph of their own, which computes no logits."""
        ...

    @property
    def in_pairs(self) -> bool:
        """Whether decode should be given an even number of slots."""
        ...

    def prefill(
        self, slot: int, token_ids: Sequence[int] | np.ndarray, past: int, logits_of: int | Literal["all"] = 1
    ) -> np.ndarray:
        """Runs several tokens of one sequence.

        Args:
            slot: The sequence's slot, to which the tokens are appended.
            token_ids: int [n], n >= 1; the sequence's next tokens.
            past: The number of tokens that the slot holds already; past + n <= n_ctx.
            logits_of: The number of last tokens whose logits are returned, from 0 to n, or "all" of them. Tokens
                without logits may run faster.

        Returns:
            float32 [logits_of, n_vocab]. The caller may keep it.
        """
        ...

    def decode(
        self, first: int, token_ids: np.ndarray, past: np.ndarray, inverse_temperatures: np.ndarray | None = None
    ) -> DecodedRows:
        """Runs one token of each of several sequences in neighbouring slots, each sequence at its own length.

        Args:
            first: The first slot.
            token_ids: int [count], one token for each of the slots [first, first + count). A slot without a running
                sequence takes any token.
            past: int [count], the number of tokens that each slot holds. An empty slot's 0 lets the token overwrite the
                slot's first position, which does no harm.
            inverse_temperatures: float32 [count], the inverse of the temperature by which each row's most likely tokens
                are weighed, where the graph chooses; None for ones.

        Returns:
            The rows' logits, and their most likely tokens where the graph chooses.
        """
        ...

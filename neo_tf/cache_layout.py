"""The layout of the KV cache: the contract between the exported graphs and the runtime's buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

HEAD_MULTIPLE = 8  # ONNX Runtime's GroupQueryAttention takes head sizes that are multiples of this


@dataclass(frozen=True)
class CachePart:
    """One tensor [batch, heads, rows, columns] of a layer's cache.

    Args:
        layer: The layer's number.
        part: "key" or "value".
        kind: "full" for a row for each position, "window" for the rows of the local window only, or "sums" for linear
            attention's running sums.
        heads: The number of heads.
        rows: The largest number of rows. For "full", this is n_ctx plus the number of learned keys.
        columns: The number of columns.
    """

    layer: int
    part: str
    kind: str
    heads: int
    rows: int
    columns: int

    @property
    def past(self) -> str:
        """The name of the graph's input."""
        return f"past_key_values.{self.layer}.{self.part}"

    @property
    def present(self) -> str:
        """The name of the graph's output."""
        return f"present.{self.layer}.{self.part}"


def padded_head_size(config: GPTNeoConfig) -> int:
    """The head size of decoder.onnx's caches: the model's own, rounded up to a size that GroupQueryAttention takes."""
    return -(-config.head_size // HEAD_MULTIPLE) * HEAD_MULTIPLE


def cache_parts(config: GPTNeoConfig, windowed: bool = True, head_size: int | None = None) -> list[CachePart]:
    """Returns the parts of all layers' caches, in order; layers of attention type "none" have no cache.

    Args:
        config: The model's config.
        windowed: Whether local layers keep only their window, as in decoder.onnx.
        head_size: The number of columns of keys and values; padded_head_size(config) by default.
    """
    columns = head_size or padded_head_size(config)
    parts = []
    for layer, kind in enumerate(config.attention_types):
        if kind == "none":
            continue
        if kind == "linear":
            size = config.head_size
            parts.append(CachePart(layer, "key", "sums", config.n_head, 1, size))
            parts.append(CachePart(layer, "value", "sums", config.n_head, size, size))
            continue
        if kind == "local" and windowed and config.window(layer) < config.n_ctx:
            cached, rows = "window", config.window(layer)
        elif kind == "global":
            cached, rows = "full", config.n_ctx + config.num_mem_kv
        else:
            cached, rows = "full", config.n_ctx
        for part in ("key", "value"):
            parts.append(CachePart(layer, part, cached, config.n_head, rows, columns))
    return parts

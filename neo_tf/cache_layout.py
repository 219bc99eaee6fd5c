"""What a model keeps between steps: the contract between the exported graphs and the runtime's buffers."""

from dataclasses import dataclass

HEAD_MULTIPLE = 8  # ONNX Runtime's GroupQueryAttention takes head sizes of such multiples


@dataclass(frozen=True)
class CachePart:
    """One tensor [batch, heads, rows, columns] of a layer's cache.

    Args:
        layer: its layer.
        part: "key" or "value".
        kind: "full" (a row for each position), "window" (rows of the local window alone), or "sums" (linear
            attention's running sums, of constant size).
        heads, columns: sizes that do not change.
        rows: rows of "full" at n_ctx, learned keys included; the window of "window"; all rows of "sums".
    """

    layer: int
    part: str
    kind: str
    heads: int
    rows: int
    columns: int

    @property
    def past(self):
        """Name of the graph's input."""
        return f"past_key_values.{self.layer}.{self.part}"

    @property
    def present(self):
        """Name of the graph's output."""
        return f"present.{self.layer}.{self.part}"


def padded_head_size(config):
    """Head size of decoder.onnx's caches: padded with zeros to what GroupQueryAttention takes."""
    return -(-config.head_size // HEAD_MULTIPLE) * HEAD_MULTIPLE


def cache_parts(config, windowed=True, head_size=None):
    """The caches of all layers, in order; layers of attention type "none" have none.

    Args:
        config: a GPTNeoConfig.
        windowed: keeps no more than the window of local layers, as decoder.onnx does.
        head_size: columns of keys and values; padded_head_size(config) by default.
    """
    head_size, parts = head_size or padded_head_size(config), []
    for layer, kind in enumerate(config.attention_types):
        if kind == "none":
            continue
        if kind == "linear":
            sizes = {"key": ("sums", 1, config.head_size), "value": ("sums", config.head_size, config.head_size)}
        elif kind == "local" and windowed and config.window(layer) < config.n_ctx:
            sizes = dict.fromkeys(("key", "value"), ("window", config.window(layer), head_size))
        else:
            memory = config.num_mem_kv if kind == "global" else 0
            sizes = dict.fromkeys(("key", "value"), ("full", config.n_ctx + memory, head_size))
        for part, (what, rows, columns) in sizes.items():
            parts.append(CachePart(layer, part, what, config.n_head, rows, columns))
    return parts

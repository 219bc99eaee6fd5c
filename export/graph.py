"""The ONNX twin of neo_tf/model.py: the whole graph, in two flavours of one body."""

from dataclasses import dataclass

import numpy as np

from export.builder import Graph
from export.layers import attn, embed, layer_norm, mlp, unembed


@dataclass
class Cache:
    """The KV cache's inputs and outputs, [batch, heads, positions, head] each, and the lengths that go with it.

    Args:
        graph: the Graph.
        config: a GPTNeoConfig.
        windowed: keeps a local layer's cache as short as its window (sliding_window_cache).
    """

    graph: Graph
    config: object
    windowed: bool
    seqlens_k: str = ""
    total_sequence_length: str = ""

    def is_local(self, layer):
        """Whether the layer's window is shorter than the context: otherwise local and global are the same."""
        return self.config.window(layer) < self.config.n_ctx

    def is_windowed(self, layer):
        """Whether the layer's cache is as short as its window."""
        return self.windowed and self.is_local(layer)

    def names(self, layer):
        """The layer's (past key, past value) and (present key, present value)."""
        return tuple([f"{kind}.{layer}.{part}" for part in ("key", "value")] for kind in ("past_key_values", "present"))

    def declare(self):
        """Declares the inputs and outputs of every layer."""
        for layer in range(self.config.n_layer):
            past, present = self.names(layer)
            length = f"window_{layer}" if self.is_windowed(layer) else "past_sequence_length"
            total = length if self.is_windowed(layer) else "total_sequence_length"
            for name in past:
                self.graph.input(name, np.float32, self._shape(length))
            for name in present:
                self.graph.output(name, np.float32, self._shape(total))

    def _shape(self, length):
        return ["batch_size", self.config.n_head, length, self.config.head_size]


def build_model(checkpoint, weight_file):
    """model.onnx: the graph that everyone can run, with full-length caches and the usual names.

    Inputs: input_ids, attention_mask, position_ids int64; past_key_values.{i}.key|value. num_logits_to_keep is an
    initializer that a caller may override: 0, the default, keeps the logits of every position.
    Outputs: logits [batch, seq, n_vocab]; present.{i}.key|value.
    """
    graph = Graph("model", checkpoint, weight_file)
    cache = Cache(graph, checkpoint.config, windowed=False)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    graph.output("logits", np.float32, ["batch_size", "sequence_length", checkpoint.config.n_vocab])
    cache.declare()
    graph.input("num_logits_to_keep", np.int64, [1], default=np.zeros(1, np.int64))

    # GroupQueryAttention wants lengths, not a mask: [batch, total] -> int32 [batch], and total itself.
    mask, constant = graph.root["attention_mask"], graph.constant
    lengths = mask.op("ReduceSum", "attention_mask", constant([1]), keepdims=0)
    cache.seqlens_k = mask.op("Cast", mask.op("Sub", lengths, constant(1)), to=6, name="seqlens_k")
    total = mask.op("Gather", mask.op("Shape", "attention_mask"), constant(1))
    cache.total_sequence_length = mask.op("Cast", total, to=6, name="total_sequence_length")
    _body(graph, checkpoint.config, cache)
    return graph.model()


def build_decoder(checkpoint, weight_file):
    """decoder.onnx: the graph that the runtime runs, with windowed caches on local layers.

    Inputs: input_ids, position_ids int64 [batch, seq]; seqlens_k int32 [batch], each row's length less one, this
    step's tokens included; total_sequence_length int32, the longest row's length; num_logits_to_keep int64 [1];
    past_key_values.{i}.key|value. Past and present are meant to be one buffer.
    Outputs: logits [batch, kept, n_vocab]; next_tokens int64 [batch, kept], their argmax; present.{i}.key|value.
    """
    graph = Graph("decoder", checkpoint, weight_file)
    cache = Cache(graph, checkpoint.config, windowed=True)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    cache.seqlens_k = graph.input("seqlens_k", np.int32, ["batch_size"])
    cache.total_sequence_length = graph.input("total_sequence_length", np.int32, [])
    graph.input("num_logits_to_keep", np.int64, [1])
    graph.output("logits", np.float32, ["batch_size", "kept", checkpoint.config.n_vocab])
    graph.output("next_tokens", np.int64, ["batch_size", "kept"])
    cache.declare()
    logits = _body(graph, checkpoint.config, cache)
    graph.root["head"].op("ArgMax", logits, axis=-1, keepdims=0, out=["next_tokens"])
    return graph.model()


def block(x, scope, layer, config, cache):
    """One layer of the original: x += attn(norm_1(x)); x += mlp(norm_2(x)). x: [batch, seq, embd]."""
    a = attn(layer_norm(x, scope["norm_1"], config), scope["attn"], layer, config, cache)
    x = scope["attn"].op("Add", x, a, name="Residual")
    m = mlp(layer_norm(x, scope["norm_2"], config), scope["mlp"], config)
    return scope["mlp"].op("Add", x, m, name="Residual")


def _body(graph, config, cache):
    scope = graph.root
    h = embed("input_ids", "position_ids", scope)
    for layer in range(config.n_layer):
        h = block(h, scope[f"h{layer}"], layer, config, cache)
    # The last num_logits_to_keep positions; from -0 = 0, that is all of them, by default.
    keep, constant = scope["num_logits_to_keep"], graph.constant
    start = keep.op("Neg", "num_logits_to_keep")
    h = keep.op("Slice", h, start, constant([2**62]), constant([1]))
    return unembed(layer_norm(h, scope["ln_f"], config), scope, config)

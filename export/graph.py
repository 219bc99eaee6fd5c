"""The ONNX twin of neo_tf/model.py: the graphs of a folder, which share one body."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto

from neo_tf.onnx_folder import HIDDEN_STATES, top_tokens
from neo_tf.variables import layer_scope

from .builder import Graph, Scope, WeightFile
from .cache import Cache
from .cuda_fusions import fuse
from .layers import attn, embed, layer_norm, mlp, rezero, scale_norm, unembed
from .moe import moe
from .precision import Precision

if TYPE_CHECKING:
    from neo_tf.checkpoints import Checkpoint
    from neo_tf.config import GPTNeoConfig


def build_model(checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None = None) -> ModelProto:
    """Builds model.onnx; see model_graph."""
    return model_graph(checkpoint, weight_file, precision).model()


def model_graph(checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None = None) -> Graph:
    """Builds the graph of model.onnx, which every runtime can run, with full-length caches and the usual names.

    Inputs:
        input_ids, position_ids: int64 [batch, seq].
        attention_mask: int64 [batch, past + seq]; 0 where there is no token.
        past_key_values.{i}.key|value: see Cache.names.
        num_logits_to_keep: int64 [1]; the number of last positions whose logits are computed. A caller may leave it
            out: the default 0 means all positions.

    Outputs:
        logits: float32 [batch, seq, n_vocab].
        present.{i}.key|value: see Cache.names.

    Args:
        checkpoint: The checkpoint that holds the weights.
        weight_file: The plan of the data file, which the graph's weights are added to.
        precision: The types of the graph's numbers; fp32 by default.
    """
    graph = Graph("model", checkpoint, weight_file, precision)
    cache = Cache(graph, checkpoint.config, windowed=False, padded=False)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    graph.output("logits", np.float32, ["batch_size", "sequence_length", checkpoint.config.n_vocab])
    cache.declare()
    graph.input("num_logits_to_keep", np.int64, [1], default=np.zeros(1, np.int64))
    # Counted from the end; -0 = 0 is the first position.
    logits_start = graph.root["num_logits_to_keep"].op("Neg", "num_logits_to_keep")
    cache.read_mask()
    _body(graph, checkpoint.config, cache, logits_start)
    return graph


def build_decoder(checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None = None) -> ModelProto:
    """Builds decoder.onnx, the graph that our runtime runs.

    For the CPU, local layers have windowed caches. For CUDA, their caches have full length, and the graph goes on from
    the logits to the most likely tokens; see choose. total_sequence_length and logits_start are read by the host: on
    CUDA they stay in its memory.

    Inputs:
        input_ids, position_ids: int64 [batch, seq].
        seqlens_k: int32 [batch]; each row's length minus one, this step's tokens included.
        total_sequence_length: int32 []; the longest row's length.
        logits_start: int64 [1]; the first of this step's positions whose logits are computed.
        inverse_temperature: float32 [batch, 1, 1]; for CUDA only.
        past_key_values.{i}.key|value: see Cache.names. Past and present are meant to be one buffer.

    Outputs:
        logits: float32 [batch, kept, n_vocab].
        top_logprobs: float32 [batch, kept, K]; for CUDA only.
        top_ids: int64 [batch, kept, K]; for CUDA only.
        present.{i}.key|value: see Cache.names.

    Args:
        checkpoint, weight_file, precision: See model_graph.
    """
    graph, cache = _graph_of_runtime("decoder", checkpoint, weight_file, precision)
    graph.input("logits_start", np.int64, [1])
    graph.output("logits", np.float32, ["batch_size", "kept", checkpoint.config.n_vocab])
    if graph.precision.chooses:
        _declare_choice(graph, checkpoint.config)
    cache.declare()
    _body(graph, checkpoint.config, cache, "logits_start")
    if graph.precision.chooses:
        choose("logits", graph.root, checkpoint.config)
    return graph.model()


def build_prefill(checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision) -> ModelProto:
    """Builds prefill.onnx: decoder.onnx without its head, for the tokens of a prompt whose logits are not needed.

    It fills the same caches, with the kernels that are fastest for many tokens at a time.

    Args:
        checkpoint, weight_file: See model_graph.
        precision: See Precision.for_prompts.
    """
    graph, cache = _graph_of_runtime("prefill", checkpoint, weight_file, precision)
    cache.declare()
    _body(graph, checkpoint.config, cache, None)
    return graph.model()


def build_encoder(checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None = None) -> ModelProto:
    """Builds encoder.onnx: whole texts without a cache, to the hidden states that the head of the others reads.

    Its weights and kernels are decoder.onnx's own, so that it adds nothing to the data file. Every row begins at
    position 0, and may be padded at its end: no token sees those after it.

    Inputs:
        input_ids: int64 [batch, seq], seq <= n_ctx.

    Outputs:
        last_hidden_state: float32 [batch, seq, embd]; after ln_f, unless the model has none (no_weight_tie).

    Args:
        checkpoint, weight_file, precision: See model_graph.
    """
    config = checkpoint.config
    graph = Graph("encoder", checkpoint, weight_file, precision)
    cache = Cache(graph, config, windowed=False, padded=True)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.output(HIDDEN_STATES, np.float32, ["batch_size", "sequence_length", config.n_embd])
    cache.begin()
    h = _layers(graph, config, cache)
    final = graph.root["ln_f"]
    if not config.no_weight_tie:
        h = layer_norm(h, final, config)
    final.result(final.float32(h), HIDDEN_STATES)
    _fuse(graph)
    return graph.model()


def _graph_of_runtime(
    name: str, checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None
) -> tuple[Graph, Cache]:
    """A Graph and its Cache, with the inputs that decoder.onnx and prefill.onnx share."""
    graph = Graph(name, checkpoint, weight_file, precision)
    cache = Cache(graph, checkpoint.config, windowed=graph.precision.windowed_caches, padded=True)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    cache.seqlens_k = graph.input("seqlens_k", np.int32, ["batch_size"])
    cache.total_sequence_length = graph.input("total_sequence_length", np.int32, [])
    if "linear" in checkpoint.config.attention_types:
        # Whether a row's sequence begins with this step: bool [batch, 1, 1, 1].
        fresh, constant = graph.root["fresh"], graph.constant
        step = fresh.op("Cast", fresh.op("Shape", "input_ids", start=1), to=TensorProto.INT32)
        length = fresh.op("Add", cache.seqlens_k, constant(1, np.int32))
        cache.fresh = fresh.op("Reshape", fresh.op("Equal", length, step), constant([-1, 1, 1, 1]))
    return graph, cache


def choose(logits: str, scope: Scope, config: GPTNeoConfig) -> None:
    """The most likely tokens: log_softmax(logits * inverse_temperature), and the largest of a row.

    They are a few hundred bytes a row, where the logits are 200 KB. There is no ArgMax: on CUDA it needs cuDNN.

    Args:
        logits: float32 [batch, kept, n_vocab].
        scope: The scope that holds the scope of these nodes.
        config: The model's config.
    """
    inner = scope["choose"]
    scaled = inner.op("Mul", logits, "inverse_temperature")
    logprobs = inner.op("LogSoftmax", scaled, axis=-1)
    count = scope.graph.constant([top_tokens(config)])
    # [batch, kept, n_vocab] -> [batch, kept, K], the largest first
    inner.op_several("TopK", logprobs, count, outputs=["top_logprobs", "top_ids"], axis=-1, largest=1, sorted=1)


def _declare_choice(graph: Graph, config: GPTNeoConfig) -> None:
    """Declares the input and the outputs of choose."""
    graph.input("inverse_temperature", np.float32, ["batch_size", 1, 1])
    graph.output("top_logprobs", np.float32, ["batch_size", "kept", top_tokens(config)])
    graph.output("top_ids", np.int64, ["batch_size", "kept", top_tokens(config)])


def block(x: str, scope: Scope, layer: int, config: GPTNeoConfig, cache: Cache) -> str:
    """One layer of the original: x += attn(norm_1(x)); x += mlp(norm_2(x)).

    Attention type "none" adds x to itself. macaron's first mlp has neither a norm nor rezero.

    Args:
        x: [batch, seq, embd].
        scope: The layer's scope.
        layer: The layer's number.
        config: The model's config.
        cache: The graph's cache.

    Returns:
        [batch, seq, embd].
    """
    half = scope.graph.number(0.5)
    if config.macaron:
        m = scope["mlp_macaron"].op("Mul", mlp(x, scope["mlp_macaron"], config), half)
        x = scope["mlp_macaron"].op("Add", x, m, name="Residual")

    def prenorm(x: str, name: str) -> str:
        if config.rezero:
            return x
        return (scale_norm if config.scalenorm else layer_norm)(x, scope[name], config)

    a = x
    if config.attention_types[layer] != "none":
        a = attn(prenorm(x, "norm_1"), scope["attn"], layer, config, cache)
    a = rezero(a, scope["norm_rezero_1"]) if config.rezero else a
    x = scope["attn"].op("Add", x, a, name="Residual")

    h = prenorm(x, "norm_2")
    m = moe(h, scope, config) if layer in config.moe_layers else mlp(h, scope["mlp"], config)
    m = scope["mlp"].op("Mul", m, half) if config.macaron else m
    m = rezero(m, scope["norm_rezero_2"]) if config.rezero else m
    return scope["mlp"].op("Add", x, m, name="Residual")


def _body(graph: Graph, config: GPTNeoConfig, cache: Cache, logits_start: str | None) -> None:
    """Adds the layers to a graph, and the logits from the position logits_start on, int64 [1], unless it is None."""
    root, constant = graph.root, graph.constant
    h = _layers(graph, config, cache)
    if logits_start:
        # [batch, seq, embd] -> [batch, kept, embd] -> [batch, kept, n_vocab]
        h = root["head"].op("Slice", h, logits_start, constant([2**62]), constant([1]))
        unembed(h, root, config)
    _fuse(graph)


def _layers(graph: Graph, config: GPTNeoConfig, cache: Cache) -> str:
    """Adds the embedding and the layers to a graph; returns [batch, seq, embd]."""
    h = embed("input_ids", "position_ids", graph.root, config)
    for layer in range(config.n_layer):
        scope = Scope(graph, f"/h{layer}", f"/{layer_scope(config, layer)}")
        h = block(h, scope, layer, config, cache)
    return h


def _fuse(graph: Graph) -> None:
    if graph.precision.target == "cuda":
        graph.nodes = fuse(graph.nodes, graph.initializers)

"""The ONNX twin of neo_tf/model.py: the whole graph, in two flavours of one body."""

import numpy as np

from neo_tf.variables import layer_scope

from .builder import Graph, Scope
from .cache import INT32, Cache
from .cuda_fusions import fuse
from .layers import attn, embed, layer_norm, mlp, rezero, scale_norm, unembed
from .moe import moe


def build_model(checkpoint, weight_file, precision=None):
    """model.onnx as a ModelProto; see model_graph."""
    return model_graph(checkpoint, weight_file, precision).model()


def model_graph(checkpoint, weight_file, precision=None):
    """model.onnx: the graph that everyone can run, with full-length caches and the usual names.

    Inputs: input_ids, attention_mask, position_ids int64; past_key_values.{i}.key|value. num_logits_to_keep is an
    initializer that a caller may override: 0, the default, keeps the logits of every position.
    Outputs: logits [batch, seq, n_vocab]; present.{i}.key|value.
    """
    graph = Graph("model", checkpoint, weight_file, precision)
    cache = Cache(graph, checkpoint.config, windowed=False)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    graph.output("logits", np.float32, ["batch_size", "sequence_length", checkpoint.config.n_vocab])
    cache.declare()
    graph.input("num_logits_to_keep", np.int64, [1], default=np.zeros(1, np.int64))
    # From the end; -0 = 0 is the first position.
    logits_start = graph.root["num_logits_to_keep"].op("Neg", "num_logits_to_keep")
    cache.read_mask()
    _body(graph, checkpoint.config, cache, logits_start)
    return graph


def build_decoder(checkpoint, weight_file, precision=None):
    """decoder.onnx: the graph that the runtime runs, with windowed caches on local layers.

    Inputs: input_ids, position_ids int64 [batch, seq]; seqlens_k int32 [batch], each row's length less one, this
    step's tokens included; total_sequence_length int32, the longest row's length; logits_start int64 [1], the first
    of this step's tokens whose logits come out; past_key_values.{i}.key|value. Past and present are meant to be one
    buffer. total_sequence_length and logits_start are read by the host: on CUDA they stay in its memory.
    Outputs: logits float32 [batch, kept, n_vocab]; present.{i}.key|value.
    """
    graph, cache = _windowed_graph("decoder", checkpoint, weight_file, precision)
    graph.input("logits_start", np.int64, [1])
    graph.output("logits", np.float32, ["batch_size", "kept", checkpoint.config.n_vocab])
    cache.declare()
    _body(graph, checkpoint.config, cache, "logits_start")
    return graph.model()


def build_prefill(checkpoint, weight_file, precision):
    """prefill.onnx: decoder.onnx without its end, for the tokens of a prompt whose logits nobody asks for.

    It fills the same caches, in the kernels that are fastest for many tokens at a time.
    """
    graph, cache = _windowed_graph("prefill", checkpoint, weight_file, precision)
    cache.declare()
    _body(graph, checkpoint.config, cache, None)
    return graph.model()


def _windowed_graph(name, checkpoint, weight_file, precision):
    """A Graph and its Cache, with the inputs that decoder.onnx and prefill.onnx share."""
    graph = Graph(name, checkpoint, weight_file, precision)
    cache = Cache(graph, checkpoint.config, windowed=True)
    graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    cache.seqlens_k = graph.input("seqlens_k", np.int32, ["batch_size"])
    cache.total_sequence_length = graph.input("total_sequence_length", np.int32, [])
    if "linear" in checkpoint.config.attention_types:
        # Rows whose sequence begins with this step: bool [batch, 1, 1, 1].
        fresh, constant = graph.root["fresh"], graph.constant
        step = fresh.op("Cast", fresh.op("Shape", "input_ids", start=1), to=INT32)
        length = fresh.op("Add", cache.seqlens_k, constant(1, np.int32))
        cache.fresh = fresh.op("Reshape", fresh.op("Equal", length, step), constant([-1, 1, 1, 1]))
    return graph, cache


def block(x, scope, layer, config, cache):
    """One layer of the original: x += attn(norm_1(x)); x += mlp(norm_2(x)). x: [batch, seq, embd].

    Attention type "none" adds x to itself. macaron's first mlp has neither norm nor rezero.
    """
    half = scope.graph.number(0.5)
    if config.macaron:
        m = scope["mlp_macaron"].op("Mul", mlp(x, scope["mlp_macaron"], config), half)
        x = scope["mlp_macaron"].op("Add", x, m, name="Residual")

    def prenorm(x, name):
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


def _body(graph, config, cache, logits_start):
    root, constant = graph.root, graph.constant
    h = embed("input_ids", "position_ids", root, config)
    for layer in range(config.n_layer):
        scope = Scope(graph, f"/h{layer}", f"/{layer_scope(config, layer)}")
        h = block(h, scope, layer, config, cache)
    if logits_start:
        h = unembed(root["head"].op("Slice", h, logits_start, constant([2**62]), constant([1])), root, config)
    if graph.precision.target == "cuda":
        graph.nodes = fuse(graph.nodes, graph.initializers)
    return h

"""The ONNX twin of neo_tf/layers.py: the same functions, names and order, which make nodes instead of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .activations import activation
from .builder import MICROSOFT, Scope
from .cache import Cache
from .matmul import block_matmul, blocks, matmul, padded, padded_outputs
from .standard_ops import standard_head, standard_look_up, standard_rotary

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig


def layer_norm(x: str, scope: Scope, config: GPTNeoConfig) -> str:
    """Normalises the last axis to mean 0 and variance 1, then applies a gain and a bias for each feature."""
    return scope.op(
        "LayerNormalization", x, scope.weight("g"), scope.weight("b"), axis=-1, epsilon=config.layer_norm_epsilon
    )


def scale_norm(x: str, scope: Scope, config: GPTNeoConfig) -> str:
    """Normalises the last axis like layer_norm, then applies one gain for all features."""
    gain = scope.derived("gain", (config.n_embd,), lambda g: np.full(config.n_embd, g, np.float32), "g")
    return scope.op("LayerNormalization", x, gain, axis=-1, epsilon=config.layer_norm_epsilon)


def rezero(x: str, scope: Scope) -> str:
    """Multiplies x with one gain, which is 0 when training starts."""
    return scope.op("Mul", x, scope.weight("g"))


def linear(x: str, scope: Scope) -> str:
    """Returns x @ kernel + bias: [batch, seq, in] -> [batch, seq, out]."""
    return matmul(x, scope, ["kernel"], "kernel", scope.weight("bias"))


def apply_rotary_emb(x: str, scope: Scope, config: GPTNeoConfig, tables: Sequence[str]) -> str:
    """Rotates feature pairs (i, i + head / 2) by the position's angles: [batch, seq, heads * head] -> the same shape.

    Args:
        x: [batch, seq, heads * head].
        scope: The scope that the nodes are named in.
        config: The model's config.
        tables: The cosines and sines, [n_ctx, head / 2] each.
    """
    if scope.graph.precision.standard:
        return standard_rotary(x, scope, config, tables)
    return scope.op(
        "RotaryEmbedding", x, "position_ids", *tables, domain=MICROSOFT, num_heads=config.n_head, interleaved=0
    )


def memory_key_values(k: str, v: str, scope: Scope, config: GPTNeoConfig, cache: Cache) -> tuple[str, str]:
    """Puts the learned keys and values before the others: [batch, seq, heads * head] -> [batch, memory + seq, ...].

    They stay in the cache, so that only a sequence's first step adds them.
    """
    width = config.n_head * config.head_size
    count = cache.memory_rows
    batch = scope.op("Shape", k, start=0, end=1, name="batch")
    shape = scope.op("Concat", batch, count, scope.graph.constant([width]), axis=0, name="memory_shape")

    def prepend(name: str, t: str) -> str:
        memory = scope.derived(f"{name}_rows", (config.num_mem_kv, width), lambda m: m.reshape(-1, width), name)
        memory = scope.op("Slice", memory, scope.graph.constant([0]), count, name=f"{name}_slice")
        memory = scope.op("Expand", memory, shape, name=f"{name}_expand")
        return scope.op("Concat", memory, t, axis=1, name=f"{name}_prepend")

    return prepend("mem_k", k), prepend("mem_v", v)


def causal_linear_attention(
    q: str,
    k: str,
    v: str,
    scope: Scope,
    layer: int,
    config: GPTNeoConfig,
    cache: Cache,
    epsilon: float = 1e-6,
) -> str:
    """Attention by running sums: the softmax of q over its features, the exponential of k.

    The cache holds the sums of k, [batch, heads, 1, head], and of k (x) v, [batch, heads, head, head]. They are
    float32 in every precision, as they run over a whole text.

    Args:
        q, k, v: [batch, seq, heads * head].
        scope: The scope that the nodes are named in.
        layer: The layer's number.
        config: The model's config.
        cache: The graph's cache.
        epsilon: Added to the sums of k.

    Returns:
        [batch, seq, heads * head].
    """
    op = scope.op
    constant = scope.graph.constant
    heads = config.n_head
    head = config.head_size
    past, present = cache.names(layer)

    def split(t: str, perm: list[int], name: str) -> str:
        # [batch, seq, heads * head] -> [batch, seq, heads, head] -> in the order `perm`
        return op("Transpose", op("Reshape", t, constant([0, 0, heads, head])), perm=perm, name=name)

    q, k, v = (scope.float32(t) for t in (q, k, v))
    q = op("Softmax", split(q, [0, 2, 1, 3], "q"), axis=-1)
    k = op("Exp", split(k, [0, 2, 3, 1], "k"))  # [batch, heads, head, seq]
    if cache.mask:  # padded tokens add nothing to the sums
        k = op("Mul", k, cache.step_mask(), name="k_masked")
    v = split(v, [0, 2, 1, 3], "v")
    sum_k = cache.sums(past[0], 1, scope)
    sum_kv = cache.sums(past[1], head, scope)

    # Inside the step: [batch, heads, seq, head] x [batch, heads, head, seq] -> [batch, heads, query, key], causal
    weights = op("Trilu", op("MatMul", q, k, name="weights"), upper=0)
    # Before the step: q times the sums so far
    above = op("Add", op("MatMul", weights, v), op("MatMul", q, sum_kv))
    before = op("MatMul", q, op("Transpose", sum_k, perm=[0, 1, 3, 2]))
    below = op("Add", op("ReduceSum", weights, constant([-1])), before)
    # q sums to 1, so epsilon on every feature's sum is epsilon here
    a = op("Div", above, op("Add", below, constant(epsilon, np.float32)))

    step_k = op("Transpose", op("ReduceSum", k, constant([-1])), perm=[0, 1, 3, 2], name="step_k")
    op("Add", sum_k, step_k, out=present[0], name="present_key")
    op("Add", sum_kv, op("MatMul", k, v, name="step_kv"), out=present[1], name="present_value")
    # [batch, heads, seq, head] -> [batch, seq, heads * head]
    a = op("Reshape", op("Transpose", a, perm=[0, 2, 1, 3], name="merge"), constant([0, 0, heads * head]))
    return scope.native(a)


def attention(
    q: str, k: str | None, v: str | None, scope: Scope, layer: int, config: GPTNeoConfig, cache: Cache
) -> str:
    """Causal attention, **not** divided by sqrt(head size): the scale is written out as 1.

    Args:
        q: [batch, seq, heads * head], or q, k and v side by side, [batch, seq, 3 * heads * head].
        k, v: [batch, seq, heads * head], or None where q holds all three.
        scope: The scope that the nodes are named in.
        layer: The layer's number, which decides the window.
        config: The model's config.
        cache: The graph's cache; the layer's present keys and values become its outputs.

    Returns:
        [batch, seq, heads * head].
    """
    past, present = cache.names(layer)
    attributes: dict[str, Any] = {}
    if cache.is_local(layer):
        attributes["local_window_size"] = config.window(layer)
    if cache.is_windowed(layer):
        attributes["sliding_window_cache"] = 1
    seqlens_k, total = cache.lengths(layer)
    output = f"{scope.path}/GroupQueryAttention"
    inputs = [q, k, v, *past, seqlens_k, total]
    if cache.mask:
        inputs += [None, None, None, cache.padding(layer)]  # no rotary tables, no positions
    scope.op_several(
        "GroupQueryAttention",
        *inputs,
        domain=MICROSOFT,
        outputs=[output, *present],
        num_heads=config.n_head,
        kv_num_heads=config.n_head,
        scale=1.0,
        **attributes,
    )
    return output


def padded_attention(q: str, k: str, v: str, scope: Scope, layer: int, config: GPTNeoConfig, cache: Cache) -> str:
    """Like attention, with zeros after each head's features up to a size that GroupQueryAttention takes."""
    op = scope.op
    constant = scope.graph.constant
    heads = config.n_head
    head = config.head_size
    padded = cache.head_size

    def pad(t: str) -> str:
        # [batch, seq, heads * head] -> [batch, seq, heads, padded] -> [batch, seq, heads * padded]
        t = op("Reshape", t, constant([0, 0, heads, head]))
        t = scope.pad(t, constant([0, 0, 0, 0, 0, 0, 0, padded - head]))
        return op("Reshape", t, constant([0, 0, heads * padded]))

    a = attention(pad(q), pad(k), pad(v), scope, layer, config, cache)
    a = op("Reshape", a, constant([0, 0, heads, padded]))
    a = op("Slice", a, constant([0]), constant([head]), constant([3]))
    return op("Reshape", a, constant([0, 0, heads * head]))


def masked_attention(q: str, k: str, v: str, scope: Scope, layer: int, config: GPTNeoConfig, cache: Cache) -> str:
    """Like attention, in operators of the ONNX standard, with a cache that grows by the step.

    It is for graphs that may not have the fused operator, and for head sizes that the operator does not take.
    """
    op = scope.op
    constant = scope.graph.constant
    heads = config.n_head
    head = config.head_size
    past, present = cache.names(layer)

    def split(t: str) -> str:
        # [batch, seq, heads * head] -> [batch, heads, seq, head]
        return op("Transpose", op("Reshape", t, constant([0, 0, heads, head])), perm=[0, 2, 1, 3])

    keys = op("Concat", past[0], split(k), axis=2, out=present[0], name="keys")
    values = op("Concat", past[1], split(v), axis=2, out=present[1], name="values")
    # [batch, heads, seq, head] x [batch, heads, head, total] -> [batch, heads, seq, total], in float32: without the
    # division by sqrt(head size), fp16 overflows
    logits = op("MatMul", scope.float32(split(q)), scope.float32(op("Transpose", keys, perm=[0, 1, 3, 2])))
    weights = op("Softmax", op("Add", logits, cache.bias(layer)), axis=-1)
    a = op("Transpose", op("MatMul", scope.native(weights), values), perm=[0, 2, 1, 3])
    return op("Reshape", a, constant([0, 0, heads * head]))


def attn(x: str, scope: Scope, layer: int, config: GPTNeoConfig, cache: Cache) -> str:
    """The attention sublayer: q, k and v have no biases and share one product; o has a bias.

    Args:
        x: [batch, seq, embd].
        scope: The scope of the layer's attention.
        layer: The layer's number, which decides the kind of attention and the window.
        config: The model's config.
        cache: The graph's cache.

    Returns:
        [batch, seq, embd].
    """
    kind = config.attention_types[layer]
    inner = scope["attention"]
    remembers = kind == "global" and config.num_mem_kv > 0
    # [batch, seq, embd] -> [batch, seq, 3 * heads * head]
    qkv = matmul(x, scope, ["q", "k", "v"], "qkv")
    if kind != "linear" and not (config.rotary_emb or remembers or cache.masked or cache.pads):
        a = attention(qkv, None, None, inner, layer, config, cache)
    else:
        q, k, v = scope["qkv"].op_several("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        if config.rotary_emb:
            q, k = (apply_rotary_emb(t, scope["rotary"], config, cache.rotary_tables) for t in (q, k))
        if kind == "linear":
            a = causal_linear_attention(q, k, v, inner, layer, config, cache)
        else:
            if remembers:
                k, v = memory_key_values(k, v, inner, config, cache)
                q = cache.lengthen(q, inner)
            if cache.masked:
                a = masked_attention(q, k, v, inner, layer, config, cache)
            elif cache.pads:
                a = padded_attention(q, k, v, inner, layer, config, cache)
            else:
                a = attention(q, k, v, inner, layer, config, cache)
            a = cache.shorten(a, inner) if remembers else a
    # [batch, seq, heads * head] -> [batch, seq, embd]
    a = matmul(a, scope, ["o"], "o")
    bias = scope["compute_output_bias"]
    return bias.op("Add", a, bias.weight("o_b"))


def mlp(x: str, scope: Scope, config: GPTNeoConfig) -> str:
    """The feed-forward sublayer: [batch, seq, embd] -> [batch, seq, inner] -> [batch, seq, embd].

    With mlp_glu, c_fc makes [batch, seq, 2 * inner], and its second half is the activated gate.
    """
    scope = scope["conv1d_main"]
    h = linear(x, scope["c_fc"])
    if config.mlp_glu:
        h, gate = scope["c_fc"].op_several("Split", h, outputs=2, axis=-1, num_outputs=2)
        h = scope["c_fc"].op("Mul", h, activation(gate, scope["c_fc"], config.activation_fn))
    else:
        h = activation(h, scope["c_fc"], config.activation_fn)
    return linear(h, scope["c_proj"])


def axial_positional_emb(scope: Scope, config: GPTNeoConfig) -> str:
    """The position table of axial_pos_emb: row p is (axial_wpe_1[p // b] + axial_wpe_2[p % b]) / 2.

    Returns:
        One initializer [n_ctx, embd]; positions from a * b on have zero vectors.
    """

    def table(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        # [a, 1, embd] + [1, b, embd] -> [a * b, embd]
        sums = ((rows[:, None] + columns[None]) / 2).reshape(-1, config.n_embd)[: config.n_ctx]
        return np.pad(sums, ((0, config.n_ctx - len(sums)), (0, 0)))

    return scope.derived("axial_wpe", (config.n_ctx, config.n_embd), table, "axial_wpe_1", "axial_wpe_2")


def embed(input_ids: str, position_ids: str, scope: Scope, config: GPTNeoConfig) -> str:
    """Adds token and position embedding: int64 [batch, seq] -> [batch, seq, embd]."""
    tokens = look_up(input_ids, scope, config)
    if config.rotary_emb:
        return tokens
    table = axial_positional_emb(scope, config) if config.axial_pos_emb else scope.weight("wpe")
    positions = scope["wpe"].op("Gather", table, position_ids)
    return scope["embed"].op("Add", tokens, positions)


def look_up(input_ids: str, scope: Scope, config: GPTNeoConfig) -> str:
    """Looks up rows of the token embedding, which the head shares: int64 [batch, seq] -> [batch, seq, embd]."""
    precision = scope.graph.precision
    inner = scope["wte"]
    bits = precision.ends
    if bits is None or config.n_embd % precision.block_size(config.n_embd, bits):
        return inner.op("Gather", head_weight("wte", scope, config), input_ids)
    if precision.standard:
        return standard_look_up(input_ids, scope, config)
    rows = padded_outputs(config.n_vocab, precision)
    integers, scales = blocks(scope, ["wte"], "wte", config.n_vocab, config.n_embd, bits, lambda wte: wte, rows)
    view = scope.graph.add_view(f"{integers}/rows", np.uint8, (rows, config.n_embd * bits // 8), integers)
    return inner.op(
        "GatherBlockQuantized",
        view,
        input_ids,
        scales,
        domain=MICROSOFT,
        bits=bits,
        block_size=precision.block_size(config.n_embd, bits),
        gather_axis=0,
        quantize_axis=1,
    )


def head_weight(name: str, scope: Scope, config: GPTNeoConfig) -> str:
    """The embedding `name` as the head's product takes it: [n_vocab, embd], with rows of zeros added on CUDA."""
    rows = padded_outputs(config.n_vocab, scope.graph.precision)
    return scope.derived(name, (rows, config.n_embd), lambda wte: padded(wte, rows), name)


def unembed(h: str, scope: Scope, config: GPTNeoConfig) -> str:
    """Logits: [batch, seq, embd] -> float32 [batch, seq, n_vocab], by an embedding after ln_f or by a linear layer.

    One stored embedding serves both ends. For the product on the CPU, ONNX Runtime packs a copy of it: the unpacked
    product (wte @ h^T) saves that memory, but reads at 0.7 of the speed for a single row.
    """
    head = scope["head"]
    constant = scope.graph.constant
    precision = scope.graph.precision
    if config.no_weight_tie:
        logits = linear(h, scope["wte_final_linear"]["conv1d_main"]["linear_out"])
        return head.result(head.float32(logits), "logits")
    h = layer_norm(h, scope["ln_f"], config)
    name = "lm_head" if config.untied_lm_head else "wte"
    bits = precision.ends
    rows = padded_outputs(config.n_vocab, precision)
    if bits is not None and precision.standard:
        logits = standard_head(h, scope, name, config)
    elif bits is not None:
        weight = blocks(scope, [name], name, config.n_vocab, config.n_embd, bits, lambda embedding: embedding, rows)
        logits = block_matmul(h, head, weight, rows, config.n_embd, bits)
    elif precision.target == "cpu":
        shape = head.op("Concat", head.op("Shape", h, start=0, end=2), constant([config.n_vocab]), axis=0)
        # [batch, seq, embd] -> [batch * seq, embd] x [n_vocab, embd]^T -> [batch * seq, n_vocab]
        h = head.op("Reshape", h, constant([-1, config.n_embd]))
        logits = head.op("Reshape", head.op("Gemm", h, head_weight(name, scope, config), transB=1), shape)
    else:
        logits = head.op("FusedMatMul", h, head_weight(name, scope, config), domain=MICROSOFT, transB=1)
    if rows > config.n_vocab:
        logits = head.op("Slice", logits, constant([0]), constant([config.n_vocab]), constant([2]))
    return head.result(head.float32(logits), "logits")

"""The original's layers (its models/layers.py) in Keras: functions of a tensor and the scope of their variables.

export/layers.py is the ONNX twin: the same functions, names and order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras import ops, random

from neo_tf.activations import activation
from neo_tf.rotary import rotary_tables

if TYPE_CHECKING:
    from keras import KerasTensor, Variable

    from neo_tf.config import GPTNeoConfig
    from neo_tf.scope import Scope


def norm(x: KerasTensor, epsilon: float) -> KerasTensor:
    """Normalises the last axis to mean 0 and variance 1, in float32."""
    x = ops.cast(x, "float32")
    x = x - ops.mean(x, axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon)


def layer_norm(x: KerasTensor, scope: Scope, config: GPTNeoConfig) -> KerasTensor:
    """Normalises the last axis to mean 0 and variance 1, then applies a gain and a bias for each feature."""
    y = norm(x, config.layer_norm_epsilon) * ops.cast(scope["g"], "float32") + ops.cast(scope["b"], "float32")
    return ops.cast(y, x.dtype)


def scale_norm(x: KerasTensor, scope: Scope, config: GPTNeoConfig) -> KerasTensor:
    """Normalises the last axis like layer_norm, then applies one gain for all features."""
    return ops.cast(norm(x, config.layer_norm_epsilon) * ops.cast(scope["g"], "float32"), x.dtype)


def rezero(x: KerasTensor, scope: Scope) -> KerasTensor:
    """Multiplies x with one gain, which is 0 when training starts."""
    return x * ops.cast(scope["g"], x.dtype)


def linear(x: KerasTensor, scope: Scope) -> KerasTensor:
    """Returns x @ kernel + bias: [batch, seq, in] -> [batch, seq, out]."""
    return ops.matmul(x, scope["kernel"]) + scope["bias"]


def apply_rotary_emb(x: KerasTensor, config: GPTNeoConfig) -> KerasTensor:
    """Rotates feature pairs (i, i + head / 2) by the position's angles: [batch, seq, heads, head] -> the same shape."""
    # [n_ctx, head / 2] -> [seq, 1, head / 2]
    cos, sin = (ops.cast(table, x.dtype)[: ops.shape(x)[1], None] for table in rotary_tables(config))
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def memory_key_values(k: KerasTensor, v: KerasTensor, scope: Scope) -> tuple[KerasTensor, KerasTensor]:
    """Puts the learned keys and values before the others: [batch, seq, heads, head] -> [batch, memory + seq, ...]."""
    batch = ops.shape(k)[0]

    def prepend(memory: Variable, t: KerasTensor) -> KerasTensor:
        rows = ops.cast(ops.convert_to_tensor(memory), t.dtype)
        return ops.concatenate([ops.tile(rows[None], (batch, 1, 1, 1)), t], axis=1)

    return prepend(scope["mem_k"], k), prepend(scope["mem_v"], v)


def causal_linear_attention(q: KerasTensor, k: KerasTensor, v: KerasTensor, epsilon: float = 1e-6) -> KerasTensor:
    """Attention by running sums: the softmax of q over its features, the exponential of k.

    The original's causal_linear_attention: the sums of k (x) v, weighted by q, over the sums of k, weighted by q.

    Args:
        q, k, v: float32 [batch, seq, heads, head].
        epsilon: Added to the sums of k.

    Returns:
        float32 [batch, seq, heads, head].
    """
    q = ops.softmax(q, axis=-1)
    k = ops.exp(k)
    # [batch, seq, heads, head] x 2 -> [batch, heads, query, key], causal
    weights = ops.tril(ops.einsum("bqhd,bkhd->bhqk", q, k))
    above = ops.einsum("bhqk,bkhd->bqhd", weights, v)
    # q sums to 1, so epsilon on every feature's sum of k is epsilon here
    below = ops.transpose(ops.sum(weights, axis=-1), (0, 2, 1))[..., None] + epsilon
    return above / below


def attention(
    q: KerasTensor,
    k: KerasTensor,
    v: KerasTensor,
    window: int,
    memory: int = 0,
    dropout_rate: float = 0.0,
    seed: random.SeedGenerator | None = None,
) -> KerasTensor:
    """Causal attention, **not** divided by sqrt(head size).

    Args:
        q: float32 [batch, seq, heads, head].
        k, v: float32 [batch, memory + seq, heads, head].
        window: The number of keys that a query sees, its own included: their positions are (query - window, query].
        memory: The number of learned keys in front, which every query sees.
        dropout_rate: The share of the attention weights that is dropped.
        seed: The generator of the dropout's draws.

    Returns:
        float32 [batch, seq, heads, head].
    """
    # [batch, seq, heads, head] x 2 -> [batch, heads, query, key]
    logits = ops.einsum("bqhd,bkhd->bhqk", q, k)
    key = ops.arange(ops.shape(logits)[-1]) - memory
    distance = ops.arange(ops.shape(logits)[-2])[:, None] - key[None, :]
    visible = ops.logical_or(ops.logical_and(distance >= 0, distance < window), key[None, :] < 0)
    weights = ops.softmax(ops.where(visible, logits, -1e9), axis=-1)
    weights = dropout(weights, dropout_rate, seed)
    # [batch, heads, query, key] x [batch, key, heads, head] -> [batch, query, heads, head]
    return ops.einsum("bhqk,bkhd->bqhd", weights, v)


def attn(
    x: KerasTensor,
    scope: Scope,
    layer: int,
    config: GPTNeoConfig,
    training: bool = False,
    seed: random.SeedGenerator | None = None,
) -> KerasTensor:
    """The attention sublayer: q, k and v have no biases and hold the heads side by side; o has a bias.

    Args:
        x: [batch, seq, embd].
        scope: The scope of the layer's attention.
        layer: The layer's number, which decides the kind of attention and the window.
        config: The model's config.
        training: Whether dropout is active.
        seed: The generator of the dropout's draws.

    Returns:
        [batch, seq, embd].
    """
    heads, head = config.n_head, config.head_size
    kind = config.attention_types[layer]
    batch, seq = ops.shape(x)[0], ops.shape(x)[1]
    # [batch, seq, embd] -> float32 [batch, seq, heads, head]
    q, k, v = (ops.reshape(ops.matmul(x, scope[name]), (batch, seq, heads, head)) for name in "qkv")
    q, k, v = (ops.cast(t, "float32") for t in (q, k, v))
    if config.rotary_emb:
        q, k = apply_rotary_emb(q, config), apply_rotary_emb(k, config)
    if kind == "linear":
        a = causal_linear_attention(q, k, v)
    elif kind == "local":
        a = attention(q, k, v, config.window(layer))
    else:
        if config.num_mem_kv:
            k, v = memory_key_values(k, v, scope["attention"])
        rate = config.attn_dropout if training else 0.0
        a = attention(q, k, v, config.window(layer), config.num_mem_kv, rate, seed)
    # [batch, seq, heads, head] -> [batch, seq, embd]
    a = ops.reshape(ops.cast(a, x.dtype), (batch, seq, heads * head))
    a = ops.matmul(a, scope["o"]) + scope["compute_output_bias"]["o_b"]
    return dropout(a, config.res_dropout if training else 0.0, seed)


def mlp(
    x: KerasTensor,
    scope: Scope,
    config: GPTNeoConfig,
    training: bool = False,
    seed: random.SeedGenerator | None = None,
) -> KerasTensor:
    """The feed-forward sublayer: [batch, seq, embd] -> [batch, seq, inner] -> [batch, seq, embd].

    With mlp_glu, c_fc makes [batch, seq, 2 * inner], and its second half is the activated gate.
    """
    scope = scope["conv1d_main"]
    h = linear(x, scope["c_fc"])
    if config.mlp_glu:
        h, gate = ops.split(h, 2, axis=-1)
        h = h * activation(gate, config.activation_fn)
    else:
        h = activation(h, config.activation_fn)
    h = linear(h, scope["c_proj"])
    return dropout(h, config.res_dropout if training else 0.0, seed)


def dropout(x: KerasTensor, rate: float, seed: random.SeedGenerator | None) -> KerasTensor:
    """Drops a share of the elements and scales the rest up; does nothing at rate 0."""
    return random.dropout(x, rate, seed=seed) if rate else x


def axial_positional_emb(scope: Scope, config: GPTNeoConfig) -> KerasTensor:
    """The position table of axial_pos_emb: row p is (axial_wpe_1[p // b] + axial_wpe_2[p % b]) / 2.

    Returns:
        [n_ctx, embd]; positions from a * b on have zero vectors, as the original's one-hot look-up gives them.
    """
    rows, columns = (ops.convert_to_tensor(scope[f"axial_wpe_{number}"]) for number in (1, 2))
    # [a, 1, embd] + [1, b, embd] -> [a * b, embd]
    table = ops.reshape((rows[:, None] + columns[None]) / 2, (-1, config.n_embd))
    missing = max(0, config.n_ctx - table.shape[0])
    return ops.pad(table, ((0, missing), (0, 0)))[: config.n_ctx]


def embed(
    token_ids: KerasTensor,
    scope: Scope,
    config: GPTNeoConfig,
    training: bool = False,
    seed: random.SeedGenerator | None = None,
) -> KerasTensor:
    """Adds token and position embedding, each with its own dropout: int [batch, seq] -> [batch, seq, embd]."""
    rate = config.embed_dropout if training else 0.0
    h = dropout(ops.take(scope["wte"], token_ids, axis=0), rate, seed)
    if config.rotary_emb:
        return h
    wpe = axial_positional_emb(scope, config) if config.axial_pos_emb else ops.convert_to_tensor(scope["wpe"])
    return h + dropout(wpe[: ops.shape(token_ids)[1]], rate, seed)


def unembed(h: KerasTensor, scope: Scope, config: GPTNeoConfig) -> KerasTensor:
    """Logits: [batch, seq, embd] -> float32 [batch, seq, n_vocab], by an embedding after ln_f or by a linear layer."""
    if config.no_weight_tie:
        logits = linear(h, scope["wte_final_linear"]["conv1d_main"]["linear_out"])
    else:
        head = scope["lm_head" if config.untied_lm_head else "wte"]
        logits = ops.matmul(layer_norm(h, scope["ln_f"], config), ops.transpose(head))
    return ops.cast(logits, "float32")

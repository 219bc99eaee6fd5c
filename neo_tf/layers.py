"""The original's layers (its models/layers.py) in Keras: functions of a tensor and the scope of their variables.

export/layers.py is the ONNX twin: the same functions, names and order.
"""

from keras import ops, random

from neo_tf.activations import activation
from neo_tf.rotary import rotary_tables


def norm(x, epsilon):
    """Normalises the last axis to mean 0 and variance 1, in float32."""
    x = ops.cast(x, "float32")
    x = x - ops.mean(x, axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon)


def layer_norm(x, scope, config):
    """norm, then a gain and a bias for each feature."""
    y = norm(x, config.layer_norm_epsilon) * ops.cast(scope["g"], "float32") + ops.cast(scope["b"], "float32")
    return ops.cast(y, x.dtype)


def scale_norm(x, scope, config):
    """norm, then one gain for all features."""
    return ops.cast(norm(x, config.layer_norm_epsilon) * ops.cast(scope["g"], "float32"), x.dtype)


def rezero(x, scope):
    """One gain, which starts at 0."""
    return x * ops.cast(scope["g"], x.dtype)


def linear(x, scope):
    """x @ kernel + bias: [batch, seq, in] -> [batch, seq, out]."""
    return ops.matmul(x, scope["kernel"]) + scope["bias"]


def apply_rotary_emb(x, config):
    """Rotates feature pairs (i, i + head / 2) by the position's angles: [batch, seq, heads, head], same result."""
    # [n_ctx, head / 2] -> [seq, 1, head / 2]
    cos, sin = (ops.cast(table, x.dtype)[: ops.shape(x)[1], None] for table in rotary_tables(config))
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def memory_key_values(k, v, scope):
    """Puts the learned keys and values before the others: [batch, seq, heads, head] -> [batch, memory + seq, ...]."""
    batch = ops.shape(k)[0]

    def prepend(memory, t):
        memory = ops.cast(ops.convert_to_tensor(memory), t.dtype)
        return ops.concatenate([ops.tile(memory[None], (batch, 1, 1, 1)), t], axis=1)

    return prepend(scope["mem_k"], k), prepend(scope["mem_v"], v)


def causal_linear_attention(q, k, v, epsilon=1e-6):
    """Attention by running sums: q softmax over the features, k exponential; float32 [batch, seq, heads, head].

    The original's causal_linear_attention: the sums of k (x) v, weighted by q, over the sums of k, weighted by q.
    """
    q, k = ops.softmax(q, axis=-1), ops.exp(k)
    # [batch, seq, heads, head] x 2 -> [batch, heads, query, key], causal
    weights = ops.tril(ops.einsum("bqhd,bkhd->bhqk", q, k))
    above = ops.einsum("bhqk,bkhd->bqhd", weights, v)
    # q sums to 1, so epsilon on every feature's sum of k is epsilon here
    below = ops.transpose(ops.sum(weights, axis=-1), (0, 2, 1))[..., None] + epsilon
    return above / below


def attention(q, k, v, window, memory=0, dropout_rate=0.0, seed=None):
    """Causal attention, **not** divided by sqrt(head size).

    Args:
        q: float32 [batch, seq, heads, head].
        k, v: float32 [batch, memory + seq, heads, head].
        window: keys that a query sees, itself included: key position in (query - window, query].
        memory: learned keys at the front, which every query sees.
        dropout_rate: of the attention weights, in training.
        seed: keras SeedGenerator for the dropout.

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


def attn(x, scope, layer, config, training=False, seed=None):
    """The attention sublayer: q, k, v without biases, heads side by side in their columns; o with a bias.

    x, result: [batch, seq, embd]. `layer` says which kind of attention and which window applies.
    """
    heads, head, kind = config.n_head, config.head_size, config.attention_types[layer]
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


def mlp(x, scope, config, training=False, seed=None):
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


def dropout(x, rate, seed):
    """Drops a share of the elements and scales the rest up; does nothing at rate 0."""
    return random.dropout(x, rate, seed=seed) if rate else x


def axial_positional_emb(scope, config):
    """The position table of axial_pos_emb: row p is (axial_wpe_1[p // b] + axial_wpe_2[p % b]) / 2.

    Returns:
        [n_ctx, embd]; positions from a * b on have zero vectors, as the original's one-hot look-up gives them.
    """
    rows, columns = (ops.convert_to_tensor(scope[f"axial_wpe_{number}"]) for number in (1, 2))
    # [a, 1, embd] + [1, b, embd] -> [a * b, embd]
    table = ops.reshape((rows[:, None] + columns[None]) / 2, (-1, config.n_embd))
    missing = max(0, config.n_ctx - table.shape[0])
    return ops.pad(table, ((0, missing), (0, 0)))[: config.n_ctx]


def embed(token_ids, scope, config, training=False, seed=None):
    """Token plus position embedding, each with its own dropout: int [batch, seq] -> [batch, seq, embd]."""
    rate = config.embed_dropout if training else 0.0
    h = dropout(ops.take(scope["wte"], token_ids, axis=0), rate, seed)
    if config.rotary_emb:
        return h
    wpe = axial_positional_emb(scope, config) if config.axial_pos_emb else ops.convert_to_tensor(scope["wpe"])
    return h + dropout(wpe[: ops.shape(token_ids)[1]], rate, seed)


def unembed(h, scope, config):
    """Logits: [batch, seq, embd] -> float32 [batch, seq, n_vocab], by an embedding after ln_f or by a layer."""
    if config.no_weight_tie:
        logits = linear(h, scope["wte_final_linear"]["conv1d_main"]["linear_out"])
    else:
        head = scope["lm_head" if config.untied_lm_head else "wte"]
        logits = ops.matmul(layer_norm(h, scope["ln_f"], config), ops.transpose(head))
    return ops.cast(logits, "float32")

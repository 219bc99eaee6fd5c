"""The original's layers (its models/layers.py) in Keras: functions of a tensor and the scope of their variables.

export/layers.py is the ONNX twin: the same functions, names and order.
"""

from keras import ops, random

from neo_tf.activations import activation


def layer_norm(x, scope, config):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it. In float32 at any precision."""
    dtype = x.dtype
    x = ops.cast(x, "float32")
    x = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(x), axis=-1, keepdims=True)
    x = x * ops.rsqrt(variance + config.layer_norm_epsilon)
    x = x * ops.cast(scope["g"], "float32") + ops.cast(scope["b"], "float32")
    return ops.cast(x, dtype)


def linear(x, scope):
    """x @ kernel + bias: [batch, seq, in] -> [batch, seq, out]."""
    return ops.matmul(x, scope["kernel"]) + scope["bias"]


def attention(q, k, v, window, dropout_rate=0.0, seed=None):
    """Causal attention, **not** divided by sqrt(head size), in float32.

    Args:
        q, k, v: [batch, seq, heads, head].
        window: keys that a query sees, itself included: key position in (query - window, query].
        dropout_rate: of the attention weights, in training.
        seed: keras SeedGenerator for the dropout.

    Returns:
        float32 [batch, seq, heads, head].
    """
    q, k, v = (ops.cast(t, "float32") for t in (q, k, v))
    # [batch, seq, heads, head] x 2 -> [batch, heads, query, key]
    logits = ops.einsum("bqhd,bkhd->bhqk", q, k)
    position = ops.arange(ops.shape(logits)[-1])
    distance = position[:, None] - position[None, :]
    visible = ops.logical_and(distance >= 0, distance < window)
    weights = ops.softmax(ops.where(visible, logits, -1e9), axis=-1)
    weights = dropout(weights, dropout_rate, seed)
    # [batch, heads, query, key] x [batch, key, heads, head] -> [batch, query, heads, head]
    return ops.einsum("bhqk,bkhd->bqhd", weights, v)


def attn(x, scope, layer, config, training=False, seed=None):
    """The attention sublayer: q, k, v without biases, heads side by side in their columns; o with a bias.

    x, result: [batch, seq, embd]. `layer` says which window applies.
    """
    heads, head = config.n_head, config.head_size
    batch, seq = ops.shape(x)[0], ops.shape(x)[1]
    # [batch, seq, embd] -> [batch, seq, heads, head]
    q, k, v = (ops.reshape(ops.matmul(x, scope[name]), (batch, seq, heads, head)) for name in "qkv")
    # The original drops attention weights in global layers only.
    rate = config.attn_dropout if training and config.attention_types[layer] == "global" else 0.0
    a = attention(q, k, v, config.window(layer), rate, seed)
    # [batch, seq, heads, head] -> [batch, seq, embd]
    a = ops.reshape(ops.cast(a, x.dtype), (batch, seq, heads * head))
    a = ops.matmul(a, scope["o"]) + scope["compute_output_bias"]["o_b"]
    return dropout(a, config.res_dropout if training else 0.0, seed)


def mlp(x, scope, config, training=False, seed=None):
    """The feed-forward sublayer: [batch, seq, embd] -> [batch, seq, inner] -> [batch, seq, embd]."""
    scope = scope["conv1d_main"]
    h = activation(linear(x, scope["c_fc"]), config.activation_fn)
    h = linear(h, scope["c_proj"])
    return dropout(h, config.res_dropout if training else 0.0, seed)


def dropout(x, rate, seed):
    """Drops a share of the elements and scales the rest up; does nothing at rate 0."""
    return random.dropout(x, rate, seed=seed) if rate else x


def embed(token_ids, scope, config):
    """Token plus position embedding: int [batch, seq] -> [batch, seq, embd]."""
    h = ops.take(scope["wte"], token_ids, axis=0)
    return h + ops.convert_to_tensor(scope["wpe"])[: ops.shape(token_ids)[1]]


def unembed(h, scope):
    """Logits by the tied embedding: [batch, seq, embd] -> float32 [batch, seq, n_vocab]."""
    logits = ops.matmul(h, ops.transpose(scope["wte"]))
    return ops.cast(logits, "float32")


def cross_entropy_with_z_loss(labels, logits, z_loss=1e-4):
    """The original's loss of every token: int [batch, seq], float32 [batch, seq, n_vocab] -> [batch, seq].

    Cross-entropy plus z_loss * log(Z)^2, as mesh_tensorflow's softmax_cross_entropy_with_logits.
    """
    log_z = ops.logsumexp(logits, axis=-1)
    chosen = ops.take_along_axis(logits, ops.cast(labels, "int32")[..., None], axis=-1)[..., 0]
    return log_z - chosen + z_loss * ops.square(log_z)

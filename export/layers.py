"""The ONNX twin of neo_tf/layers.py: the same functions, names and order, as nodes instead of tensors."""

from export.builder import MICROSOFT


def layer_norm(x, scope, config):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it."""
    return scope.op(
        "LayerNormalization", x, scope.weight("g"), scope.weight("b"), axis=-1, epsilon=config.layer_norm_epsilon
    )


def linear(x, scope):
    """x @ kernel + bias: [batch, seq, in] -> [batch, seq, out]."""
    return scope.op("Add", scope.op("MatMul", x, scope.weight("kernel")), scope.weight("bias"))


def attention(qkv, scope, layer, config, cache):
    """Causal attention, **not** divided by sqrt(head size): the scale is written out as 1.

    Args:
        qkv: packed [batch, seq, 3 * heads * head].
        scope: where the node belongs.
        layer: says which window applies.
        cache: the graph's Cache.

    Returns:
        [batch, seq, heads * head]. The layer's present keys and values go to the cache's outputs.
    """
    past, present = cache.names(layer)
    attributes = {"local_window_size": config.window(layer)} if cache.is_local(layer) else {}
    if cache.is_windowed(layer):
        attributes["sliding_window_cache"] = 1
    output = f"{scope.path}/GroupQueryAttention"
    scope.op(
        *("GroupQueryAttention", qkv, None, None, *past, cache.seqlens_k, cache.total_sequence_length),
        domain=MICROSOFT,
        out=[output, *present],
        num_heads=config.n_head,
        kv_num_heads=config.n_head,
        scale=1.0,
        **attributes,
    )
    return output


def attn(x, scope, layer, config, cache):
    """The attention sublayer: q, k, v without biases, side by side in one product; o with a bias.

    x, result: [batch, seq, embd].
    """
    # [batch, seq, embd] -> [batch, seq, 3 * heads * head]
    qkv = scope["qkv"].op("MatMul", x, scope.packed(["q", "k", "v"], "qkv"))
    a = attention(qkv, scope["attention"], layer, config, cache)
    # [batch, seq, heads * head] -> [batch, seq, embd]
    a = scope["o"].op("MatMul", a, scope.weight("o"))
    bias = scope["compute_output_bias"]
    return bias.op("Add", a, bias.weight("o_b"))


def mlp(x, scope, config):
    """The feed-forward sublayer: [batch, seq, embd] -> [batch, seq, inner] -> [batch, seq, embd]."""
    scope = scope["conv1d_main"]
    h = activation(linear(x, scope["c_fc"]), scope["c_fc"], config.activation_fn)
    return linear(h, scope["c_proj"])


def activation(x, scope, name):
    """Applies the original's activation `name`; gelu is the tanh form."""
    if name == "gelu":
        return scope.op("Gelu", x, approximate="tanh")
    operators = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus"}
    operators |= {"elu": "Elu", "selu": "Selu"}
    return scope.op(operators[name], x)


def embed(input_ids, position_ids, scope):
    """Token plus position embedding: int64 [batch, seq] -> [batch, seq, embd]."""
    tokens = scope["wte"].op("Gather", scope.weight("wte"), input_ids)
    positions = scope["wpe"].op("Gather", scope.weight("wpe"), position_ids)
    return scope["embed"].op("Add", tokens, positions)


def unembed(h, scope, config):
    """Logits by the tied embedding: [batch, seq, embd] -> [batch, seq, n_vocab].

    The product is wte @ h^T, so that the embedding is read as it lies: no transposed or packed second copy.
    """
    head, constant = scope["head"], scope.graph.constant
    shape = head.op("Shape", h, start=0, end=2)
    # [batch, seq, embd] -> [embd, batch * seq]
    rows = head.op("Reshape", h, constant([-1, config.n_embd]))
    columns = head.op("Transpose", rows, perm=[1, 0])
    # [n_vocab, embd] x [embd, batch * seq] -> [batch * seq, n_vocab]
    logits = head.op("MatMul", scope.weight("wte"), columns)
    logits = head.op("Transpose", logits, perm=[1, 0], name="TransposeBack")
    shape = head.op("Concat", shape, constant([config.n_vocab]), axis=0)
    return head.op("Reshape", logits, shape, out=["logits"], name="ReshapeBack")

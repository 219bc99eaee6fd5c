"""Mixture of experts: mesh_tensorflow's transformer_moe_layer_v1, top-2 gating. export/moe.py is the ONNX twin."""

from keras import ops, random


def moe(x, scope, config, training=False, seed=None):
    """A mixture in place of the mlp; every position goes to its two best experts, as far as they have room.

    An expert takes so many positions of a group, first choices before second ones: the original's groups run over
    batch and sequence, so that rows of a batch compete for the room.

    Args:
        x: [batch, seq, embd].
        scope: the layer's.
        config: a GPTNeoConfig.
        training: chooses the policies and the capacity for training.
        seed: keras SeedGenerator for the random policy.

    Returns:
        ([batch, seq, embd], the auxiliary loss).
    """
    params, mode = config.moe_params, "train" if training else "eval"
    experts = params["moe_num_experts"]
    positions = ops.shape(x)[0] * ops.shape(x)[1]
    groups = _groups(positions, params["moe_group_size"])
    # [batch, seq, embd] -> [groups, size, embd]
    inputs = ops.reshape(x, (groups, -1, config.n_embd))
    size = ops.cast(positions // groups, "float32")
    capacity = ops.minimum(size, ops.floor(size * params[f"moe_capacity_factor_{mode}"] / experts))

    gates = ops.softmax(ops.cast(ops.matmul(inputs, scope["top_2_gating"]["kernel"]), "float32"), axis=-1)
    first, second, weight_1, weight_2 = _top_2(gates, experts)
    loss = _imbalance(gates, first, experts)
    if params["moe_use_second_place_loss"]:
        rest = gates * (1 - first)
        loss = loss + _imbalance(rest / (ops.sum(rest, axis=-1, keepdims=True) + 1e-9), second, experts) / 2
    second = second * _second_policy(weight_2, params, mode, seed)

    # Room: positions before this one that went to the same expert. [groups, size, experts]
    first = first * ops.cast((ops.cumsum(first, axis=1) - first) < capacity, "float32")
    taken = ops.sum(first, axis=1, keepdims=True)
    second = second * ops.cast((ops.cumsum(second, axis=1) - second + taken) < capacity, "float32")
    weights = ops.cast(first * weight_1 + second * weight_2, x.dtype)

    # [groups, size, embd] x [experts, embd, hidden] -> [groups, experts, size, hidden]
    h = ops.relu(ops.einsum("gsd,edf->gesf", inputs, ops.convert_to_tensor(scope["wi"]["kernel"])))
    if training and params.get("moe_dropout_rate"):
        h = random.dropout(h, params["moe_dropout_rate"], seed=seed)
    y = ops.einsum("gesf,efd->gesd", h, ops.convert_to_tensor(scope["wo"]["kernel"]))
    y = ops.einsum("gesd,gse->gsd", y, weights)
    return ops.reshape(y, ops.shape(x)), ops.cast(loss, "float32") * params["moe_loss_coef"]


def _top_2(gates, experts):
    """One-hot first and second choices [groups, size, experts], and their weights [groups, size, 1], which sum to 1."""
    first = ops.one_hot(ops.argmax(gates, axis=-1), experts)
    rest = gates * (1 - first)
    second = ops.one_hot(ops.argmax(rest, axis=-1), experts)
    gate_1, gate_2 = ops.max(gates, axis=-1, keepdims=True), ops.max(rest, axis=-1, keepdims=True)
    total = gate_1 + gate_2 + 1e-9
    return first, second, gate_1 / total, gate_2 / total


def _second_policy(weight_2, params, mode, seed):
    """Which second choices count: [groups, size, 1] of ones and zeros."""
    policy, threshold = params[f"moe_second_policy_{mode}"], params[f"moe_second_threshold_{mode}"]
    if policy == "all":
        return ops.ones_like(weight_2)
    if policy == "none":
        return ops.zeros_like(weight_2)
    if policy == "threshold":
        return ops.cast(weight_2 > threshold, "float32")
    drawn = random.uniform(ops.shape(weight_2), seed=seed)
    return ops.cast(drawn < weight_2 / max(threshold, 1e-9), "float32")


def _imbalance(proxy, chosen, experts):
    """The loss that keeps experts equally busy: of soft [groups, size, experts] and one-hot choices."""
    return ops.mean(ops.mean(proxy, axis=1) * ops.mean(chosen, axis=1)) * experts * experts


def _groups(positions, largest):
    """mesh_tensorflow's _split_into_groups: the least number of equal groups from positions // largest on."""
    if isinstance(positions, int):
        groups = max(1, positions // largest)
        while positions % groups:
            groups += 1
        return groups
    candidates = ops.arange(1, positions + 1)
    fits = ops.logical_and(positions % candidates == 0, candidates >= positions // largest)
    return ops.min(ops.where(fits, candidates, positions))

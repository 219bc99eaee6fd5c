"""Mixture of experts: mesh_tensorflow's transformer_moe_layer_v1, top-2 gating. export/moe.py is the ONNX twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops, random

from neo_tf.activations import activation

if TYPE_CHECKING:
    from keras import KerasTensor

    from neo_tf.config import GPTNeoConfig
    from neo_tf.scope import Scope


def moe(
    x: KerasTensor,
    scope: Scope,
    config: GPTNeoConfig,
    training: bool = False,
    seed: random.SeedGenerator | None = None,
) -> tuple[KerasTensor, KerasTensor]:
    """A mixture of experts in place of the mlp; every position goes to its two best experts within their capacity.

    An expert's capacity is the number of positions of a group that it takes, first choices before second ones. The
    original's groups run over batch and sequence, so that the rows of a batch compete for the capacity.

    Args:
        x: [batch, seq, embd].
        scope: The layer's scope.
        config: The model's config.
        training: Whether the policies and the capacity are those of training.
        seed: The generator of the random policy's draws.

    Returns:
        ([batch, seq, embd], the auxiliary loss, a float32 scalar).
    """
    params = config.moe_params
    mode = "train" if training else "eval"
    experts = params["moe_num_experts"]
    positions = ops.shape(x)[0] * ops.shape(x)[1]
    groups = _groups(positions, params["moe_group_size"])
    # [batch, seq, embd] -> [groups, size, embd]
    inputs = ops.reshape(x, (groups, -1, config.n_embd))
    capacity = _capacity(positions // groups, params[f"moe_capacity_factor_{mode}"], params)

    gating = ops.cast(scope["top_2_gating"]["kernel"], "float32")
    gates = ops.softmax(ops.matmul(ops.cast(inputs, "float32"), gating), axis=-1)
    first, second, weight_1, weight_2 = _top_2(gates, experts)
    loss = _imbalance(gates, first, experts)
    if params["moe_use_second_place_loss"]:
        rest = gates * (1 - first)
        loss = loss + _imbalance(rest / (ops.sum(rest, axis=-1, keepdims=True) + 1e-9), second, experts) / 2
    second = second * _second_policy(weight_2, params, mode, seed)

    # An expert takes a position if fewer than `capacity` before it chose the same expert. [groups, size, experts]
    first = first * ops.cast((ops.cumsum(first, axis=1) - first) < capacity, "float32")
    taken = ops.sum(first, axis=1, keepdims=True)
    second = second * ops.cast((ops.cumsum(second, axis=1) - second + taken) < capacity, "float32")
    weights = ops.cast(first * weight_1 + second * weight_2, x.dtype)

    # [groups, size, embd] x [experts, embd, hidden] -> [groups, experts, size, hidden] -> [groups, experts, size, embd]
    h = ops.einsum("gsd,edf->gesf", inputs, ops.convert_to_tensor(scope["wi"]["kernel"]))
    h = activation(h, params["moe_activation"])
    if training and params.get("moe_dropout_rate"):
        h = random.dropout(h, params["moe_dropout_rate"], seed=seed)
    y = ops.einsum("gesf,efd->gesd", h, ops.convert_to_tensor(scope["wo"]["kernel"]))
    y = ops.einsum("gesd,gse->gsd", y, weights)
    return ops.reshape(y, ops.shape(x)), ops.cast(loss, "float32") * params["moe_loss_coef"]


def _top_2(gates: KerasTensor, experts: int) -> tuple[KerasTensor, KerasTensor, KerasTensor, KerasTensor]:
    """One-hot first and second choices [groups, size, experts], and their weights [groups, size, 1], which sum to 1."""
    first = ops.one_hot(ops.argmax(gates, axis=-1), experts)
    rest = gates * (1 - first)
    second = ops.one_hot(ops.argmax(rest, axis=-1), experts)
    gate_1, gate_2 = ops.max(gates, axis=-1, keepdims=True), ops.max(rest, axis=-1, keepdims=True)
    total = gate_1 + gate_2 + 1e-9
    return first, second, gate_1 / total, gate_2 / total


def _second_policy(
    weight_2: KerasTensor, params: dict[str, Any], mode: str, seed: random.SeedGenerator | None
) -> KerasTensor:
    """The second choices that count: [groups, size, 1] of ones and zeros."""
    policy, threshold = params[f"moe_second_policy_{mode}"], params[f"moe_second_threshold_{mode}"]
    if policy == "all":
        return ops.ones_like(weight_2)
    if policy == "none":
        return ops.zeros_like(weight_2)
    if policy == "threshold":
        return ops.cast(weight_2 > threshold, "float32")
    drawn = random.uniform(ops.shape(weight_2), seed=seed)
    return ops.cast(drawn < weight_2 / max(threshold, 1e-9), "float32")


def _imbalance(proxy: KerasTensor, chosen: KerasTensor, experts: int) -> KerasTensor:
    """The loss that keeps experts equally busy, from soft and one-hot choices, [groups, size, experts] each."""
    return ops.mean(ops.mean(proxy, axis=1) * ops.mean(chosen, axis=1)) * experts * experts


def _capacity(size: int | KerasTensor, factor: float, params: dict[str, Any]) -> float | KerasTensor:
    """The number of positions of a group that an expert takes: mesh_tensorflow's int(size * factor / experts)."""
    least, experts = params["moe_min_expert_capacity"], params["moe_num_experts"]
    if isinstance(size, int):
        return float(max(min(size, int(size * factor / experts)), least))
    size = ops.cast(size, "float64")  # float32 would round some products to the next whole number
    room = ops.floor(size * ops.cast(factor, "float64") / ops.cast(experts, "float64"))
    return ops.cast(ops.maximum(ops.minimum(size, room), ops.cast(least, "float64")), "float32")


def _groups(positions: int | KerasTensor, largest: int) -> int | KerasTensor:
    """The number of equal groups, which is the smallest from positions // largest on that divides the positions.

    It is mesh_tensorflow's _split_into_groups.
    """
    if isinstance(positions, int):
        groups = max(1, positions // largest)
        while positions % groups:
            groups += 1
        return groups
    candidates = ops.arange(1, positions + 1)
    fits = ops.logical_and(positions % candidates == 0, candidates >= positions // largest)
    return ops.min(ops.where(fits, candidates, positions))

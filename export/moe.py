"""The ONNX twin of neo_tf/moe.py, for decoding: an expert's capacity has no limit, so that positions are independent.

In the original, the positions of a batch compete for an expert's capacity. A decoder must not let them: a sequence's
tokens must not depend on the rest of the batch. With moe_capacity_factor_eval at the number of experts, the original
computes the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .activations import activation
from .builder import Scope

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig


def moe(x: str, scope: Scope, config: GPTNeoConfig) -> str:
    """A mixture of experts in place of the mlp; every position goes to its two best experts.

    Args:
        x: [batch, seq, embd].
        scope: The layer's scope.
        config: The model's config.

    Returns:
        [batch, seq, embd].
    """
    params = config.moe_params
    experts = params["moe_num_experts"]
    op = scope["moe"].op
    constant = scope.graph.constant
    depth = constant([experts])
    values = constant([0.0, 1.0], np.float32)

    # The gates are computed in float32. [batch, seq, embd] x [embd, experts] -> [batch, seq, experts]
    gating = scope["top_2_gating"]
    kernel = gating.derived("kernel", gating.tensor("kernel").shape, lambda w: w, "kernel", dtype=np.float32)
    gates = op("Softmax", op("MatMul", scope["moe"].float32(x), kernel, name="gating"), axis=-1)
    first = op("OneHot", op("ArgMax", gates, axis=-1, keepdims=0), depth, values, axis=-1)
    rest = op("Mul", gates, op("Sub", constant(1, np.float32), first))
    second = op("OneHot", op("ArgMax", rest, axis=-1, keepdims=0), depth, values, axis=-1)
    gate_1, gate_2 = (op("ReduceMax", gate, constant([-1]), keepdims=1) for gate in (gates, rest))
    total = op("Add", op("Add", gate_1, gate_2), constant(1e-9, np.float32))
    weights = op("Mul", first, op("Div", gate_1, total))
    if params["moe_second_policy_eval"] != "none":
        weight_2 = op("Div", gate_2, total)
        if params["moe_second_policy_eval"] == "threshold":
            counts = op("Greater", weight_2, constant(params["moe_second_threshold_eval"], np.float32))
            weight_2 = op("Where", counts, weight_2, constant(0, np.float32))
        weights = op("Add", weights, op("Mul", second, weight_2))

    # [batch, 1, seq, embd] x [experts, embd, hidden] -> [batch, experts, seq, hidden] -> [batch, experts, seq, embd]
    h = op("MatMul", op("Unsqueeze", x, constant([1])), scope["wi"].weight("kernel"), name="wi")
    h = activation(h, scope["moe"], params["moe_activation"])
    y = op("MatMul", h, scope["wo"].weight("kernel"), name="wo")
    # [batch, seq, experts] -> [batch, experts, seq, 1]
    weights = op("Unsqueeze", op("Transpose", scope["moe"].native(weights), perm=[0, 2, 1]), constant([-1]))
    return op("ReduceSum", op("Mul", y, weights), constant([1]), keepdims=0)

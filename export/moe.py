"""The ONNX twin of neo_tf/moe.py, for decoding: every position alone, without limits on an expert's room.

The original lets positions of a batch compete for an expert's room. A decoder must not: a sequence's tokens are the
same alone and in company. With moe_capacity_factor_eval at the number of experts, the original does the same.
"""

import numpy as np

from .activations import activation


def moe(x, scope, config):
    """A mixture in place of the mlp; every position goes to its two best experts. [batch, seq, embd], same result."""
    params, experts = config.moe_params, config.moe_params["moe_num_experts"]
    op, constant = scope["moe"].op, scope.graph.constant
    one_hot = (constant([experts]), constant([0.0, 1.0], np.float32))

    # Who goes where is decided in float32.
    kernel = scope["top_2_gating"]
    kernel = kernel.derived("kernel", kernel.tensor("kernel").shape, lambda w: w, "kernel", dtype=np.float32)
    gates = op("Softmax", op("MatMul", scope["moe"].float32(x), kernel, name="gating"), axis=-1)
    first = op("OneHot", op("ArgMax", gates, axis=-1, keepdims=0), *one_hot, axis=-1)
    rest = op("Mul", gates, op("Sub", constant(1, np.float32), first))
    second = op("OneHot", op("ArgMax", rest, axis=-1, keepdims=0), *one_hot, axis=-1)
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

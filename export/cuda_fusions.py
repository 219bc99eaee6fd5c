"""Rewrites what the layers wrote into the fused operators that are fastest on CUDA.

The layers stay twins of Keras's. On the CPU ONNX Runtime's own optimiser does better: its SkipLayerNormalization takes
nine times as long for a prompt's rows as addition and normalisation by themselves.
"""

from collections import Counter

from onnx import helper

from .builder import MICROSOFT


def fuse(nodes, initializers):
    """All rewritings.

    Args:
        nodes: NodeProtos in order.
        initializers: names of the graph's weights and constants.

    Returns:
        The nodes, rewritten, in order.
    """
    return fuse_gelu(fuse_skip_norms(nodes, initializers), initializers)


def fuse_gelu(nodes, initializers):
    """Add (of a bias) and Gelu of the tanh form as one FastGelu, which has a bfloat16 kernel too."""
    producers, uses = _producers(nodes)
    replaced, dropped = {}, set()
    for gelu in nodes:
        if gelu.op_type != "Gelu":
            continue
        inputs, biased = list(gelu.input), producers.get(gelu.input[0])
        if biased is not None and _adds_a_bias(biased, initializers) and uses[gelu.input[0]] == 1:
            inputs = list(biased.input)
            dropped.add(biased.name)
        replaced[gelu.name] = helper.make_node(
            *("FastGelu", inputs, list(gelu.output)),
            name=f"{gelu.name.rpartition('/')[0]}/FastGelu",
            domain=MICROSOFT,
        )
    return [replaced.get(node.name, node) for node in nodes if node.name not in dropped]


def fuse_skip_norms(nodes, initializers):
    """Add (of a bias), Add (to the residual stream) and LayerNormalization as one SkipLayerNormalization."""
    producers, uses = _producers(nodes)
    replaced, dropped = {}, set()
    for norm in nodes:
        residual = producers.get(norm.input[0]) if norm.op_type == "LayerNormalization" else None
        if residual is None or residual.op_type != "Add" or residual.name in replaced:
            continue
        stream, branch = residual.input
        bias, biased = "", producers.get(branch)
        if biased is not None and _adds_a_bias(biased, initializers) and uses[branch] == 1:
            branch, bias = biased.input
            dropped.add(biased.name)
        gains = list(norm.input[1:]) + [""] * (3 - len(norm.input))
        epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
        # In the residual's place: the stream that it makes is read further on, and so is the norm's output.
        replaced[residual.name] = helper.make_node(
            "SkipLayerNormalization",
            _trimmed([stream, branch, *gains, bias]),
            [norm.output[0], "", "", residual.output[0]],
            name=f"{norm.name.rpartition('/')[0]}/SkipLayerNormalization",
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        dropped.add(norm.name)
    return [replaced.get(node.name, node) for node in nodes if node.name not in dropped]


def _producers(nodes):
    """{output: its node}, and how often each output is read."""
    return {name: node for node in nodes for name in node.output}, Counter(
        name for node in nodes for name in node.input
    )


def _adds_a_bias(node, initializers):
    return node.op_type == "Add" and node.input[1] in initializers


def _trimmed(inputs):
    while not inputs[-1]:
        inputs.pop()
    return inputs

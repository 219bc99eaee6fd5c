"""Rewrites what the layers wrote into the fused operators that ONNX Runtime runs fastest.

The layers stay twins of Keras's; what ONNX Runtime's own optimiser fuses by itself is left to it.
"""

from collections import Counter

from onnx import helper

from export.builder import MICROSOFT


def fuse_skip_norms(nodes, initializers):
    """Add (of a bias), Add (to the residual stream) and LayerNormalization as one SkipLayerNormalization.

    Args:
        nodes: NodeProtos in order.
        initializers: names of the graph's weights and constants.

    Returns:
        The nodes, rewritten, in order.
    """
    producers = {name: node for node in nodes for name in node.output}
    uses = Counter(name for node in nodes for name in node.input)
    replaced, dropped = {}, set()
    for norm in nodes:
        residual = producers.get(norm.input[0]) if norm.op_type == "LayerNormalization" else None
        if residual is None or residual.op_type != "Add" or residual.name in replaced:
            continue
        stream, branch = residual.input
        bias, biased = "", producers.get(branch)
        if biased is not None and biased.op_type == "Add" and biased.input[1] in initializers and uses[branch] == 1:
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


def _trimmed(inputs):
    while not inputs[-1]:
        inputs.pop()
    return inputs

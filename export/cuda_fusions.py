"""Replaces nodes that the layers made by the fused operators that are fastest on CUDA.

This is a step of its own, so that the layers stay twins of Keras's. It is not done for the CPU, where
SkipLayerNormalization takes nine times as long for a prompt's rows as addition and normalisation by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence

from onnx import NodeProto, helper

from .builder import MICROSOFT


def fuse(nodes: Sequence[NodeProto], initializers: Container[str]) -> list[NodeProto]:
    """Fuses all nodes that can be fused.

    Args:
        nodes: A graph's nodes, in order.
        initializers: The names of the graph's weights and constants.

    Returns:
        The nodes after the replacement, in order.
    """
    return fuse_gelu(fuse_skip_norms(nodes, initializers), initializers)


def fuse_gelu(nodes: Sequence[NodeProto], initializers: Container[str]) -> list[NodeProto]:
    """Fuses Add (of a bias) and the tanh form of Gelu to one FastGelu, which has a bfloat16 kernel too; see fuse."""
    producers, uses = _producers(nodes)
    replaced: dict[str, NodeProto] = {}
    dropped: set[str] = set()
    for gelu in nodes:
        if gelu.op_type != "Gelu":
            continue
        inputs = list(gelu.input)
        biased = producers.get(gelu.input[0])
        if biased is not None and _adds_a_bias(biased, initializers) and uses[gelu.input[0]] == 1:
            inputs = list(biased.input)
            dropped.add(biased.name)
        replaced[gelu.name] = helper.make_node(
            "FastGelu",
            inputs,
            list(gelu.output),
            name=f"{gelu.name.rpartition('/')[0]}/FastGelu",
            domain=MICROSOFT,
        )
    return [replaced.get(node.name, node) for node in nodes if node.name not in dropped]


def fuse_skip_norms(nodes: Sequence[NodeProto], initializers: Container[str]) -> list[NodeProto]:
    """Fuses Add (of a bias), Add (to the residual stream) and LayerNormalization to one SkipLayerNormalization."""
    producers, uses = _producers(nodes)
    replaced: dict[str, NodeProto] = {}
    dropped: set[str] = set()
    for norm in nodes:
        residual = producers.get(norm.input[0]) if norm.op_type == "LayerNormalization" else None
        if residual is None or residual.op_type != "Add" or residual.name in replaced:
            continue
        stream, branch = residual.input
        bias = ""
        biased = producers.get(branch)
        if biased is not None and _adds_a_bias(biased, initializers) and uses[branch] == 1:
            branch, bias = biased.input
            dropped.add(biased.name)
        gains = list(norm.input[1:]) + [""] * (3 - len(norm.input))
        epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
        # It takes the residual's place, as its stream is read further on, and so is the norm's output.
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


def _producers(nodes: Sequence[NodeProto]) -> tuple[dict[str, NodeProto], Counter[str]]:
    """Returns {output: its node} and {value: the number of nodes that read it}."""
    producers = {name: node for node in nodes for name in node.output}
    uses = Counter(name for node in nodes for name in node.input)
    return producers, uses


def _adds_a_bias(node: NodeProto, initializers: Container[str]) -> bool:
    return node.op_type == "Add" and node.input[1] in initializers


def _trimmed(inputs: list[str]) -> list[str]:
    """Removes the optional inputs at the end that are left out."""
    while not inputs[-1]:
        inputs.pop()
    return inputs

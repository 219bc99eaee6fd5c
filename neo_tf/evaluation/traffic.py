"""The bytes of weights that a graph reads for one token: the memory's bandwidth limits how fast it can be."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

# {operator: the numbers of its inputs that are tables}. A token reads one row of a table, and all other weights whole.
_TABLES = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3), "RotaryEmbedding": (2, 3)}


def bytes_per_token(path: Path | str) -> int:
    """The bytes of weights that a graph reads for one token.

    They are all weights that its nodes use, but only one row of each table. A tensor that several initializers view
    counts once, and an embedding that is also the head counts whole.

    Args:
        path: An .onnx file that export_onnx wrote. Its data file is not read.
    """
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read: dict[object, int] = {}  # by the place where the bytes lie
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name not in stored:
                continue
            tensor = stored[name]
            size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            if index in _TABLES.get(node.op_type, ()):
                size //= max(1, tensor.dims[0] if tensor.dims else 1)
            place = _place(tensor)
            read[place] = max(read.get(place, 0), size)
    return sum(read.values())


def _place(tensor: onnx.TensorProto) -> object:
    """The place of a tensor's bytes. Views of one weight have the same place."""
    data = {entry.key: entry.value for entry in tensor.external_data}
    return (data["location"], data.get("offset", "0")) if data else tensor.name

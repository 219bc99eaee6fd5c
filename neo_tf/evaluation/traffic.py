"""How much of its weights a graph reads for one token: what the memory's bandwidth bounds."""

import math

import onnx

# Inputs of which a token reads one row, where they are tables; everything else is read whole.
_TABLES = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3), "RotaryEmbedding": (2, 3)}


def bytes_per_token(path):
    """Bytes of weights that a graph reads for one token: all that its nodes use, and of tables a row.

    A tensor that several initializers view counts once; an embedding that is also the head, whole.

    Args:
        path: an .onnx file that export_onnx wrote; its data file is not read.
    """
    graph = onnx.load(path, load_external_data=False).graph
    stored, read = {tensor.name: tensor for tensor in graph.initializer}, {}
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


def _place(tensor):
    """Where a tensor's bytes lie: views of one weight share it."""
    data = {entry.key: entry.value for entry in tensor.external_data}
    return (data["location"], data.get("offset", "0")) if data else tensor.name

"""The operators and types of our graphs that have a CUDA kernel.

The list was made by placing the decoder graphs of all options and activations, in all precisions, with the CUDA
provider of ONNX Runtime 1.31.1. test_cuda_provider.py places them again where it can; this list judges everywhere. The
truth is what a session on a GPU reports: Session.placement.
"""

from onnx import TensorProto

# {operator: the types of its data}; for GatherBlockQuantized these are the types of the scales.
CUDA_KERNELS = {
    "Abs": "FLOAT FLOAT16",
    "Add": "BFLOAT16 FLOAT FLOAT16 INT32",
    "ArgMax": "FLOAT",
    "Cast": "BFLOAT16 BOOL FLOAT FLOAT16 INT64",
    "Concat": "BFLOAT16 FLOAT FLOAT16 INT64",
    "Cos": "FLOAT FLOAT16",
    "Div": "FLOAT",
    "Elu": "FLOAT FLOAT16",
    "Equal": "INT32",
    "Exp": "FLOAT FLOAT16",
    "Expand": "BFLOAT16 FLOAT FLOAT16",
    "Gather": "BFLOAT16 FLOAT16",
    "Greater": "FLOAT FLOAT16",
    "LayerNormalization": "BFLOAT16 FLOAT16",
    "LeakyRelu": "FLOAT FLOAT16",
    "LogSoftmax": "FLOAT FLOAT16",
    "MatMul": "BFLOAT16 FLOAT FLOAT16",
    "Max": "FLOAT FLOAT16",
    "Min": "FLOAT FLOAT16",
    "Mul": "BFLOAT16 FLOAT FLOAT16 INT64",
    "Neg": "FLOAT FLOAT16",
    "OneHot": "INT64",
    "Pad": "FLOAT FLOAT16",
    "ReduceMax": "FLOAT",
    "ReduceSum": "BFLOAT16 FLOAT FLOAT16",
    "Relu": "BFLOAT16 FLOAT16",
    "Reshape": "BFLOAT16 BOOL FLOAT FLOAT16 INT64",
    "Selu": "FLOAT FLOAT16",
    "Shape": "BFLOAT16 FLOAT FLOAT16 INT64",
    "Sigmoid": "FLOAT FLOAT16",
    "Sign": "FLOAT FLOAT16",
    "Sin": "FLOAT FLOAT16",
    "Slice": "BFLOAT16 FLOAT FLOAT16 INT64",
    "Softmax": "FLOAT FLOAT16",
    "Softplus": "FLOAT FLOAT16",
    "Softsign": "FLOAT FLOAT16",
    "Split": "BFLOAT16 FLOAT16",
    "Squeeze": "INT64",
    "Sub": "FLOAT FLOAT16",
    "Tanh": "FLOAT FLOAT16",
    "TopK": "FLOAT",
    "Transpose": "BFLOAT16 FLOAT FLOAT16",
    "Trilu": "FLOAT",
    "Unsqueeze": "BFLOAT16 FLOAT16",
    "Where": "FLOAT FLOAT16",
    "com.microsoft.FastGelu": "BFLOAT16 FLOAT16",
    "com.microsoft.FusedMatMul": "BFLOAT16 FLOAT16",
    "com.microsoft.GatherBlockQuantized": "FLOAT16",
    "com.microsoft.GroupQueryAttention": "BFLOAT16 FLOAT16",
    "com.microsoft.MatMulNBits": "FLOAT16",
    "com.microsoft.RotaryEmbedding": "BFLOAT16 FLOAT16",
    "com.microsoft.SkipLayerNormalization": "BFLOAT16 FLOAT16",
}
_TYPES = {number: name for name, number in TensorProto.DataType.items()}
# The operators whose result has another type than their data.
_RESULTS = {
    **dict.fromkeys(("Shape", "ArgMax"), TensorProto.INT64),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "And"), TensorProto.BOOL),
}
# The number of the input that is the data, if it is not the first.
_DATA = {"Where": 1, "OneHot": 2, "GatherBlockQuantized": 2}


def without_kernel(model):
    """The nodes of a model (a ModelProto) that have no CUDA kernel, as a list of "node: operator of TYPE"."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    missing = []
    for node in model.graph.node:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        data = types[node.input[_DATA.get(node.op_type, 0)]]
        read = types[node.input[0]] if node.op_type == "OneHot" else data
        if _TYPES[read] not in CUDA_KERNELS.get(operator, "").split():
            missing.append(f"{node.name}: {operator} of {_TYPES[read]}")
        cast = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
        types |= dict.fromkeys(node.output, cast or _RESULTS.get(node.op_type, data))
    return missing

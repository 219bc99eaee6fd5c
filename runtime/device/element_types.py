"""The types of a tensor's numbers: what numpy, ONNX and onnxruntime call each of them."""

import numpy as np

# The numbers of onnx.TensorProto.DataType. They stand here because decoding does not need the package onnx.
_ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}


def onnx_type(dtype: np.dtype) -> int:
    """The number of a dtype in ONNX. onnxruntime's calls take it for every type; numpy itself has no bfloat16."""
    return _ONNX_TYPES[dtype.name]


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of a type in onnxruntime's words, such as "tensor(float16)"."""
    if name == "tensor(bfloat16)":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16}[name])

"""Copies inside a device's memory: a graph of one Identity, as onnxruntime's Python has no call for it."""

import functools

import numpy as np


def copy_on_device(device, device_id, element_type, shape, source, target):
    """Copies a tensor from one address to another.

    Args:
        device: "cpu" or "cuda".
        device_id: index of the device.
        element_type: a numpy type, or a number of onnx.TensorProto.
        shape: of the tensor.
        source, target: addresses.
    """
    number = element_type if isinstance(element_type, int) else _number(np.dtype(element_type))
    session = _session(device, device_id, number)
    binding = session.io_binding()
    binding.bind_input("source", device, device_id, element_type, shape, source)
    binding.bind_output("target", device, device_id, element_type, shape, target)
    session.run_with_iobinding(binding)


def _number(dtype):
    from onnx.helper import np_dtype_to_tensor_dtype

    return np_dtype_to_tensor_dtype(dtype)


@functools.cache
def _session(device, device_id, number):
    import onnxruntime
    from onnx import helper

    from .providers import create_session

    ends = [helper.make_tensor_value_info(name, number, None) for name in ("source", "target")]
    graph = helper.make_graph([helper.make_node("Identity", ["source"], ["target"])], "copy", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return create_session(model.SerializeToString(), device, device_id, onnxruntime.SessionOptions())

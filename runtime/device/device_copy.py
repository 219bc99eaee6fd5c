"""Copies within a device's memory.

onnxruntime's Python interface has no call that copies from one address to another: a graph of one node does it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from .element_types import onnx_type
from .providers import create_session, session_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxruntime import InferenceSession


def copy_on_device(
    device: str, device_id: int, dtype: np.dtype, shape: Sequence[int], source: int, target: int
) -> None:
    """Copies a tensor from one address to another.

    Args:
        device: "cpu" or "cuda".
        device_id: The index of the device.
        dtype: The type of the tensor's numbers.
        shape: The tensor's shape.
        source: The address to read.
        target: The address to write.
    """
    element_type = onnx_type(dtype)
    session = _session(device, device_id, element_type)
    binding = session.io_binding()
    binding.bind_input("source", device, device_id, element_type, shape, source)
    binding.bind_output("target", device, device_id, element_type, shape, target)
    session.run_with_iobinding(binding)


@functools.cache
def _session(device: str, device_id: int, element_type: int) -> InferenceSession:
    from onnx import helper

    source = helper.make_tensor_value_info("source", element_type, None)
    target = helper.make_tensor_value_info("target", element_type, None)
    node = helper.make_node("Identity", ["source"], ["target"])
    graph = helper.make_graph([node], "copy", [source], [target])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return create_session(model.SerializeToString(), device, device_id, session_options())

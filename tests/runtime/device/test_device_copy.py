"""Copies by a graph of one node, on the CPU: that on CUDA is the same graph."""

import ml_dtypes
import numpy as np
import pytest

from neo_tf.runtime.device.device_copy import copy_on_device


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_tensor_inside_a_larger_one(dtype):
    source = np.arange(60).reshape(5, 3, 4).astype(dtype)
    target = np.zeros_like(source)
    size = source[0].nbytes
    places = source.ctypes.data + 3 * size, target.ctypes.data + size
    copy_on_device("cpu", 0, np.dtype(dtype), (3, 4), *places)
    assert (target[1] == source[3]).all()
    assert not target[[0, 2, 3, 4]].any()

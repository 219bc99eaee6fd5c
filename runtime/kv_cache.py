"""The KV cache: one row of every layer's buffers is a slot, allocated once, bound to past and present alike."""

import math
import mmap

import numpy as np

from neo_tf.cache_layout import cache_parts

# Positions beyond a local layer's window: the kernel then compacts its cache once in so many steps. The CUDA kernel
# takes the bare window only.
_SLACK = {"cpu": 64, "cuda": 0}
_BFLOAT16 = 16  # of onnx.TensorProto
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows


class KVCache:
    """Buffers [slots, heads, rows, columns] for every part of the cache.

    A slot's part of a buffer is contiguous, so a single row can be bound by its address.

    Args:
        config: a GPTNeoConfig.
        slots: sequences that can be held at once.
        dtype: numpy dtype of keys and values; linear attention's sums are float32 in any case.
        device: "cpu" or "cuda".
        device_id: index of the device.
        large_pages: on the CPU, pages of 2 MB: a step at 1500 tokens is 6 % faster, but a slot's memory is all
            taken with its first token. In ordinary pages a short text takes little of its slot.
    """

    def __init__(self, config, slots, dtype=np.float32, device="cpu", device_id=0, large_pages=False):
        self.slots, self.dtype = slots, np.dtype(dtype)
        self.device, self.device_id = device, device_id
        self._large_pages, self._buffers = large_pages, []
        for part in cache_parts(config):
            shape, part_dtype = (part.heads, rows(part, config, device), part.columns), _dtype(part, dtype)
            self._buffers.append((part, shape, part_dtype, self._allocate((slots, *shape), part_dtype)))

    @staticmethod
    def bytes_per_slot(config, dtype=np.float32, device="cpu"):
        """Bytes that one sequence takes in all buffers, at any length."""
        return sum(
            part.heads * rows(part, config, device) * part.columns * _dtype(part, dtype).itemsize
            for part in cache_parts(config)
        )

    def bind(self, binding, slot, count):
        """Binds the slots [slot, slot + count) of every buffer to past and present."""
        for part, shape, dtype, buffer in self._buffers:
            address = self._address(buffer) + slot * int(np.prod(shape)) * dtype.itemsize
            place = (self.device, self.device_id, _element_type(dtype), (count, *shape), address)
            binding.bind_input(part.past, *place)
            binding.bind_output(part.present, *place)

    def _allocate(self, shape, dtype):
        if self.device == "cpu":
            if self._large_pages:
                return np.zeros(shape, dtype)  # numpy asks for them by itself
            pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **_PRIVATE)
            return np.frombuffer(pages, dtype).reshape(shape)
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(shape, _element_type(dtype), self.device, self.device_id)

    def _address(self, buffer):
        return buffer.ctypes.data if self.device == "cpu" else buffer.data_ptr()


def rows(part, config, device="cpu"):
    """Rows that a part's buffer has: those that it needs, and a local window's slack."""
    return min(config.n_ctx, part.rows + _SLACK[device]) if part.kind == "window" else part.rows


def _dtype(part, dtype):
    return np.dtype(np.float32 if part.kind == "sums" else dtype)


def _element_type(dtype):
    """What onnxruntime calls a dtype: numpy's own, or the number in ONNX of bfloat16, which numpy does not have."""
    return _BFLOAT16 if dtype.name == "bfloat16" else dtype

"""The KV cache: one row of every layer's buffers is a slot, allocated once, bound to past and present alike."""

import numpy as np

# Positions beyond a local layer's window: the kernel then compacts its cache once in so many steps. The CUDA kernel
# takes the bare window only.
_SLACK = {"cpu": 64, "cuda": 0}


def capacity(config, layer, device="cpu"):
    """Positions that a layer's cache keeps: all of them, or the local window and some slack."""
    window = config.window(layer)
    return min(config.n_ctx, window + _SLACK[device]) if window < config.n_ctx else window


class KVCache:
    """Buffers [slots, heads, capacity, head] for the keys and values of every layer.

    A slot's part of a buffer is contiguous, so a single row can be bound by its address.

    Args:
        config: a GPTNeoConfig.
        slots: sequences that can be held at once.
        dtype: numpy dtype of the cache.
        device: "cpu" or "cuda".
        device_id: index of the device.
    """

    def __init__(self, config, slots, dtype=np.float32, device="cpu", device_id=0):
        self.config, self.slots, self.dtype = config, slots, np.dtype(dtype)
        self.device, self.device_id = device, device_id
        self._buffers = {
            (layer, part): self._allocate((slots, config.n_head, self.capacity(layer), config.head_size))
            for layer in range(config.n_layer)
            for part in ("key", "value")
        }

    def capacity(self, layer):
        """Positions that the layer keeps."""
        return capacity(self.config, layer, self.device)

    @staticmethod
    def bytes_per_slot(config, dtype=np.float32, device="cpu"):
        """Bytes that one sequence takes in the buffers of all layers, at any length."""
        positions = sum(capacity(config, layer, device) for layer in range(config.n_layer))
        return 2 * config.n_head * config.head_size * positions * np.dtype(dtype).itemsize

    def bind(self, binding, slot, rows):
        """Binds the rows [slot, slot + rows) of every buffer to past and present."""
        heads, head = self.config.n_head, self.config.head_size
        for (layer, part), buffer in self._buffers.items():
            shape = (rows, heads, self.capacity(layer), head)
            row_bytes = heads * self.capacity(layer) * head * self.dtype.itemsize
            place = (self.device, self.device_id, self.dtype, shape, self._address(buffer) + slot * row_bytes)
            binding.bind_input(f"past_key_values.{layer}.{part}", *place)
            binding.bind_output(f"present.{layer}.{part}", *place)

    def _allocate(self, shape):
        if self.device == "cpu":
            return np.zeros(shape, self.dtype)  # the system gives the pages as they are written
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(shape, self.dtype, self.device, self.device_id)

    def _address(self, buffer):
        return buffer.ctypes.data if self.device == "cpu" else buffer.data_ptr()

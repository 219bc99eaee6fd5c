"""The KV cache: one row of every layer's buffers is a slot, allocated once, bound to past and present alike."""

import math
import mmap
from typing import Any, NamedTuple

import numpy as np

from neo_tf.cache_layout import CachePart, cache_parts

from .device_copy import copy_on_device

# Positions beyond a local layer's window: the kernel then compacts its cache once in so many steps. The CUDA kernel
# takes the bare window only.
_SLACK = {"cpu": 64, "cuda": 0}
_BFLOAT16 = 16  # of onnx.TensorProto
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows


class _Buffer(NamedTuple):
    """A part's memory: numpy [slots, *shape], or an OrtValue; `pages` is the mmap behind it, if there is one."""

    part: CachePart
    shape: tuple  # heads, rows, columns
    dtype: np.dtype
    memory: Any
    pages: mmap.mmap | None

    @property
    def slot_bytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def address(self, slot):
        base = self.memory.ctypes.data if isinstance(self.memory, np.ndarray) else self.memory.data_ptr()
        return base + slot * self.slot_bytes


class KVCache:
    """Buffers [slots, heads, rows, columns] for every part of the cache.

    A slot's part of a buffer is contiguous, so a single row can be bound by its address. What is said of positions
    below holds on the CPU; on CUDA whole slots are copied.

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
        self.n_ctx, self._large_pages, self._buffers = config.n_ctx, large_pages, []
        self.bytes_at_most = slots * self.bytes_per_slot(config, dtype, device)
        for part in cache_parts(config):
            shape, part_dtype = (part.heads, rows(part, config, device), part.columns), _dtype(part, dtype)
            self._buffers.append(_Buffer(part, shape, part_dtype, *self._allocate((slots, *shape), part_dtype)))
        self.has_sums = any(one.part.kind == "sums" for one in self._buffers)
        # Of every local layer: its window, and the rows of its buffer.
        self._windows = {(one.part.rows, one.shape[1]) for one in self._buffers if one.part.kind == "window"}

    @staticmethod
    def bytes_per_slot(config, dtype=np.float32, device="cpu"):
        """Bytes that one sequence takes in all buffers, at any length."""
        return sum(
            part.heads * rows(part, config, device) * part.columns * _dtype(part, dtype).itemsize
            for part in cache_parts(config)
        )

    def bytes_of(self, length):
        """Bytes of memory that a slot takes once it has held so many positions; release gives them back."""
        if self.device != "cpu" or self._large_pages:
            return self.bytes_at_most // self.slots
        size = 0
        for one in self._buffers:
            heads, capacity, columns = one.shape
            used = self._span(one, 0, length)[1] if length <= capacity else capacity
            # The rows of each head begin somewhere in a page.
            row = columns * one.dtype.itemsize
            size += heads * min(capacity * row, used * row + mmap.PAGESIZE)
        return size

    def bind(self, binding, slot, count):
        """Binds the slots [slot, slot + count) of every buffer to past and present."""
        for one in self._buffers:
            place = (self.device, self.device_id, _element_type(one.dtype), (count, *one.shape), one.address(slot))
            binding.bind_input(one.part.past, *place)
            binding.bind_output(one.part.present, *place)

    # ---- what a slot holds

    def room(self, length):
        """Tokens that a sequence of this length can take and give back again, by going on from the shorter length."""
        if self.has_sums or (self._windows and self.device != "cpu"):
            return 0
        free = (capacity - length + dropped(window, capacity, length) for window, capacity in self._windows)
        return min(free, default=self.n_ctx)

    def can_idle(self, length):
        """Whether a token after so many, which is written over later, does no harm."""
        return length == 0 or self.room(length) > 0

    def copy(self, source, target, begin, length):
        """Copies one slot's positions from begin on to another; those before are the same there already.

        Args:
            source, target: slots.
            begin: the first position that may differ.
            length: positions that the source holds.
        """
        for one in self._buffers:
            if self.device != "cpu":
                place = (_element_type(one.dtype), one.shape, one.address(source), one.address(target))
                copy_on_device(self.device, self.device_id, *place)
                continue
            first, end = self._span(one, begin, length)
            one.memory[target, :, first:end] = one.memory[source, :, first:end]

    def rows_of(self, slot, begin, end, length):
        """Views of a slot's rows of positions [begin, end), when it holds `length`: for each part [heads, n, columns].

        Learned keys and values belong to position 0. Of positions that a local layer has dropped there are no rows.
        """
        views = []
        for one in self._buffers:
            first, last = self._span(one, begin, length)
            views.append(one.memory[slot, :, first : max(first, last - (length - end))])
        return views

    def first_kept(self, length):
        """The first position that every layer still holds, in a slot of this length."""
        return max((dropped(window, capacity, length) for window, capacity in self._windows), default=0)

    @property
    def window(self):
        """Positions before a token that the local layers with short caches look at; 0 where there are none."""
        return max((window - 1 for window, _ in self._windows), default=0)

    def _span(self, one, begin, length):
        """Rows [first, end) of the positions [begin, length) in a buffer, as far as it has them."""
        if one.part.kind == "sums":
            return 0, one.shape[1]
        if one.part.kind == "window":
            gone = dropped(one.part.rows, one.shape[1], length)
            return max(begin - gone, 0), length - gone
        memory = one.part.rows - self.n_ctx
        return (memory + begin if begin else 0), memory + length

    # ---- memory

    def release(self, slot):
        """Gives a slot's memory back to the system, where that can be done; what it held is lost."""
        for one in self._buffers:
            # Whole pages alone: the ends may belong to the neighbours.
            first, end = -(-slot * one.slot_bytes // mmap.PAGESIZE), (slot + 1) * one.slot_bytes // mmap.PAGESIZE
            if one.pages and hasattr(one.pages, "madvise") and end > first:
                one.pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)

    def _allocate(self, shape, dtype):
        """The memory, and the mmap behind it if there is one."""
        if self.device == "cpu":
            if self._large_pages:
                return np.zeros(shape, dtype), None  # numpy asks for them by itself
            return allocate_pages(shape, dtype)
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(shape, _element_type(dtype), self.device, self.device_id), None


def allocate_pages(shape, dtype):
    """An array in ordinary pages, each of which takes memory when it is first written, and the mmap behind it."""
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # else some systems take 2 MB for each head's first row
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape), pages


def rows(part, config, device="cpu"):
    """Rows that a part's buffer has: those that it needs, and a local window's slack."""
    return min(config.n_ctx, part.rows + _SLACK[device]) if part.kind == "window" else part.rows


def dropped(window, capacity, length):
    """Positions that a local layer of that window has dropped at some length, in a buffer of `capacity` rows.

    ONNX Runtime's CPU kernel, found by trial (tests/runtime/device/test_kv_cache.py): where a step would not fit, it
    keeps the window - 1 positions before it; from then on, so many at a time.
    """
    if length <= capacity:
        return 0
    step = capacity - window + 1
    return -(-(length - capacity) // step) * step


def _dtype(part, dtype):
    return np.dtype(np.float32 if part.kind == "sums" else dtype)


def _element_type(dtype):
    """What onnxruntime calls a dtype: numpy's own, or the number in ONNX of bfloat16, which numpy does not have."""
    return _BFLOAT16 if dtype.name == "bfloat16" else dtype

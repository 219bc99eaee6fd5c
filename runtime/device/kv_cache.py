"""The KV cache: the keys and values of the sequences, in buffers that are allocated once.

What the words mean here:

- A slot is the place of one sequence. It has its part of every buffer, and slots are numbered from 0.
- A buffer holds one part of the cache, such as the keys of layer 3: [slots, heads, rows, columns].
- A row holds one position of the sequence. A global layer has a row for each of n_ctx positions.
- A window is the number of positions that a token of a local layer sees, itself included. Such a layer's buffers have
  no more rows than the window and some slack: when they are full, the kernel drops the oldest positions and moves the
  others to the front.

The graphs read a buffer as `past` and write it as `present`: it is bound to both, and nothing is copied in a step.
"""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neo_tf.cache_layout import CachePart, cache_parts

from .device_copy import copy_on_device
from .element_types import onnx_type

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from onnxruntime import IOBinding

    from neo_tf.config import GPTNeoConfig

# Rows of a local layer's buffer beyond its window. On the CPU the kernel drops positions only once in as many steps;
# the CUDA kernel takes buffers of exactly the window.
_SLACK = {"cpu": 64, "cuda": 0}
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows


class _Buffer(NamedTuple):
    """The memory of one part of the cache, for all slots.

    Args:
        part: What it holds.
        shape: The (heads, rows, columns) of one slot.
        dtype: The type of its numbers.
        memory: On the CPU a numpy array [slots, heads, rows, columns]; on CUDA an OrtValue of that shape.
        pages: The mmap that the array lies in, if it lies in one.
    """

    part: CachePart
    shape: tuple[int, int, int]
    dtype: np.dtype
    memory: Any
    pages: mmap.mmap | None

    @property
    def slot_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def address(self, slot: int) -> int:
        base = self.memory.ctypes.data if isinstance(self.memory, np.ndarray) else self.memory.data_ptr()
        return base + slot * self.slot_bytes


class KVCache:
    """A buffer [slots, heads, rows, columns] for every part of the cache.

    A slot's part of a buffer is contiguous, so neighbouring slots can be bound by the address of the first one. What is
    said of positions below holds on the CPU; on CUDA whole slots are copied.

    Args:
        config: The model's config.
        slots: The number of sequences that the cache can hold at once.
        dtype: The type of keys and values. The sums of linear attention are always float32.
        device: "cpu" or "cuda".
        device_id: The index of the device.
        windowed: Whether local layers keep their window only, as the folder's graphs do (OnnxFolder.windowed_caches).
        large_pages: On the CPU, asks for pages of 2 MB. A step at 1500 tokens is 6 % faster with them, but all memory
            of a slot is taken with its first token. In ordinary pages a short text takes little of its slot.

    Attributes:
        slots: The number of slots.
        dtype: The type of keys and values.
        device, device_id: Where the buffers are.
        n_ctx: The number of positions that a slot can hold.
        bytes_at_most: The memory that all buffers take when every slot is full.
        has_sums: Whether the model has linear attention, whose running sums cannot be cut to a shorter text.
    """

    def __init__(
        self,
        config: GPTNeoConfig,
        slots: int,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        device_id: int = 0,
        windowed: bool = True,
        large_pages: bool = False,
    ) -> None:
        self.slots = slots
        self.dtype = np.dtype(dtype)
        self.device = device
        self.device_id = device_id
        self.n_ctx = config.n_ctx
        self.bytes_at_most = slots * self.bytes_per_slot(config, dtype, device, windowed)
        self._large_pages = large_pages
        self._buffers: list[_Buffer] = []
        for part in cache_parts(config, windowed):
            shape = (part.heads, rows(part, config, device), part.columns)
            part_dtype = _dtype(part, dtype)
            memory, pages = self._allocate((slots, *shape), part_dtype)
            self._buffers.append(_Buffer(part, shape, part_dtype, memory, pages))
        self.has_sums = any(buffer.part.kind == "sums" for buffer in self._buffers)
        # Each different (window, rows of the buffer) of the local layers.
        local = [buffer for buffer in self._buffers if buffer.part.kind == "window"]
        self._windows = {(buffer.part.rows, buffer.shape[1]) for buffer in local}

    @staticmethod
    def bytes_per_slot(
        config: GPTNeoConfig, dtype: DTypeLike = np.float32, device: str = "cpu", windowed: bool = True
    ) -> int:
        """The bytes that a full slot takes in all buffers together."""
        return sum(
            part.heads * rows(part, config, device) * part.columns * _dtype(part, dtype).itemsize
            for part in cache_parts(config, windowed)
        )

    def bytes_of(self, length: int) -> int:
        """The bytes that a slot takes once it has held `length` positions, until release gives them back."""
        if self.device != "cpu" or self._large_pages:
            return self.bytes_at_most // self.slots
        size = 0
        for buffer in self._buffers:
            heads, capacity, columns = buffer.shape
            used = self._span(buffer, 0, length)[1] if length <= capacity else capacity
            row_bytes = columns * buffer.dtype.itemsize
            # The rows of a head begin somewhere in a page, so that one more page is touched.
            size += heads * min(capacity * row_bytes, used * row_bytes + mmap.PAGESIZE)
        return size

    def bind(self, binding: IOBinding, slot: int, count: int) -> None:
        """Binds the slots [slot, slot + count) of every buffer to the graph's past and present."""
        for buffer in self._buffers:
            shape = (count, *buffer.shape)
            place = (self.device, self.device_id, onnx_type(buffer.dtype), shape, buffer.address(slot))
            binding.bind_input(buffer.part.past, *place)
            binding.bind_output(buffer.part.present, *place)

    # ---- what a slot holds

    def room(self, length: int) -> int:
        """How many tokens a slot of this length can take and give back again.

        A token is given back when the next run begins at a shorter length and writes over it. That works until a local
        layer has dropped positions which the shorter text needs.
        """
        if self.has_sums or (self._windows and self.device != "cpu"):
            return 0
        free = (capacity - length + dropped(window, capacity, length) for window, capacity in self._windows)
        return min(free, default=self.n_ctx)

    def can_idle(self, length: int) -> bool:
        """Whether a slot of this length may be run along with others: the token that it takes is written over later."""
        return length == 0 or self.room(length) > 0

    def copy(self, source: int, target: int, begin: int, length: int) -> None:
        """Copies the positions from `begin` on from one slot to another. Those before are equal already.

        Args:
            source: The slot to read.
            target: The slot to write.
            begin: The first position that may differ.
            length: The number of positions that the source holds.
        """
        for buffer in self._buffers:
            if self.device == "cpu":
                first, end = self._span(buffer, begin, length)
                buffer.memory[target, :, first:end] = buffer.memory[source, :, first:end]
            else:
                addresses = (buffer.address(source), buffer.address(target))
                copy_on_device(self.device, self.device_id, buffer.dtype, buffer.shape, *addresses)

    def rows_of(self, slot: int, begin: int, end: int, length: int) -> list[np.ndarray]:
        """Views of the rows that hold the positions [begin, end) of a slot.

        Learned keys and values count as part of position 0. Positions that a local layer has dropped have no rows.

        Args:
            slot: The slot.
            begin: The first position.
            end: The position after the last one.
            length: The number of positions that the slot holds.

        Returns:
            An array [heads, n, columns] for each part of the cache; n differs between global and local layers.
        """
        views = []
        for buffer in self._buffers:
            first, last = self._span(buffer, begin, length)
            views.append(buffer.memory[slot, :, first : max(first, last - (length - end))])
        return views

    def first_kept(self, length: int) -> int:
        """The first position that every layer still holds in a slot of this length."""
        return max((dropped(window, capacity, length) for window, capacity in self._windows), default=0)

    @property
    def window(self) -> int:
        """How many positions before a token the local layers see; 0 for a model without short buffers."""
        return max((window - 1 for window, _ in self._windows), default=0)

    def _span(self, buffer: _Buffer, begin: int, length: int) -> tuple[int, int]:
        """The rows [first, end) that hold the positions [begin, length), as far as the buffer still has them."""
        if buffer.part.kind == "sums":
            return 0, buffer.shape[1]
        if buffer.part.kind == "window":
            gone = dropped(buffer.part.rows, buffer.shape[1], length)
            return max(begin - gone, 0), length - gone
        learned = buffer.part.rows - self.n_ctx  # rows of learned keys, in front of position 0
        return (learned + begin if begin else 0), learned + length

    # ---- memory

    def release(self, slot: int) -> None:
        """Gives a slot's memory back to the system, where the system allows it. What the slot held is lost."""
        for buffer in self._buffers:
            # Whole pages alone: the page at either end may belong to a neighbour, too.
            first = -(-slot * buffer.slot_bytes // mmap.PAGESIZE)
            end = (slot + 1) * buffer.slot_bytes // mmap.PAGESIZE
            if buffer.pages and hasattr(buffer.pages, "madvise") and end > first:
                buffer.pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, mmap.mmap | None]:
        """The memory of a buffer, and the mmap that it lies in, if any. See _Buffer."""
        if self.device == "cpu":
            if self._large_pages:
                return np.zeros(shape, dtype), None  # numpy itself asks for large pages
            return allocate_pages(shape, dtype)
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(shape, onnx_type(dtype), self.device, self.device_id), None


def allocate_pages(shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, mmap.mmap]:
    """An array of zeros in ordinary pages, and the mmap that it lies in.

    A page takes memory when it is first written.
    """
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # otherwise some systems take 2 MB for each head's first row
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape), pages


def rows(part: CachePart, config: GPTNeoConfig, device: str = "cpu") -> int:
    """The number of rows of a part's buffer: those that the part needs, and the slack of a local layer."""
    if part.kind == "window":
        return min(config.n_ctx, part.rows + _SLACK[device])
    return part.rows


def dropped(window: int, capacity: int, length: int) -> int:
    """How many positions a local layer has dropped.

    This is what ONNX Runtime's CPU kernel does, as found by trial (tests/runtime/device/test_kv_cache.py): when a step
    does not fit into the buffer, the kernel keeps the window - 1 positions before it, and drops capacity - window + 1
    at a time from then on.

    Args:
        window: The positions that a token of the layer sees, itself included.
        capacity: The number of rows of the layer's buffers.
        length: The number of positions that the sequence has.
    """
    if length <= capacity:
        return 0
    at_a_time = capacity - window + 1
    return -(-(length - capacity) // at_a_time) * at_a_time


def _dtype(part: CachePart, dtype: DTypeLike) -> np.dtype:
    """The type of a part's numbers, where keys and values have this one."""
    return np.dtype(np.float32 if part.kind == "sums" else dtype)

"""The memory behind the KV cache: arrays in the CPU's pages, or one piece of a GPU's memory.

Both hold a tensor [slots, heads, rows, columns] for each part of the cache. A slot's share of a tensor is contiguous.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from .memory import aligned, device_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .cudart import Cudart

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows


class SlotTensor(NamedTuple):
    """What one part of the cache holds of each slot.

    Args:
        shape: (heads, rows, columns).
        dtype: The type of its numbers.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """The bytes of one row of one head."""
        return self.shape[2] * self.dtype.itemsize


@dataclass(frozen=True)
class RowCopy:
    """A copy of rows of all heads from one memory into another, or within one.

    Args:
        part: The number of the part of the cache.
        slot, row: The slot to read, and its first row.
        target_slot, target_row: The slot to write, and its first row.
        count: The number of rows.
    """

    part: int
    slot: int
    row: int
    target_slot: int
    target_row: int
    count: int


class CacheMemory(Protocol):
    """Memory for some slots; all zero at first.

    Attributes:
        tensors: What each part holds of a slot.
    """

    tensors: Sequence[SlotTensor]

    def address(self, part: int, slot: int) -> int:
        """The address of a slot's share of a part."""
        ...

    def copy(self, copies: Sequence[RowCopy], target: CacheMemory) -> None:
        """Copies rows into another memory on the same device; the target may be this one."""
        ...

    def release(self, slot: int) -> None:
        """Gives a slot's memory back to the system, where the system allows it."""
        ...


class HostCacheMemory:
    """Arrays in the CPU's memory.

    Args:
        tensors: What each part holds of a slot.
        slots: The number of slots.
        large_pages: Whether to ask for pages of 2 MB.

    Attributes:
        arrays: [slots, heads, rows, columns] for each part.
        pages: The mmap that each array lies in, if it lies in one.
    """

    def __init__(self, tensors: Sequence[SlotTensor], slots: int, large_pages: bool = False) -> None:
        self.tensors = tensors
        self.arrays: list[np.ndarray] = []
        self.pages: list[mmap.mmap | None] = []
        for tensor in tensors:
            array, pages = _allocate((slots, *tensor.shape), tensor.dtype, large_pages)
            self.arrays.append(array)
            self.pages.append(pages)

    def address(self, part: int, slot: int) -> int:
        """The address of a slot's share of a part."""
        return int(self.arrays[part].ctypes.data) + slot * self.tensors[part].nbytes

    def copy(self, copies: Sequence[RowCopy], target: CacheMemory) -> None:
        """Copies rows into another HostCacheMemory."""
        assert isinstance(target, HostCacheMemory)
        for one in copies:
            rows = self.arrays[one.part][one.slot, :, one.row : one.row + one.count]
            target.arrays[one.part][one.target_slot, :, one.target_row : one.target_row + one.count] = rows

    def release(self, slot: int) -> None:
        """Gives a slot's pages back to the system. What the slot held is lost."""
        for tensor, pages in zip(self.tensors, self.pages, strict=True):
            # Whole pages alone: the page at either end may belong to a neighbour, too.
            first = -(-slot * tensor.nbytes // mmap.PAGESIZE)
            end = (slot + 1) * tensor.nbytes // mmap.PAGESIZE
            if pages and hasattr(pages, "madvise") and end > first:
                pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)


class CudaCacheMemory:
    """One piece of a GPU's memory.

    Args:
        tensors: What each part holds of a slot.
        slots: The number of slots.
        cudart: The calls for the GPU.

    Raises:
        ProviderError: The GPU has no such piece of memory.
    """

    def __init__(self, tensors: Sequence[SlotTensor], slots: int, cudart: Cudart) -> None:
        self.tensors = tensors
        self._cudart = cudart
        offsets = []
        size = 0
        for tensor in tensors:
            offsets.append(size)
            size += aligned(slots * tensor.nbytes)
        begin = device_memory(cudart, size, self) if size else 0
        self._begins = [begin + offset for offset in offsets]

    def address(self, part: int, slot: int) -> int:
        """The address of a slot's share of a part."""
        return self._begins[part] + slot * self.tensors[part].nbytes

    def copy(self, copies: Sequence[RowCopy], target: CacheMemory) -> None:
        """Copies rows into another CudaCacheMemory on the same GPU."""
        calls = []
        for one in copies:
            ours = self.tensors[one.part]
            theirs = target.tensors[one.part]
            if one.count == 0:
                continue
            calls.append(
                (
                    target.address(one.part, one.target_slot) + one.target_row * theirs.row_bytes,
                    theirs.shape[1] * theirs.row_bytes,
                    self.address(one.part, one.slot) + one.row * ours.row_bytes,
                    ours.shape[1] * ours.row_bytes,
                    one.count * ours.row_bytes,
                    ours.shape[0],
                )
            )
        self._cudart.copy_rows(calls)

    def release(self, slot: int) -> None:
        """Does nothing: a GPU's memory is taken and given back as a whole."""


def _allocate(
    shape: tuple[int, ...], dtype: np.dtype, large_pages: bool = False
) -> tuple[np.ndarray, mmap.mmap | None]:
    """An array of zeros, and the mmap that it lies in, if any. A page takes memory when it is first written."""
    if large_pages or not math.prod(shape):
        return np.zeros(shape, dtype), None  # numpy itself asks for large pages
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # otherwise some systems take 2 MB for each head's first row
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape), pages

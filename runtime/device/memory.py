"""Blocks of bytes on a device: the memory behind the buffers of a step and behind the KV cache on CUDA.

The runtime binds its buffers by their addresses on the device, and reads and writes mirrors of them in the host's
memory. On the CPU the mirror is the memory itself. On CUDA the GPU sees what was pushed, and the host what was pulled.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .cudart import Cudart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

_ALIGNMENT = 256  # bytes: what CUDA's own allocations begin at


class Block(Protocol):
    """A block of bytes on a device, and its mirror in the host's memory. Both are zero at first.

    Attributes:
        address: The address on the device.
        mirror: uint8 [size], in the host's memory.
    """

    address: int
    mirror: np.ndarray

    def push(self) -> None:
        """Lets the device see what the mirror holds."""

    def pull(self, begin: int, size: int) -> None:
        """Lets the mirror hold the device's `size` bytes from `begin` on."""


class HostBlock:
    """A Block in the CPU's memory: the mirror is the memory.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.mirror = np.zeros(size, np.uint8)
        self.address = self.mirror.ctypes.data

    def push(self) -> None:
        """Does nothing: the device sees the mirror."""

    def pull(self, begin: int, size: int) -> None:
        """Does nothing: the device writes the mirror."""


class CudaBlock:
    """A Block in a GPU's memory. The mirror is memory of the host that the GPU can read fast.

    Args:
        cudart: The calls for the GPU.
        size: Bytes.
    """

    def __init__(self, cudart: Cudart, size: int) -> None:
        self._cudart = cudart
        self.address = device_memory(cudart, size, self)
        self.mirror = np.asarray(_HostMemory(cudart, size))

    def push(self) -> None:
        """Copies the mirror to the GPU."""
        self._cudart.push(self.address, self.mirror.ctypes.data, self.mirror.size)

    def pull(self, begin: int, size: int) -> None:
        """Copies a part of the GPU's bytes into the mirror."""
        self._cudart.pull(self.mirror.ctypes.data + begin, self.address + begin, size)


class _HostMemory:
    """Memory of the host that lives as long as an array on it."""

    def __init__(self, cudart: Cudart, size: int) -> None:
        address = cudart.allocate_host(size)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        weakref.finalize(self, cudart.free_host, address)


def device_memory(cudart: Cudart, size: int, owner: object) -> int:
    """The address of `size` zero bytes of a GPU's memory, which are given back when their owner is gone."""
    address = cudart.allocate(size)
    weakref.finalize(owner, cudart.free, address)
    return address


def allocate(device: str, device_id: int, size: int) -> Block:
    """A Block of zeros on a device, "cpu" or "cuda"."""
    return CudaBlock(Cudart(device_id), size) if device == "cuda" else HostBlock(size)


class View:
    """An array in a Block.

    Args:
        block: The block.
        offset: The array's first byte.
        dtype: The type of its numbers.
        shape: Its shape.

    Attributes:
        array: The array in the block's mirror.
        address: The array's address on the device.
    """

    def __init__(self, block: Block, offset: int, dtype: DTypeLike, shape: Sequence[int]) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._block = block
        self._offset = offset
        self.array: np.ndarray = block.mirror[offset : offset + size].view(dtype).reshape(shape)
        self.address = block.address + offset

    def pull(self, first: int, count: int) -> np.ndarray:
        """Rows of the array, as the device has them."""
        found = self.array[first : first + count]
        row_bytes = self.array.strides[0]
        self._block.pull(self._offset + first * row_bytes, count * row_bytes)
        return found


def aligned(size: int) -> int:
    """The number of bytes after which the next part of a block may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT

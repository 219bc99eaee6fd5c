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

import mmap
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.cache_layout import CachePart, cache_parts

from .cache_memory import CacheMemory, CudaCacheMemory, HostCacheMemory, RowCopy, SlotTensor
from .cudart import Cudart
from .element_types import onnx_type

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from onnxruntime import IOBinding

    from neo_tf.config import GPTNeoConfig

# Rows of a short buffer beyond its window: the CPU's kernel drops positions only once in as many steps.
_SLACK = 64


class KVCache:
    """A buffer [slots, heads, rows, columns] for every part of the cache.

    A slot's part of a buffer is contiguous, so neighbouring slots can be bound by the address of the first one.

    Args:
        config: The model's config.
        slots: The number of sequences that the cache can hold at once.
        dtype: The type of keys and values. The sums of linear attention are always float32.
        device: "cpu" or "cuda".
        device_id: The index of the device.
        large_pages: On the CPU, asks for pages of 2 MB. A step at 1500 tokens is 6 % faster with them, but all memory
            of a slot is taken with its first token. In ordinary pages a short text takes little of its slot.
        windowed: Whether local layers keep little more than their window; see OnnxFolder.windowed_caches.

    Attributes:
        slots: The number of slots.
        dtype: The type of keys and values.
        device, device_id: Where the buffers are.
        n_ctx: The number of positions that a slot can hold.
        bytes_at_most: The memory that all buffers take when every slot is full.
        has_sums: Whether the model has linear attention, whose running sums cannot be cut to a shorter text.

    Raises:
        ProviderError: The GPU has too little memory for this number of slots.
    """

    def __init__(
        self,
        config: GPTNeoConfig,
        slots: int,
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        device_id: int = 0,
        large_pages: bool = False,
        windowed: bool = True,
    ) -> None:
        self.slots = slots
        self.dtype = np.dtype(dtype)
        self.device = device
        self.device_id = device_id
        self.n_ctx = config.n_ctx
        self.bytes_at_most = slots * self.bytes_per_slot(config, dtype, windowed)
        self._large_pages = large_pages
        self._parts = cache_parts(config, windowed)
        self._tensors = slot_tensors(self._parts, config, dtype)
        self._element_types = [onnx_type(tensor.dtype) for tensor in self._tensors]
        self._memory = self._allocate(self._tensors, slots, large_pages)
        self.has_sums = any(part.kind == "sums" for part in self._parts)
        # Each different (window, rows of the buffer) of the local layers whose buffers are short.
        self._windows = {
            (part.rows, tensor.shape[1])
            for part, tensor in zip(self._parts, self._tensors, strict=True)
            if part.kind == "window"
        }

    @staticmethod
    def bytes_per_slot(config: GPTNeoConfig, dtype: DTypeLike = np.float32, windowed: bool = True) -> int:
        """The bytes that a full slot takes in all buffers together."""
        return sum(tensor.nbytes for tensor in slot_tensors(cache_parts(config, windowed), config, dtype))

    def _allocate(self, tensors: list[SlotTensor], slots: int, large_pages: bool = False) -> CacheMemory:
        if self.device == "cuda":
            return CudaCacheMemory(tensors, slots, Cudart(self.device_id))
        return HostCacheMemory(tensors, slots, large_pages)

    def bytes_of(self, length: int) -> int:
        """The bytes that a slot takes once it has held `length` positions, until release gives them back."""
        if self.device != "cpu" or self._large_pages:
            return self.bytes_at_most // self.slots
        size = 0
        for part, tensor in zip(self._parts, self._tensors, strict=True):
            heads, capacity, _ = tensor.shape
            used = self._span(part, tensor, 0, length)[1] if length <= capacity else capacity
            # The rows of a head begin somewhere in a page, so that one more page is touched.
            size += heads * min(capacity * tensor.row_bytes, used * tensor.row_bytes + mmap.PAGESIZE)
        return size

    def bind(self, binding: IOBinding, slot: int, count: int) -> None:
        """Binds the slots [slot, slot + count) of every buffer to the graph's past and present."""
        for number, (part, tensor) in enumerate(zip(self._parts, self._tensors, strict=True)):
            shape = (count, *tensor.shape)
            address = self._memory.address(number, slot)
            place = (self.device, self.device_id, self._element_types[number], shape, address)
            binding.bind_input(part.past, *place)
            binding.bind_output(part.present, *place)

    # ---- what a slot holds

    def room(self, length: int) -> int:
        """How many tokens a slot of this length can take and give back again.

        A token is given back when the next run begins at a shorter length and writes over it. That works until a local
        layer has dropped positions which the shorter text needs.
        """
        if self.has_sums:
            return 0
        free = (capacity - length + dropped(window, capacity, length) for window, capacity in self._windows)
        return min(free, default=self.n_ctx)

    def can_idle(self, length: int) -> bool:
        """Whether a slot of this length may be run along with others: the token that it takes is written over later."""
        return length == 0 or self.room(length) > 0

    def keep(self, slot: int) -> CacheMemory:
        """A copy of what an idle step of a slot would destroy where can_idle says no; see put_back."""
        kept = self._allocate([self._fixed(number) for number in range(len(self._parts))], 1)
        self._memory.copy(self._whole(kept, slot, 0), kept)
        return kept

    def put_back(self, slot: int, kept: CacheMemory) -> None:
        """Gives a slot back what keep copied."""
        kept.copy(self._whole(kept, 0, slot), self._memory)

    def _fixed(self, number: int) -> SlotTensor:
        """What keep copies of a part: all of a short buffer or of sums, and nothing of one row for each position."""
        heads, rows, columns = self._tensors[number].shape
        is_full = self._parts[number].kind == "full"
        return SlotTensor((heads, 0 if is_full else rows, columns), self._tensors[number].dtype)

    def _whole(self, kept: CacheMemory, source: int, target: int) -> list[RowCopy]:
        """Copies of all rows of what keep keeps."""
        return [RowCopy(number, source, 0, target, 0, tensor.shape[1]) for number, tensor in enumerate(kept.tensors)]

    def copy(self, source: int, target: int, begin: int, length: int) -> None:
        """Copies the positions from `begin` on from one slot to another. Those before are equal already.

        Args:
            source: The slot to read.
            target: The slot to write.
            begin: The first position that may differ.
            length: The number of positions that the source holds.
        """
        copies = []
        for number, (first, end) in enumerate(self._spans(begin, length)):
            copies.append(RowCopy(number, source, first, target, first, end - first))
        self._memory.copy(copies, self._memory)

    def store(self, places: int, tokens: int) -> CacheMemory:
        """Memory on the same device: `places` places, each for `tokens` tokens; see save and load."""
        tensors = []
        for tensor, (first, end) in zip(self._tensors, self._spans(0, tokens), strict=True):
            heads, _, columns = tensor.shape
            tensors.append(SlotTensor((heads, end - first, columns), tensor.dtype))
        return self._allocate(tensors, places)

    def store_bytes(self, tokens: int) -> int:
        """The bytes of a place for this number of tokens."""
        spans = zip(self._tensors, self._spans(0, tokens), strict=True)
        return sum(tensor.shape[0] * (end - first) * tensor.row_bytes for tensor, (first, end) in spans)

    def save(self, slot: int, begin: int, end: int, length: int, store: CacheMemory, place: int) -> None:
        """Copies the positions [begin, end) of a slot into a place of a store.

        Learned keys and values count as part of position 0. Positions that a local layer has dropped have no rows. What
        there is of a layer's rows lies at the end of the place.

        Args:
            slot: The slot to read.
            begin: The first position.
            end: The position after the last one.
            length: The number of positions that the slot holds.
            store: A store for end - begin tokens.
            place: The place to write.
        """
        copies = []
        for number, (first, count) in enumerate(self._rows(begin, end, length)):
            last = store.tensors[number].shape[1]
            copies.append(RowCopy(number, slot, first, place, last - count, count))
        self._memory.copy(copies, store)

    def load(self, slot: int, begin: int, end: int, length: int, store: CacheMemory, place: int) -> None:
        """Copies a place of a store into the positions [begin, end) of a slot; the arguments are those of save.

        The slot will hold `length` positions when all places up to there are loaded.
        """
        copies = []
        for number, (first, count) in enumerate(self._rows(begin, end, length)):
            last = store.tensors[number].shape[1]
            copies.append(RowCopy(number, place, last - count, slot, first, count))
        store.copy(copies, self._memory)

    def _rows(self, begin: int, end: int, length: int) -> list[tuple[int, int]]:
        """For each part (first row, number of rows) of the positions [begin, end) in a slot of this length."""
        rows = []
        for first, last in self._spans(begin, length):
            rows.append((first, max(0, last - (length - end) - first)))
        return rows

    def first_kept(self, length: int) -> int:
        """The first position that every layer still holds in a slot of this length."""
        return max((dropped(window, capacity, length) for window, capacity in self._windows), default=0)

    @property
    def window(self) -> int:
        """How many positions before a token the local layers see; 0 for a model without short buffers."""
        return max((window - 1 for window, _ in self._windows), default=0)

    def _spans(self, begin: int, length: int) -> list[tuple[int, int]]:
        """_span of every part."""
        parts = zip(self._parts, self._tensors, strict=True)
        return [self._span(part, tensor, begin, length) for part, tensor in parts]

    def _span(self, part: CachePart, tensor: SlotTensor, begin: int, length: int) -> tuple[int, int]:
        """The rows [first, end) that hold the positions [begin, length), as far as the buffer still has them."""
        if part.kind == "sums":
            return 0, tensor.shape[1]
        if part.kind == "window":
            gone = dropped(part.rows, tensor.shape[1], length)
            return max(begin - gone, 0), length - gone
        learned = part.rows - self.n_ctx  # rows of learned keys, in front of position 0
        return (learned + begin if begin else 0), learned + length

    def release(self, slot: int) -> None:
        """Gives a slot's memory back to the system, where the system allows it. What the slot held is lost."""
        self._memory.release(slot)


def slot_tensors(parts: list[CachePart], config: GPTNeoConfig, dtype: DTypeLike) -> list[SlotTensor]:
    """What each part of the cache holds of a slot, where keys and values have this dtype."""
    tensors = []
    for part in parts:
        kept = np.dtype(np.float32 if part.kind == "sums" else dtype)
        tensors.append(SlotTensor((part.heads, rows(part, config), part.columns), kept))
    return tensors


def rows(part: CachePart, config: GPTNeoConfig) -> int:
    """The number of rows of a part's buffer: those that the part needs, and the slack of a short one."""
    if part.kind == "window":
        return min(config.n_ctx, part.rows + _SLACK)
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

"""Which slots are in use, and how much memory they may take together."""

from typing import TYPE_CHECKING

from neo_tf.errors import RequestError
from neo_tf.sizes import readable_bytes

from ..device.machine import available_memory

if TYPE_CHECKING:
    from ..device.kv_cache import KVCache

_SHARE = 0.8  # of the free memory, where no limit is given


class Slots:
    """The slots of a KV cache, handed out within a limit of bytes.

    A slot takes its memory with its first text, and keeps it when it is free again. Where another slot needs memory
    beyond the limit, what free slots hold goes back to the system.

    Args:
        cache: The KV cache.
        limit: Bytes that the slots may take together; most of the free memory where None. On CUDA all memory is
            allocated beforehand.
        count: The number of the cache's first slots that are handed out; all where None.

    Attributes:
        limit: As above; None where the system does not tell what is free.
        tight: Whether all slots together could need more than the limit.
    """

    def __init__(self, cache: "KVCache", limit: int | None = None, count: int | None = None) -> None:
        self._cache = cache
        self._count = count or cache.slots
        if limit is None and cache.device == "cpu":
            limit = available_memory()
            limit = limit and int(_SHARE * limit)
        self.limit = limit
        self.tight = limit is not None and cache.bytes_at_most > limit
        self._free = list(range(self._count))
        self._held = [0] * cache.slots  # bytes of each slot's memory
        self._promised: dict[int, int] = {}  # {slot in use: the most bytes that it may need}

    def check(self, count: int, length: int) -> None:
        """Raises RequestError where `count` sequences of `length` tokens could never be held at once."""
        if count > self._count:
            raise RequestError(f"{count} sequences are to be held at once, and the cache has {self._count} slots")
        size = count * self._cache.bytes_of(length)
        if self.limit is not None and self.tight and size > self.limit:
            told = f"{readable_bytes(size)} of cache for {count * length} tokens"
            raise RequestError(f"the request needs {told}, and the limit is {readable_bytes(self.limit)}")

    def take(self, count: int, length: int) -> list[int] | None:
        """Takes the lowest free slots for `count` sequences of at most `length` tokens; None without room for them."""
        if count > len(self._free):
            return None
        size = self._cache.bytes_of(length)
        taken = self._free[:count]
        promised = sum(self._promised.values()) + count * size
        if self.limit is not None and self.tight and promised > self.limit:
            return None
        del self._free[:count]
        for slot in taken:
            self._promise(slot, size)
        return taken

    def give(self, slots: list[int]) -> None:
        """Takes slots back: they are free again."""
        for slot in slots:
            del self._promised[slot]
        self._free = sorted([*self._free, *slots])

    def move(self, source: int, target: int) -> None:
        """Frees a slot that is in use, and takes a free one in its place."""
        self._free[self._free.index(target)] = source
        self._free.sort()
        self._promise(target, self._promised.pop(source))

    @property
    def free(self) -> int:
        """The number of free slots."""
        return len(self._free)

    @property
    def bytes_promised(self) -> int:
        """The most bytes that the slots in use may need together."""
        return sum(list(self._promised.values()))  # a copy: another thread may take slots meanwhile

    @property
    def lowest_free(self) -> int | None:
        """The lowest free slot, or None."""
        return self._free[0] if self._free else None

    def _promise(self, slot: int, size: int) -> None:
        """Promises a slot this number of bytes, and releases the memory of free slots that this needs."""
        self._promised[slot] = size
        if self.limit is None or not self.tight:
            return
        if self._held[slot] > size:
            self._cache.release(slot)
        self._held[slot] = size
        for other in reversed(self._free):
            if sum(self._held) <= self.limit:
                return
            self._cache.release(other)
            self._held[other] = 0

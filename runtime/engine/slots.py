"""Which slots are in use, and how much memory they may take together."""

from neo_tf.errors import RequestError
from neo_tf.sizes import readable_bytes

from ..device.machine import available_memory

_SHARE = 0.8  # of the memory that is there, where no limit is given


class Slots:
    """The slots of a KVCache, handed out within a limit of bytes.

    A slot's memory is taken by its first text and stays with it: where another one's is wanted, what free slots hold
    is given back to the system.

    Args:
        cache: a KVCache.
        limit: bytes; by default most of the memory that is there now. On CUDA all is allocated before.
        count: so many of the cache's slots; all where None.

    Attributes:
        limit: bytes, or None.
        tight: whether all slots together could come to more.
    """

    def __init__(self, cache, limit=None, count=None):
        self._cache, self._count = cache, count or cache.slots
        if limit is None and cache.device == "cpu":
            limit = available_memory()
            limit = limit and int(_SHARE * limit)
        self.limit = limit
        self.tight = limit is not None and cache.bytes_at_most > limit
        self._free = list(range(self._count))
        self._held = [0] * cache.slots  # bytes of each slot's memory
        self._promised = {}  # {slot in use: bytes that it may come to}

    def check(self, count, length):
        """Raises RequestError where so many sequences of that length could never be held."""
        if count > self._count:
            raise RequestError(f"{count} sequences are to be held at once, and the cache has {self._count} slots")
        size = count * self._cache.bytes_of(length)
        if self.tight and size > self.limit:
            told = f"{readable_bytes(size)} of cache for {count * length} tokens"
            raise RequestError(f"the request needs {told}, and the limit is {readable_bytes(self.limit)}")

    def take(self, count, length):
        """The lowest free slots, for so many sequences of at most that length; None where there is no room now."""
        if count > len(self._free):
            return None
        size = self._cache.bytes_of(length)
        taken = self._free[:count]
        if self.tight and sum(self._promised.values()) + count * size > self.limit:
            return None
        del self._free[:count]
        for slot in taken:
            self._promise(slot, size)
        return taken

    def give(self, slots):
        """Takes slots back."""
        for slot in slots:
            del self._promised[slot]
        self._free = sorted([*self._free, *slots])

    def move(self, source, target):
        """Lets a free slot take the place of one in use."""
        self._free[self._free.index(target)] = source
        self._free.sort()
        self._promise(target, self._promised.pop(source))

    @property
    def free(self):
        """How many are free."""
        return len(self._free)

    @property
    def lowest_free(self):
        """The lowest free slot, or None."""
        return self._free[0] if self._free else None

    def _promise(self, slot, size):
        """Lets a slot come to a size, and takes from others what that needs."""
        self._promised[slot] = size
        if not self.tight:
            return
        if self._held[slot] > size:
            self._cache.release(slot)
        self._held[slot] = size
        for other in reversed(self._free):
            if sum(self._held) <= self.limit:
                return
            self._cache.release(other)
            self._held[other] = 0

"""The shared-prefix cache: a beginning that several prompts share is computed once, and copied for the others."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..device.kv_cache import allocate_pages

if TYPE_CHECKING:
    from ..device.kv_cache import KVCache

BLOCK = 64  # tokens


class PrefixCache:
    """Keys and values of blocks of prompts. A block is found by all tokens up to its end.

    Where the memory is full, the blocks that were not used for the longest time are dropped.

    A local layer's short cache forgets. Of positions that it has dropped by the end of a chunk, only the other layers'
    rows are kept, and a prefix can end only where the whole window before its end is known.

    Args:
        cache: A KV cache in the CPU's memory, of a model without linear attention.
        limit: Bytes to use; the bytes of one context where None. They are taken as they are needed.
        block: Tokens of a block; BLOCK where None. A prefix consists of whole blocks.

    Attributes:
        block_bytes: Bytes of one block.
        blocks: The number of blocks that there is room for.
        tokens_reused: Tokens of all prompts so far that were not computed again.
    """

    def __init__(self, cache: "KVCache", limit: int | None = None, block: int | None = None) -> None:
        self._cache = cache
        self._block = block or BLOCK
        self.tokens_reused = 0
        views = cache.rows_of(0, 0, self._block, self._block)  # the first block's has the learned keys and values, too
        self.block_bytes = sum(view.nbytes for view in views)
        self.blocks = cache.n_ctx // self._block if limit is None else limit // self.block_bytes
        self._store = [allocate_pages((self.blocks, *view.shape), view.dtype)[0] for view in views if self.blocks]
        self._free = list(range(self.blocks))
        # {key: (place in the store, first position with all layers' rows)}, the least recently used first
        self._places: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    @property
    def bytes_used(self) -> int:
        """The bytes of the blocks that are kept."""
        return len(self._places) * self.block_bytes

    def keys(self, prompt: Sequence[int]) -> list[bytes]:
        """A key for each whole block of a prompt, made of all tokens up to the block's end.

        The prompt's last token belongs to no block: it is run in any case, as the first logits come from it.
        """
        keys = []
        digest = hashlib.blake2b(digest_size=16)
        ids = np.asarray(prompt, np.int64)
        for end in range(self._block, len(ids), self._block):
            digest.update(ids[end - self._block : end].tobytes())
            keys.append(digest.digest())
        return keys

    def load(self, slot: int, keys: list[bytes]) -> int:
        """Fills an empty slot with the longest known prefix of a prompt.

        Args:
            slot: The slot of the KV cache.
            keys: The prompt's keys.

        Returns:
            The prefix's length in tokens.
        """
        known = 0
        while known < len(keys) and keys[known] in self._places:
            known += 1
        while known and not self._ends_whole(keys[:known]):
            known -= 1
        for number, key in enumerate(keys[:known]):
            place = self._places[key][0]
            begin = number * self._block
            targets = self._cache.rows_of(slot, begin, begin + self._block, known * self._block)
            for target, store in zip(targets, self._store, strict=True):
                target[:] = store[place][:, store.shape[2] - target.shape[1] :]
        self._touch(keys[:known])
        self.tokens_reused += known * self._block
        return known * self._block

    def save(self, slot: int, keys: list[bytes], begin: int, length: int) -> None:
        """Keeps the blocks of a prompt that a chunk has completed.

        Args:
            slot: The slot of the KV cache.
            keys: The prompt's keys.
            begin: The chunk's first position.
            length: The number of tokens that the slot holds after the chunk.
        """
        first = begin // self._block
        end = min(length // self._block, len(keys), self.blocks)
        kept = self._cache.first_kept(length)
        for number in range(first, end):
            start = number * self._block
            known = self._places.get(keys[number])
            if known and known[1] <= max(start, kept):
                continue
            place = known[0] if known else self._place()
            views = self._cache.rows_of(slot, start, start + self._block, length)
            for view, store in zip(views, self._store, strict=True):
                store[place][:, store.shape[2] - view.shape[1] :] = view
            self._places[keys[number]] = (place, max(start, kept))
        self._touch(keys[:end])

    def _ends_whole(self, keys: list[bytes]) -> bool:
        """Whether a prefix can end with the last of these blocks: the window before its end is known."""
        needed = len(keys) * self._block - self._cache.window
        blocks = [(number * self._block, self._places[key][1]) for number, key in enumerate(keys)]
        return all(there <= max(start, needed) for start, there in blocks if start + self._block > needed)

    def _place(self) -> int:
        """A place in the store, taken from the least recently used block where all are in use."""
        if self._free:
            return self._free.pop()
        return self._places.popitem(last=False)[1][0]

    def _touch(self, keys: list[bytes]) -> None:
        """Marks blocks as just used. The first block comes last: a prefix outlives the blocks that follow it."""
        for key in reversed(keys):
            if key in self._places:
                self._places.move_to_end(key)

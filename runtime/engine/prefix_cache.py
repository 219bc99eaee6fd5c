"""The shared-prefix cache: what prompts begin with is computed once, and copied for those that begin the same."""

import hashlib
from collections import OrderedDict

import numpy as np

from ..device.kv_cache import allocate_pages

BLOCK = 64  # tokens


class PrefixCache:
    """Keys and values of blocks of prompts, found by all tokens up to a block's end; the least recently used go first.

    A local layer's short cache forgets: of positions that it has dropped by the end of a chunk the other layers' rows
    are kept alone, and a prefix can end only where the whole window before it is known.

    Args:
        cache: a KVCache in the CPU's memory, without linear attention's sums.
        limit: bytes to use, those of one context where None; they are taken as they are needed.
        block: tokens of a block; a prefix is found by whole ones.

    Attributes:
        tokens_reused: of all prompts so far.
    """

    def __init__(self, cache, limit=None, block=None):
        self._cache, self._block, self.tokens_reused = cache, block or BLOCK, 0
        views = cache.rows_of(0, 0, self._block, self._block)  # the first block's has the learned keys and values, too
        self.block_bytes = sum(view.nbytes for view in views)
        self.blocks = cache.n_ctx // self._block if limit is None else limit // self.block_bytes
        self._store = [allocate_pages((self.blocks, *view.shape), view.dtype)[0] for view in views if self.blocks]
        self._free = list(range(self.blocks))
        self._places = OrderedDict()  # {key: (place in the store, first position with all layers' rows)}

    def keys(self, prompt):
        """A key for each whole block of a prompt, of all tokens up to its end; without the prompt's last token.

        That one is run in any case: the first logits come from it.
        """
        keys, digest = [], hashlib.blake2b(digest_size=16)
        ids = np.asarray(prompt, np.int64)
        for end in range(self._block, len(ids), self._block):
            digest.update(ids[end - self._block : end].tobytes())
            keys.append(digest.digest())
        return keys

    def load(self, slot, keys):
        """Fills an empty slot with the longest known prefix of a prompt.

        Args:
            slot: of the cache.
            keys: of the prompt.

        Returns:
            The prefix's length in tokens.
        """
        known = 0
        while known < len(keys) and keys[known] in self._places:
            known += 1
        while known and not self._ends_whole(keys[:known]):
            known -= 1
        for number, key in enumerate(keys[:known]):
            place, begin = self._places[key][0], number * self._block
            targets = self._cache.rows_of(slot, begin, begin + self._block, known * self._block)
            for target, store in zip(targets, self._store, strict=True):
                target[:] = store[place][:, store.shape[2] - target.shape[1] :]
        self._touch(keys[:known])
        self.tokens_reused += known * self._block
        return known * self._block

    def save(self, slot, keys, begin, length):
        """Keeps the blocks of a prompt that a chunk has completed.

        Args:
            slot: of the cache.
            keys: of the prompt.
            begin, length: the chunk's first position, and the slot's length after it.
        """
        first, end = begin // self._block, min(length // self._block, len(keys), self.blocks)
        kept = self._cache.first_kept(length)
        for number in range(first, end):
            start, known = number * self._block, self._places.get(keys[number])
            if known and known[1] <= max(start, kept):
                continue
            place = known[0] if known else self._place()
            views = self._cache.rows_of(slot, start, start + self._block, length)
            for view, store in zip(views, self._store, strict=True):
                store[place][:, store.shape[2] - view.shape[1] :] = view
            self._places[keys[number]] = (place, max(start, kept))
        self._touch(keys[:end])

    def _ends_whole(self, keys):
        """Whether a prefix can end with the last of these blocks."""
        needed = len(keys) * self._block - self._cache.window
        blocks = [(number * self._block, self._places[key][1]) for number, key in enumerate(keys)]
        return all(there <= max(start, needed) for start, there in blocks if start + self._block > needed)

    def _place(self):
        if self._free:
            return self._free.pop()
        return self._places.popitem(last=False)[1][0]

    def _touch(self, keys):
        # The first last: a prefix outlives what goes on from it.
        for key in reversed(keys):
            if key in self._places:
                self._places.move_to_end(key)

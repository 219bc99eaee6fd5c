"""What the tests of sessions share."""

import numpy as np


def decoded_logits(session, first, token_ids, past):
    """One decode step's logits, float32 [count, n_vocab]; the caller may keep them."""
    decoded = session.decode(first, np.asarray(token_ids), np.asarray(past))
    return np.stack([decoded.logits(row) for row in range(len(token_ids))])


def rows_of(cache, slot, begin, end, length):
    """Views of the rows that hold the positions [begin, end) of a slot with `length` positions, on the CPU.

    An array [heads, n, columns] for each part of the cache; n differs between global and local layers.
    """
    views = []
    for array, (first, count) in zip(cache._memory.arrays, cache._rows(begin, end, length), strict=True):
        views.append(array[slot, :, first : first + count])
    return views

"""What the tests of sessions share."""

import numpy as np


def decoded_logits(session, first, token_ids, past):
    """One decode step's logits, float32 [count, n_vocab]; the caller may keep them."""
    decoded = session.decode(first, np.asarray(token_ids), np.asarray(past))
    return np.stack([decoded.logits(row) for row in range(len(token_ids))])

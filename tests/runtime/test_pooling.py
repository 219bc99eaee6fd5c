"""One vector for a text."""

import numpy as np
import pytest

from neo_tf.runtime.pooling import POOLINGS, pool

STATES = np.array([[3, 0], [0, 0], [0, 3]], np.float32)


@pytest.mark.parametrize(
    ("pooling", "plain", "unit"),
    [
        ("mean", [1, 1], [0.5**0.5, 0.5**0.5]),
        ("last", [0, 3], [0, 1]),
        ("none", STATES, [[1, 0], [0, 0], [0, 1]]),  # a vector of zeros has no direction, and stays
    ],
)
def test_pooling_and_normalisation(pooling, plain, unit):
    assert pooling in POOLINGS
    for normalize, expected in ((False, plain), (True, unit)):
        found = pool(STATES, pooling, normalize)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_mean_of_many_large_tokens_is_exact():
    states = np.full((100_000, 1), 16_777_217 / 3, np.float32)
    assert pool(states)[0] == states[0, 0]

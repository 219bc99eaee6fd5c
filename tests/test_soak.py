"""A short soak; benchmarks/soak.py by itself runs the 10,000 requests that its figures are of."""

import sys

import pytest
from conftest import GOLDEN

from benchmarks.soak import soak


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_flat_and_every_slot_comes_back(exported):
    found = soak(exported(GOLDEN / "tiny-global-local"), 1500, slots=8, report=lambda line: None)
    assert found["ended"] == 1500 and found["free_slots"] == 8
    assert 100 < found["cancelled"] < 300
    sizes = [size for _, size in found["resident"]]
    assert len(sizes) == 3 and max(sizes) - sizes[0] < 5e6

"""Folders that are drawn at random: neo-tf makes of each what transformers makes of it.

The seeds are fixed. `make random-folders N=2000` draws more; a seed that it prints draws the same folder again.
"""

import pytest

pytest.importorskip("transformers")

import torch
from check_folders import check_folders


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(seeds, **options):
    found = []
    differences, counts = check_folders(seeds, report=found.append, **options)
    assert not differences, "\n".join(found)
    return counts


def test_tokenizers(monkeypatch, tmp_path):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    counts = check(range(10_000, 10_150), tokenizer_alone=True)
    assert counts["tokenizers that transformers refuses"] < 50


def test_models(monkeypatch, tmp_path):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    counts = check(range(20_000, 20_025))
    assert counts["round trips"] > 12 and counts["calls compared"] > 25 and counts["ties"] == 0

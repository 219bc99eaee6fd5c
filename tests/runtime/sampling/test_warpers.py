"""Warpers against transformers' own, one by one and in chains."""

import numpy as np
import pytest
from sampling_helpers import scores, transformers_warpers

from neo_tf.runtime.sampling import warpers
from neo_tf.runtime.sampling.options import SamplingOptions

KINDS = ["random", "ties", "peaked"]


def ours_and_transformers(logits, **options):
    torch = pytest.importorskip("torch")
    ours, expected = logits.copy(), torch.tensor(logits).double()  # in float32, its sums put the limits elsewhere
    for function, value in warpers.make_warpers(SamplingOptions(do_sample=True, **options)):
        ours = function(ours, value)
    for warper in transformers_warpers(options):
        expected = warper(None, expected)
    return ours, expected.float().numpy()


def check(logits, **options):
    ours, expected = ours_and_transformers(logits, **options)
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.5, 1e-20])
def test_temperature_is_transformers(kind, temperature):
    check(scores(kind), temperature=temperature)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 2, 17, 199, 200, 1000])
def test_top_k_is_transformers_ties_included(kind, top_k):
    check(scores(kind), top_k=top_k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n_vocab", [200, 5003])
def test_top_p_is_transformers(kind, top_p, n_vocab):
    ours, expected = ours_and_transformers(scores(kind, n_vocab=n_vocab), top_p=top_p)
    if kind == "ties":  # which of equal tokens stay is up to the sort; how many, and with what logits, is not
        ours, expected = np.sort(ours), np.sort(expected)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"min_p": value} for value in (0.001, 0.1, 0.7, 1.0)]
    + [{"typical_p": value} for value in (0.05, 0.5, 0.95)]
    + [{"epsilon_cutoff": value} for value in (1e-5, 0.01, 0.5)]
    + [{"eta_cutoff": value} for value in (1e-4, 0.01, 0.5)],
    ids=str,
)
def test_the_others_are_transformers(kind, options):
    check(scores(kind), **options)


@pytest.mark.parametrize("kind", ["random", "peaked"])
@pytest.mark.parametrize("seed", range(30))
def test_chains_are_transformers(kind, seed):
    """Random ones, in transformers' order; each works on what those before it left."""
    generator = np.random.default_rng(seed)
    values = {
        "temperature": generator.uniform(0.3, 3),
        "top_k": int(generator.integers(2, 150)),
        "top_p": generator.uniform(0.3, 0.99),
        "min_p": generator.uniform(0, 0.2),
        "typical_p": generator.uniform(0.3, 0.99),
        "epsilon_cutoff": generator.uniform(1e-4, 0.05),
        "eta_cutoff": generator.uniform(1e-4, 0.05),
    }
    chosen = {name: value for name, value in values.items() if generator.random() < 0.6}
    check(scores(kind, rows=16, seed=seed + 100), **chosen)


@pytest.mark.parametrize("seed", range(10))
def test_a_narrowed_row_says_the_same(seed):
    """warp leaves impossible tokens out of a wide row between the warpers; batches stay as wide as they are."""
    logits = scores("random", rows=3, n_vocab=5003, seed=seed)
    options = SamplingOptions(do_sample=True, temperature=1.3, top_k=90, top_p=0.9, typical_p=0.9, eta_cutoff=1e-3)
    chain = warpers.make_warpers(options)
    whole, ids = warpers.warp(chain, logits)
    assert ids is None
    for row, expected in zip(logits, whole, strict=True):
        narrow, ids = warpers.warp(chain, row[None])
        assert len(ids) < 100
        found = np.full(5003, -np.inf, np.float32)
        found[ids] = narrow[0]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 2, 40, 77, 78, 79, 1000, 5002, 5003, 6000])
def test_a_narrowed_row_has_the_top_k_and_all_ties(kind, top_k):
    (row,) = scores(kind, rows=1, n_vocab=5003)
    row[[0, 4999, 5002]] = row.max()
    chain = warpers.make_warpers(SamplingOptions(do_sample=True, top_k=top_k))
    narrow, ids = warpers.warp(chain, row[None])
    expected = np.sort(row)[-min(top_k, 5003)]
    kept = np.arange(5003) if ids is None else ids
    assert kept[np.isfinite(narrow[0])].tolist() == np.flatnonzero(row >= expected).tolist()


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log(np.array([[0.15, 0.5, 0.05, 0.3]], np.float32))
    for top_p, kept in [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.96, [0, 1, 2, 3]),
    ]:
        assert np.flatnonzero(np.isfinite(warpers.keep_top_p(logits, top_p)[0])).tolist() == kept
    np.testing.assert_array_equal(warpers.keep_top_p(logits, 1.0), logits)


def test_neutral_values_make_no_warpers():
    assert warpers.make_warpers(SamplingOptions(do_sample=True)) == []
    assert warpers.make_warpers(SamplingOptions(temperature=2.0, top_k=5)) == []  # greedy


def test_warpers_leave_their_input_alone_and_stay_in_float32():
    logits = scores("random")
    before = logits.copy()
    values = {"temperature": 2.0, "top_k": 3, "top_p": 0.5, "min_p": 0.5}
    values |= {"typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1}
    for name, value in values.items():
        ((function, parameter),) = warpers.make_warpers(SamplingOptions(do_sample=True, **{name: value}))
        changed = function(logits, parameter)
        assert changed.dtype == np.float32 and not np.array_equal(changed, before)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_softmax_adds_up_however_large_the_logits_are(scale):
    logits = scores("random") * np.float32(scale)
    found = warpers.softmax(logits)
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(warpers.log_softmax(logits)), found, rtol=1e-5, atol=1e-30)

"""Processors against transformers' own, and samplers against the distribution that they sample."""

import numpy as np
import pytest

from neo_tf.errors import RequestError
from runtime.sampling import (
    SamplingOptions,
    apply_temperature,
    keep_top_k,
    keep_top_p,
    make_sampler,
    softmax,
    suppress,
)

FALSE_ALARM = 1e-6  # of each chi-square test, were its seed drawn anew


def scores(kind, rows=8, n_vocab=200, seed=0):
    """Random logits; "ties" has few different values, "peaked" nearly all probability in one token."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 3, (rows, n_vocab))
    if kind == "ties":
        values = np.round(values / 2)
    elif kind == "peaked":
        values[np.arange(rows), generator.integers(0, n_vocab, rows)] += 40
    return values.astype(np.float32)


def transformers_chain(logits, temperature=1.0, top_k=0, top_p=1.0):
    """What transformers makes of the logits, in its order: temperature, top-k, top-p."""
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found = torch.tensor(logits)
    if temperature != 1:
        found = TemperatureLogitsWarper(temperature)(None, found)
    if top_k:
        found = TopKLogitsWarper(top_k)(None, found)
    if top_p < 1:
        found = TopPLogitsWarper(top_p)(None, found)
    return found.numpy()


@pytest.mark.parametrize("kind", ["random", "ties", "peaked"])
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
def test_temperature_is_transformers(kind, temperature):
    logits = scores(kind)
    np.testing.assert_allclose(
        apply_temperature(logits, temperature), transformers_chain(logits, temperature), rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["random", "ties", "peaked"])
@pytest.mark.parametrize("top_k", [1, 2, 17, 199, 200, 1000])
def test_top_k_is_transformers_ties_included(kind, top_k):
    logits = scores(kind)
    np.testing.assert_array_equal(keep_top_k(logits, top_k), transformers_chain(logits, top_k=top_k))


@pytest.mark.parametrize("top_k", [0, 200, 5000])
def test_top_k_of_nothing_or_everything_changes_nothing(top_k):
    logits = scores("random")
    np.testing.assert_array_equal(keep_top_k(logits, top_k), logits)


@pytest.mark.parametrize("kind", ["random", "ties", "peaked"])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_is_transformers(kind, top_p):
    logits = scores(kind)
    found, expected = keep_top_p(logits, top_p), transformers_chain(logits, top_p=top_p)
    if kind == "ties":  # which of equal tokens stay is up to the sort; how many, and with what logits, is not
        found, expected = np.sort(found), np.sort(expected)
    np.testing.assert_array_equal(found, expected)


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
        assert np.flatnonzero(np.isfinite(keep_top_p(logits, top_p)[0])).tolist() == kept
    np.testing.assert_array_equal(keep_top_p(logits, 1.0), logits)


def test_processors_leave_their_input_alone():
    logits = scores("random")
    before = logits.copy()
    for changed in (
        apply_temperature(logits, 2),
        keep_top_k(logits, 3),
        keep_top_p(logits, 0.5),
        suppress(logits, [4]),
    ):
        assert not np.array_equal(changed, before)
    np.testing.assert_array_equal(logits, before)


def test_suppressed_tokens_cannot_be_chosen():
    logits = scores("random")
    changed = suppress(logits, (0, 199, 7))
    assert np.isneginf(changed[:, [0, 7, 199]]).all()
    others = np.delete(np.arange(200), [0, 7, 199])
    np.testing.assert_array_equal(changed[:, others], logits[:, others])


@pytest.mark.parametrize("scale", [1, 1e4])
def test_softmax_adds_up_however_large_the_logits_are(scale):
    found = softmax(scores("random") * np.float32(scale))
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)


def test_greedy_takes_the_largest_and_the_first_of_equals():
    logits = scores("random")
    np.testing.assert_array_equal(make_sampler(SamplingOptions())(logits), logits.argmax(-1))
    assert make_sampler(SamplingOptions())(np.array([[1, 5, 5, 2]], np.float32)).tolist() == [1]


def test_greedy_does_not_look_at_the_sampling_options():
    logits = scores("random")
    options = SamplingOptions(temperature=9, top_k=3, top_p=0.1, seed=4)
    np.testing.assert_array_equal(make_sampler(options)(logits), logits.argmax(-1))


def chi_square_p_value(counts, probabilities):
    """Probability of counts at least so unlikely; the rarest tokens are pooled so that each cell expects 10."""
    torch = pytest.importorskip("torch")
    draws = counts.sum()
    order = np.argsort(-probabilities)
    cells = int((probabilities * draws >= 10).sum())
    pooled = [np.append(values[order[:cells]], values[order[cells:]].sum()) for values in (counts, probabilities)]
    observed, expected = pooled[0], pooled[1] * draws
    if expected[-1] < 10:  # the remainder goes to the rarest cell of its own
        observed, expected = (np.append(values[:-2], values[-2:].sum()) for values in (observed, expected))
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 10}, {"top_p": 0.8}]
    + [{"temperature": 1.5, "top_k": 40, "top_p": 0.9}, {"temperature": 1.2, "top_k": 6, "top_p": 0.95}],
    ids=str,
)
def test_tokens_come_as_often_as_transformers_distribution_says(options):
    torch = pytest.importorskip("torch")
    logits, draws = scores("random", rows=1, seed=3), 50_000
    sampler = make_sampler(SamplingOptions(do_sample=True, seed=1, **options))
    tokens = sampler(np.repeat(logits, draws, axis=0))
    probabilities = torch.softmax(torch.tensor(transformers_chain(logits, **options)[0]).double(), -1).numpy()
    counts = np.bincount(tokens, minlength=200)
    assert counts[probabilities == 0].sum() == 0
    assert chi_square_p_value(counts, probabilities) > FALSE_ALARM


def test_the_chi_square_test_has_power():
    """A sampler that is off by a few percent would be noticed."""
    logits = scores("random", rows=1, seed=3)
    tokens = make_sampler(SamplingOptions(do_sample=True, seed=1, temperature=1.05))(np.repeat(logits, 50_000, axis=0))
    assert chi_square_p_value(np.bincount(tokens, minlength=200), softmax(logits)[0]) < FALSE_ALARM


def test_draws_one_by_one_fit_the_distribution_too():
    """As the engine draws: one row a call, each with its own logits."""
    logits = scores("random", rows=1, n_vocab=20, seed=5)
    sampler = make_sampler(SamplingOptions(do_sample=True, seed=2))
    counts = np.bincount([int(sampler(logits)[0]) for _ in range(20_000)], minlength=20)
    assert chi_square_p_value(counts, softmax(logits)[0]) > FALSE_ALARM


class Draws:
    """A random generator that always draws the same number."""

    def __init__(self, value):
        self.value = value

    def random(self, size=None):
        return np.full(size, self.value) if size is not None else self.value


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.5, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("possible", [[3], [3, 4], [5, 8], [0], [9], [0, 9]])
def test_a_token_of_probability_0_is_never_drawn(monkeypatch, draw, possible):
    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: Draws(draw))
    logits = np.full((2, 10), -np.inf, np.float32)
    logits[:, possible] = 2.0
    tokens = make_sampler(SamplingOptions(do_sample=True))(logits)
    assert set(tokens.tolist()) <= set(possible)
    if draw in (0.0, np.nextafter(1.0, 0.0)):
        assert tokens.tolist() == [possible[0 if draw == 0 else -1]] * 2


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-37, 1e-44, 1e-60])
def test_a_temperature_near_0_takes_the_largest(temperature):
    logits = scores("random")
    sampler = make_sampler(SamplingOptions(do_sample=True, temperature=temperature, seed=0))
    np.testing.assert_array_equal(sampler(logits), logits.argmax(-1))


def test_a_seed_decides_the_tokens():
    logits = scores("random")

    def draw(seed):
        sampler = make_sampler(SamplingOptions(do_sample=True, temperature=2.0, seed=seed))
        return [sampler(logits).tolist() for _ in range(10)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(None) != draw(None)
    first, second, *_ = draw(0)
    assert first != second


@pytest.mark.parametrize(
    "name, values",
    [
        ("temperature", [0, -1, float("nan")]),
        ("top_k", [-1]),
        ("top_p", [0, -0.5, 1.1, float("nan")]),
        ("seed", [-1]),
    ],
)
def test_values_outside_their_range_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(RequestError, match=f"{name} must .*{value}"):
            SamplingOptions(do_sample=True, **{name: value})


def test_values_at_the_ends_of_their_range_are_taken():
    SamplingOptions(do_sample=True, temperature=1e-9, top_k=0, top_p=1.0, seed=0)
    SamplingOptions(do_sample=True, temperature=float("inf"), top_k=10**9, top_p=1e-9)

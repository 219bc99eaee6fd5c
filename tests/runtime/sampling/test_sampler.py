"""Samplers against the distribution that they sample, and options out of their range."""

import numpy as np
import pytest
from sampling_helpers import FALSE_ALARM, chi_square_p_value, make_sampler, scores, transformers_warpers

from neo_tf.errors import RequestError
from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.sampling.sampler import draw
from neo_tf.runtime.sampling.warpers import softmax


def test_greedy_takes_the_largest_and_the_first_of_equals():
    logits = scores("random")
    np.testing.assert_array_equal(make_sampler(SamplingOptions())(logits), logits.argmax(-1))
    assert make_sampler(SamplingOptions())(np.array([[1, 5, 5, 2]], np.float32)).tolist() == [1]


def test_greedy_does_not_look_at_the_sampling_options():
    logits = scores("random")
    options = SamplingOptions(temperature=9, top_k=3, top_p=0.1, seed=4)
    np.testing.assert_array_equal(make_sampler(options)(logits), logits.argmax(-1))


def transformers_probabilities(logits, options):
    """What transformers would draw from, in its order."""
    torch = pytest.importorskip("torch")
    found = torch.tensor(logits)
    for warper in transformers_warpers(options):
        found = warper(None, found)
    return torch.softmax(found[0].double(), -1).numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 10}, {"top_p": 0.8}, {"min_p": 0.02}]
    + [{"typical_p": 0.97}, {"epsilon_cutoff": 0.005}, {"eta_cutoff": 0.05}]
    + [{"temperature": 1.5, "top_k": 40, "top_p": 0.9}, {"temperature": 1.2, "top_k": 6, "top_p": 0.95}]
    + [{"temperature": 2.0, "top_k": 30, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01}],
    ids=str,
)
def test_tokens_come_as_often_as_transformers_distribution_says(options):
    logits, draws = scores("random", rows=1, seed=3), 50_000
    sampler = make_sampler(SamplingOptions(do_sample=True, seed=1, **options))
    tokens = sampler(np.repeat(logits, draws, axis=0))
    probabilities = transformers_probabilities(logits, options)
    counts = np.bincount(tokens, minlength=200)
    assert counts[probabilities == 0].sum() == 0 and np.count_nonzero(probabilities) > 2
    assert chi_square_p_value(counts, probabilities) > FALSE_ALARM


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 50}, {"top_p": 0.9}], ids=str)
def test_a_large_vocabulary_is_drawn_from_as_often(options):
    """Row by row, as the engine draws: narrowed to what is left, or added up in blocks."""
    logits = scores("random", rows=1, n_vocab=5003, seed=4)
    sampler = make_sampler(SamplingOptions(do_sample=True, seed=1, **options))
    counts = np.bincount([int(sampler(logits)[0]) for _ in range(20_000)], minlength=5003)
    probabilities = transformers_probabilities(logits, options)
    assert counts[probabilities == 0].sum() == 0
    assert chi_square_p_value(counts, probabilities) > FALSE_ALARM


@pytest.mark.parametrize("size", [1, 7, 1024, 1025, 5003])
def test_a_number_picks_the_index_where_the_weights_so_far_exceed_it(size):
    generator = np.random.default_rng(size)
    weights = generator.random((40, size), dtype=np.float32) ** 8 * (generator.random((40, size)) < 0.7)
    weights[:, generator.integers(size)] = 1
    numbers = generator.random(40)
    found = draw(weights, numbers)
    for row, number, index in zip(weights.astype(np.float64), numbers, found, strict=True):
        assert row[index] > 0
        before, total = row[:index].sum(), row.sum()
        assert before / total - 1e-6 <= number <= (before + row[index]) / total + 1e-6


@pytest.mark.parametrize("number", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_rounding_never_picks_a_weight_of_0(number):
    """The last possible index lies at the end of a block, of the row, or alone; zeros lie around it."""
    for place in (0, 255, 256, 1300, 2999):
        weights = np.zeros((1, 3000), np.float32)
        weights[0, : place + 1 : 3] = 0.1
        weights[0, place] = 1e-3
        assert weights[0, draw(weights, np.array([number]))[0]] > 0


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


REFUSED = {
    "temperature": [0, -1, float("nan"), "1"],
    "top_k": [-1, 2.0],
    "top_p": [0, -0.5, 1.1, float("nan")],
    "seed": [-1],
    "min_p": [-0.1, 1.1],
    "typical_p": [0, 1.1],
    "epsilon_cutoff": [-0.1, 1],
    "eta_cutoff": [-0.1, 1],
    "repetition_penalty": [0, -1, float("inf"), True],
    "presence_penalty": [float("nan"), "much"],
    "frequency_penalty": [float("inf")],
    "no_repeat_ngram_size": [-1, 1.5],
    "suppress_tokens": [5, "5", [1.5], ["a"]],
    "begin_suppress_tokens": [5],
    "bad_words_ids": [[5], [[]], 5, [["a"]]],
    "sequence_bias": [{5: 1.0}, {(): 1.0}, [[5]], 5],
    "logit_bias": [[5], {"a": 1.0}],
    "forced_bos_token_id": ["a", [5]],
    "forced_eos_token_id": [1.5],
    "exponential_decay_length_penalty": [5, (5,), (-1, 1.5), (5, 0), (1.5, 1.5)],
    "logits_processor": [5, [5]],
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_outside_their_range_are_refused_by_name(name):
    for value in REFUSED[name]:
        with pytest.raises(RequestError, match=f"{name}.* must ") as error:
            SamplingOptions(do_sample=True, **{name: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", ["much", float("inf"), float("nan"), None])
def test_a_bias_is_a_number(bias):
    for options in ({"logit_bias": {5: bias}}, {"sequence_bias": {(5,): bias}}):
        with pytest.raises(RequestError, match="bias must"):
            SamplingOptions(**options)


IDS = [
    {"suppress_tokens": [9]},
    {"begin_suppress_tokens": [0, 9]},
    {"bad_words_ids": [[1], [2, 9]]},
    {"sequence_bias": {(9, 1): 2.0}},
    {"logit_bias": {"9": 2.0}},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": [9]},
]


@pytest.mark.parametrize("options", IDS, ids=str)
def test_ids_outside_the_vocabulary_are_refused_by_name(options):
    (name,) = options
    SamplingOptions(**options).check_vocabulary(10)
    with pytest.raises(RequestError, match=f"{name}.* 9 .*vocabulary of 9"):
        SamplingOptions(**options).check_vocabulary(9)


def test_values_at_the_ends_of_their_range_are_taken():
    SamplingOptions(do_sample=True, temperature=1e-9, top_k=0, top_p=1.0, seed=0, min_p=1.0, typical_p=1.0)
    SamplingOptions(do_sample=True, temperature=float("inf"), top_k=10**9, top_p=1e-9, epsilon_cutoff=0)

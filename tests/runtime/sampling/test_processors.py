"""Processors against transformers' own, one by one and in chains."""

import numpy as np
import pytest
from sampling_helpers import scores

from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.sampling.processors import make_processors

N_VOCAB, PROMPT = 60, 5
STOPS = (3, 41)
# A vocabulary this small repeats itself.
OPTIONS = {
    "sequence_bias": [
        {(7,): 2.5, (3,): -1.5, (7, 8): 3.0, (1, 2, 9): -4.0, (5, 9): 1.25},
        [[[7], 2.5], [[9, 3], -4.0]],
    ],
    "repetition_penalty": [0.7, 1.3, 5.0],
    "no_repeat_ngram_size": [1, 2, 3],
    "bad_words_ids": [[[5]], [[5], [3], [41, 7], [1, 2, 3]]],
    "min_new_tokens": [1, 4, 30],
    "forced_bos_token_id": [7],
    "forced_eos_token_id": [3, [3, 41]],
    "exponential_decay_length_penalty": [(0, 1.5), (2, 1.01), (30, 3.0)],
    "suppress_tokens": [[1, 2, 59]],
    "begin_suppress_tokens": [[3, 8]],
}


def history(length, rows=8, seed=0):
    """Token ids that repeat; the sequences of OPTIONS end some of them."""
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 12, (rows, length))
    for row, end in zip(found, ([7], [1, 2], [5], [41], [9]), strict=False):
        row[max(0, length - len(end)) :] = end[-length:]
    return found


def transformers_processors(options, max_length):
    """transformers' own, in its order: as its generate makes them."""
    torch = pytest.importorskip("torch")
    import transformers as its

    class Model(its.generation.GenerationMixin):
        """As much of a model as the making of processors looks at."""

        config = its.GPT2Config()

    config = its.GenerationConfig(max_length=max_length, eos_token_id=list(STOPS), **options)
    config._eos_token_tensor = torch.tensor(STOPS)
    return Model()._get_logits_processor(config, input_ids_seq_length=PROMPT)


def check(options, length, seed=0, max_length=40):
    torch = pytest.importorskip("torch")
    tokens, logits = history(length, seed=seed), scores("random", n_vocab=N_VOCAB, seed=seed)
    sampling = {name: value for name, value in options.items() if name != "min_new_tokens"}
    least = options.get("min_new_tokens", 0)
    ours = logits.copy()
    chain = make_processors(SamplingOptions(**sampling), PROMPT, max_length, STOPS, least)
    assert chain
    for processor in chain:
        ours = processor(tokens, ours)
    expected = transformers_processors(options, max_length)(torch.tensor(tokens), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-6)
    return not np.array_equal(expected, logits)


@pytest.mark.parametrize("name, value", [(name, value) for name, values in OPTIONS.items() for value in values])
def test_each_is_transformers(name, value):
    """At all lengths: the first new token, later ones, and the last that is allowed."""
    changed = [check({name: value}, length, seed=length) for length in (1, 2, 5, 6, 7, 12, 39)]
    assert any(changed)


@pytest.mark.parametrize("seed", range(40))
def test_chains_are_transformers(seed):
    generator = np.random.default_rng(seed)
    chosen = {}
    for name, values in OPTIONS.items():
        if generator.random() < 0.5:
            chosen[name] = values[generator.integers(len(values))]
    chosen = chosen or {"repetition_penalty": 1.5}
    for length in (1, 5, 6, 9, 39):
        check(chosen, length, seed=seed)


def test_the_first_token_of_all_may_be_forced_and_the_second_suppressed():
    """transformers moves the beginning by one then."""
    options = SamplingOptions(forced_bos_token_id=7, begin_suppress_tokens=[8])
    for length, possible in ((1, [7]), (2, [token for token in range(12) if token != 8]), (3, range(12))):
        found = np.zeros((1, 12), np.float32)
        for processor in make_processors(options, 1, 40):
            found = processor(history(length, rows=1), found)
        assert np.flatnonzero(np.isfinite(found[0])).tolist() == list(possible)


def test_presence_and_frequency_penalties_count_new_tokens_alone():
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence."""
    tokens = np.array([[1, 2, 3, 4, 5, 6, 6, 2, 6]])
    logits = scores("random", rows=1, n_vocab=10)
    for presence, frequency in ((0.5, 0.0), (0.0, 0.25), (0.5, -2.0)):
        options = SamplingOptions(presence_penalty=presence, frequency_penalty=frequency)
        (processor,) = make_processors(options, PROMPT, 40)
        expected = logits.copy()
        for token, count in ((6, 3), (2, 1)):
            expected[0, token] -= count * frequency + presence
        np.testing.assert_allclose(processor(tokens, logits.copy()), expected, rtol=1e-6)
        np.testing.assert_array_equal(processor(tokens[:, :PROMPT], logits.copy()), logits)


def test_logit_bias_is_added_to_sequence_bias():
    options = SamplingOptions(logit_bias={"5": -2.0, 7: 1.0}, sequence_bias={(5,): 3.0, (6, 7): 1.0})
    (processor,) = make_processors(options, PROMPT, 40)
    found = processor(np.array([[1, 6], [6, 1]]), np.zeros((2, 10), np.float32))
    assert found[:, 5].tolist() == [1.0, 1.0] and found[:, 7].tolist() == [2.0, 1.0]
    assert np.count_nonzero(found) == 4


def test_a_long_decay_stays_finite():
    options = SamplingOptions(exponential_decay_length_penalty=(0, 50.0))
    (processor,) = make_processors(options, 1, 4000, STOPS)
    found = processor(np.zeros((1, 3000), int), np.full((1, N_VOCAB), -3, np.float32))
    assert np.isfinite(found).all() and (found[0, list(STOPS)] > 1e30).all()


def test_functions_of_ones_own_come_last():
    seen = []

    def own(tokens, logits):
        seen.append((tokens.tolist(), logits[0, 4]))
        return logits + 1

    options = SamplingOptions(logits_processor=[own], suppress_tokens=[4])
    found = np.zeros((1, 10), np.float32)
    for processor in make_processors(options, 1, 40):
        found = processor(np.array([[7, 8]]), found)
    assert seen == [([[7, 8]], -np.inf)] and found[0, 5] == 1


def test_neutral_options_make_no_processors():
    assert make_processors(SamplingOptions(), PROMPT, 40, STOPS, 0) == []
    # Without an end of text there is none to put off or to hurry.
    options = SamplingOptions(exponential_decay_length_penalty=(0, 2.0))
    assert make_processors(options, PROMPT, 40, (), 9) == []

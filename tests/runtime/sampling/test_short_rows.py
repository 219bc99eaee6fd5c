"""Tokens that are chosen from the most likely ones are those that whole rows give, for the same random numbers."""

import numpy as np
import onnxruntime
import pytest
from conftest import GOLDEN, Reference
from cuda_layout import export_cuda_layout
from sampling_helpers import scores
from session_helpers import most_likely

from neo_tf.onnx_folder import DECODER, OnnxFolder
from neo_tf.runtime.engine.chooser import log_probabilities
from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.sampling.sampler import Sampler
from neo_tf.runtime.sampling.short_rows import (
    WHOLE,
    ShortRule,
    choose_short,
    short_log_probabilities,
    short_rule,
)

WIDTH = 64
DRAWS = [
    {"top_k": 1},
    {"top_k": 10},
    {"top_k": 50, "temperature": 0.7},
    {"top_k": 63, "temperature": 1.9},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 0.5},
    {"top_k": 40, "top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 200, "min_p": 0.1},
    {"epsilon_cutoff": 0.01},
    {"top_p": 0.6, "epsilon_cutoff": 0.02},
    {"min_p": 0.03, "epsilon_cutoff": 0.01},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "epsilon_cutoff": 0.01, "temperature": 1.3},
]
GREEDY = [{}, {"temperature": 0.5, "top_k": 5}]  # without do_sample they change nothing
SETTINGS = [{"do_sample": True, **options} for options in DRAWS] + GREEDY


def logits_of(kind, rows, n_vocab, seed):
    if kind == "fp16":
        return scores("random", rows, n_vocab, seed).astype(np.float16).astype(np.float32)
    return scores(kind, rows, n_vocab, seed)


def rule_of(options, sampler, n_vocab, logprobs=None):
    return short_rule(options, sampler.generator, logprobs, min(WIDTH, n_vocab), n_vocab)


def choose(rules, logits):
    inverse = [1 / rule.temperature for rule in rules]
    return choose_short(rules, *most_likely(logits, inverse), logits.shape[1])


@pytest.mark.parametrize("kind", ["random", "peaked", "ties", "fp16"])
@pytest.mark.parametrize("n_vocab", [40, 64, 65, 300, 5003])
def test_the_same_seed_draws_the_same_tokens(n_vocab, kind):
    """All settings in one pass, step after step; a row that needs to be whole takes its number from the same stream."""
    options = [SamplingOptions(seed=seed, **setting) for seed in range(8) for setting in SETTINGS]
    short, whole = ([Sampler(one) for one in options] for _ in range(2))
    rules = [rule_of(one, sampler, n_vocab) for one, sampler in zip(options, short, strict=True)]
    assert None not in rules
    chosen = 0
    for step in range(5):
        logits = logits_of(kind, len(options), n_vocab, step)
        found = choose(rules, logits)
        chosen += np.count_nonzero(found != WHOLE)
        for row in np.flatnonzero(found == WHOLE):
            found[row] = short[row](logits[row : row + 1])[0][0]
        expected = [int(sampler(logits[row : row + 1])[0][0]) for row, sampler in enumerate(whole)]
        assert found.tolist() == expected
    if n_vocab <= WIDTH:
        assert chosen == 5 * len(options)  # nothing is beyond the most likely tokens
    elif kind != "ties":
        assert chosen > 0.7 * 5 * len(options)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A function from tokens and a temperature to what a real graph that chooses returns after each of the tokens."""
    folder = OnnxFolder.read(export_cuda_layout(GOLDEN / "vocab-padded", tmp_path_factory.mktemp("layout") / "onnx"))
    session = onnxruntime.InferenceSession(folder.graph_path("fp32", DECODER), providers=["CPUExecutionProvider"])

    def run(tokens, temperature):
        caches = (value for value in session.get_inputs() if value.name.startswith("past_key_values"))
        feeds = {
            value.name: np.zeros((1, value.shape[1], folder.config.n_ctx, value.shape[3]), np.float32)
            for value in caches
        }
        feeds["input_ids"] = tokens[None]
        feeds["position_ids"] = np.arange(len(tokens))[None]
        feeds["seqlens_k"] = np.array([len(tokens) - 1], np.int32)
        feeds["total_sequence_length"] = np.array(len(tokens), np.int32)
        feeds["logits_start"] = np.array([0])
        feeds["inverse_temperature"] = np.full((1, 1, 1), 1 / temperature, np.float32)
        return [found[0] for found in session.run(["logits", "top_ids", "top_logprobs"], feeds)]

    return run


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_real_graphs_tokens_are_those_of_its_whole_rows(graph, options):
    """Each position of a golden text, with many seeds."""
    tokens = Reference.load(GOLDEN / "vocab-padded").inputs[0]
    logits, ids, logprobs = graph(tokens, options.get("temperature", 1.0) if "do_sample" in options else 1.0)
    chosen = 0
    for seed in range(8):
        own = [SamplingOptions(seed=1000 * seed + row, **options) for row in range(len(tokens))]
        short, whole = ([Sampler(one) for one in own] for _ in range(2))
        rules = [rule_of(one, sampler, 320) for one, sampler in zip(own, short, strict=True)]
        found = choose_short(rules, ids, logprobs, 320)
        expected = np.array([int(sampler(logits[row : row + 1])[0][0]) for row, sampler in enumerate(whole)])
        sure = found != WHOLE
        chosen += sure.mean() / 8
        np.testing.assert_array_equal(found[sure], expected[sure])
    assert chosen > (0.1 if {"top_p", "epsilon_cutoff", "min_p"} & set(options) else 0.99)


def test_a_row_is_chosen_as_it_is_alone():
    options = [SamplingOptions(seed=seed, **setting) for seed in range(3) for setting in SETTINGS]
    logits = scores("ties", len(options), 300)
    rules, again = ([rule_of(one, Sampler(one), 300) for one in options] for _ in range(2))
    together = choose(rules, logits)
    alone = [choose([rule], logits[row : row + 1])[0] for row, rule in enumerate(again)]
    assert together.tolist() == alone


def test_of_equal_tokens_the_first_is_taken_however_they_come():
    """A kernel may return equal tokens in any order."""
    ids = np.array([[9, 4, 7, 1, 2, 3]])
    logprobs = np.log(np.array([[0.25, 0.25, 0.25, 0.1, 0.1, 0.05]], np.float32))
    assert choose_short([ShortRule()], ids, logprobs, 99).tolist() == [4]
    drawn = set()
    for seed in range(40):  # two of the three equal ones reach 0.45, the first two
        drawn |= set(choose_short([ShortRule(np.random.default_rng(seed), top_p=0.45)], ids, logprobs, 99).tolist())
    assert drawn == {4, 7}
    for seed in range(60):  # top-k keeps all that equal the last
        drawn |= set(choose_short([ShortRule(np.random.default_rng(seed), top_k=1)], ids, logprobs, 99).tolist())
    assert drawn == {4, 7, 9}
    assert list(short_log_probabilities(ids[0], logprobs[0], 1, 5)[1]) == [4, 7, 9, 1, 2]


UNSURE = {
    "all that are there are equal": ({}, [0.1] * 4),
    "more may equal the k-th": ({"top_k": 3}, [0.4, 0.2, 0.1, 0.1]),
    "they do not reach p": ({"top_p": 0.95}, [0.4, 0.3, 0.1, 0.05]),
    "more may equal the last that p needs": ({"top_p": 0.75}, [0.5, 0.2, 0.1, 0.1]),
    "more may be likely enough": ({"min_p": 0.1}, [0.4, 0.2, 0.1, 0.05]),
    "more may be above epsilon": ({"epsilon": 0.04}, [0.4, 0.2, 0.1, 0.05]),
    "the sum of more than k is not known": ({"top_k": 9, "top_p": 0.5}, [0.4, 0.2, 0.1, 0.05]),
    "nor is what more than k leave above epsilon": ({"top_k": 9, "epsilon": 0.15}, [0.4, 0.2, 0.1, 0.05]),
    "nor is the sum of an unknown number": ({"min_p": 0.01, "epsilon": 0.15}, [0.4, 0.2, 0.1, 0.05]),
    "more may equal the last one that is listed": ({"logprobs": 3}, [0.4, 0.2, 0.1, 0.1]),
    "not a number": ({}, [np.nan] * 4),
    "not a number, drawn": ({"top_k": 2}, [np.nan] * 4),
}


@pytest.mark.parametrize("name", UNSURE)
def test_where_the_tokens_are_not_enough_none_is_chosen_and_no_number_is_drawn(name):
    options, probabilities = UNSURE[name]
    generator = np.random.default_rng(0) if options and "logprobs" not in options else None
    logprobs = np.log(np.array([probabilities], np.float32))
    found = choose_short([ShortRule(generator, **options)], np.array([[5, 3, 8, 1]]), logprobs, 99)
    assert found.tolist() == [WHOLE]
    if generator:
        assert generator.random() == np.random.default_rng(0).random()


def test_a_narrower_cut_makes_up_for_an_unknown_one():
    """Whatever is beyond the most likely tokens, min_p leaves it out."""
    logprobs = np.log(np.array([[0.4, 0.2, 0.01, 0.01]], np.float32))
    rule = ShortRule(np.random.default_rng(0), top_k=9, min_p=0.1, epsilon=0.3)
    assert choose_short([rule], np.array([[5, 3, 8, 1]]), logprobs, 99)[0] in (5, 3)
    rule = ShortRule(np.random.default_rng(0), top_k=9, min_p=0.1, epsilon=0.4)  # of 2/3 and 1/3
    assert choose_short([rule], np.array([[5, 3, 8, 1]]), logprobs, 99)[0] == 5


@pytest.mark.parametrize("kind", ["random", "ties", "fp16"])
@pytest.mark.parametrize("count", [0, 1, 5, 63])
def test_log_probabilities_are_those_of_whole_rows(kind, count):
    logits = logits_of(kind, 20, 300, count)
    rules = [ShortRule(logprobs=count)] * len(logits)
    ids, logprobs = most_likely(logits)
    tokens = choose_short(rules, ids, logprobs, 300)
    assert kind == "ties" or np.count_nonzero(tokens != WHOLE) > 15
    for row in np.flatnonzero(tokens != WHOLE):
        value, top = short_log_probabilities(ids[row], logprobs[row], tokens[row], count)
        expected, expected_top = log_probabilities(logits[row], tokens[row], count)
        assert value == pytest.approx(expected, abs=1e-6) and type(value) is float
        assert list(top) == list(expected_top)
        assert list(top.values()) == pytest.approx(list(expected_top.values()), abs=1e-6)


@pytest.mark.parametrize(
    "options, logprobs, is_short",
    [
        ({}, None, True),
        ({}, 0, True),
        ({}, 63, True),
        ({}, 64, False),
        ({"do_sample": True}, None, False),
        ({"do_sample": True, "top_k": 63}, None, True),
        ({"do_sample": True, "top_k": 64}, None, False),
        ({"do_sample": True, "top_k": 64, "min_p": 0.1}, None, True),
        ({"do_sample": True, "top_k": 64, "top_p": 0.1}, None, False),
        ({"do_sample": True, "top_k": 300, "top_p": 0.1}, None, True),  # all are kept
        ({"do_sample": True, "top_p": 0.9}, 5, True),
        ({"do_sample": True, "top_p": 0.9, "temperature": 0.9}, None, True),
        ({"do_sample": True, "top_p": 0.9, "temperature": 0.9}, 0, False),
        ({"do_sample": True, "top_p": 0.9, "typical_p": 0.9}, None, False),
        ({"do_sample": True, "top_k": 9, "eta_cutoff": 0.1}, None, False),
        ({"do_sample": True, "top_k": 9, "temperature": 1e-3}, None, False),
        ({"do_sample": True, "top_k": 9, "temperature": float("inf")}, None, False),
    ],
    ids=str,
)
def test_which_requests_the_most_likely_tokens_may_do_for(options, logprobs, is_short):
    options = SamplingOptions(seed=0, **options)
    assert (rule_of(options, Sampler(options), 300, logprobs) is not None) == is_short

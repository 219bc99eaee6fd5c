"""Beam search against transformers' own: sequences and scores, from the logits of the same model."""

import itertools
import json
from collections import Counter
from dataclasses import fields

import hypothesis
import numpy as np
import pytest
from conftest import FIXTURES, TINY_PYTHON
from hypothesis import strategies
from sampling_helpers import FALSE_ALARM, chi_square_p_value, prompt_of

from neo_tf.errors import RequestError
from neo_tf.runtime.sampling.beams import BeamSearch
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions
from neo_tf.runtime.sampling.warpers import log_softmax, softmax
from neo_tf.runtime.tokenizer import Tokenizer

BEAMS = tuple(one.name for one in fields(BeamOptions))


def likely_ends(model, prompt, count):
    """Tokens that beams like to take from the third on."""
    found = search_with(model_logits(model), prompt, 14, num_beams=5, num_return_sequences=5, length_penalty=0)
    tokens = Counter(token for one in found.hypotheses for token in set(one.tokens[2:]) - set(one.tokens[:2]))
    return [token for token, _ in tokens.most_common(count)]


def search_with(next_logits, prompt, max_new_tokens, eos_token_id=(), min_new_tokens=0, stops=None, **arguments):
    """A BeamSearch that has run to its end; next_logits is a function from int [rows, length] to [rows, n_vocab]."""
    beams = {name: value for name, value in arguments.items() if name in BEAMS}
    sampling = {name: value for name, value in arguments.items() if name not in BEAMS}
    options = BeamOptions(**beams)
    search = BeamSearch(
        options, SamplingOptions(**sampling), prompt, max_new_tokens, tuple(eos_token_id), min_new_tokens, stops
    )
    rows = np.array([prompt])
    while continued := search(next_logits(rows)):
        parents, tokens = continued
        assert len(parents) == len(tokens) == options.num_beams
        rows = np.column_stack([rows[parents], tokens])
    return search


def model_logits(model):
    torch = pytest.importorskip("torch")

    def next_logits(rows):
        with torch.no_grad():
            return model(torch.tensor(rows), use_cache=False).logits[:, -1].numpy()

    return next_logits


def check(model, prompt, max_new_tokens, eos_token_id=(), atol=1e-5, **arguments):
    """Compares with generate; returns the hypotheses."""
    torch = pytest.importorskip("torch")
    found = search_with(model_logits(model), prompt, max_new_tokens, eos_token_id, **arguments).hypotheses
    its = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_token_id) or None,
        pad_token_id=0,
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **arguments,
    )
    scores = model.compute_transition_scores(its.sequences, its.scores, its.beam_indices, normalize_logits=False)
    lengths = (its.beam_indices >= 0).sum(-1).tolist()
    expected = [row[len(prompt) :][:length] for row, length in zip(its.sequences.tolist(), lengths, strict=True)]
    assert [one.tokens for one in found] == expected
    np.testing.assert_allclose([one.score for one in found], its.sequences_scores, rtol=1e-5, atol=atol)
    for one, row, length in zip(found, scores.numpy(), lengths, strict=True):
        np.testing.assert_allclose(one.token_scores, row[:length], rtol=1e-5, atol=atol)
        assert one.finish_reason == ("stop" if one.tokens[-1] in eos_token_id else "length")
    return found


# ---- transformers' sequences and scores


# Every two of these values meet; all three of them do in test_random_searches_are_transformers, as they are drawn.
EARLY_STOPPING = (False, True, "never")
SEARCHES = [
    (num_beams, EARLY_STOPPING[(num_beams + number) % 3], length_penalty)
    for num_beams in (2, 3, 4, 5)
    for number, length_penalty in enumerate((0, 1.0, 2, -1, 0.5))
]


@pytest.mark.parametrize(("num_beams", "early_stopping", "length_penalty"), SEARCHES)
def test_beams_are_transformers(judge, num_beams, early_stopping, length_penalty):
    """Likely tokens end the text, so that hypotheses finish at several lengths, and their order is the penalty's."""
    options = {"num_beams": num_beams, "early_stopping": early_stopping, "length_penalty": length_penalty}
    lengths = set()
    for name, ends in (("vocab-padded", 2), ("tiny-python", 3)):
        model, prompt = judge(name), prompt_of(name, 7 + num_beams)
        ends = likely_ends(model, prompt, ends)
        found = check(model, prompt, 14, ends, num_return_sequences=num_beams, **options)
        lengths |= {len(one.tokens) for one in found}
    assert len(lengths) > 1 or num_beams == 2


PROCESSORS = {
    "min_new_tokens": {"min_new_tokens": 6},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "rewarded repetition": {"repetition_penalty": 0.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bias": {"sequence_bias": {(365,): -2.0, (311, 371): 1.5}},
    "suppressed": {"suppress_tokens": [365], "begin_suppress_tokens": [15]},
    "forced end": {"forced_eos_token_id": 222, "length_penalty": 2.0},
    "decay": {"exponential_decay_length_penalty": (2, 1.2)},
    "renormalized": {"repetition_penalty": 1.2, "renormalize_logits": True},
    "all": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "renormalize_logits": True},
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_processors_see_log_probabilities_as_transformers_do(judge, case):
    model, prompt, options = judge("tiny-python"), prompt_of("tiny-python", 9), {"num_beams": 4}
    ends = likely_ends(model, prompt, 2)
    plain = check(model, prompt, 12, ends, **options, num_return_sequences=4)
    options |= {"num_return_sequences": 4} | PROCESSORS[case]
    assert check(model, prompt, 12, ends, **options) != plain


def test_bad_words_are_words_of_the_beams(judge):
    name, options = "tiny-python", {"num_beams": 3, "num_return_sequences": 3}
    best = check(judge(name), prompt_of(name, 9), 12, (), **options)[0].tokens
    words = [best[3:5], best[6:9], [best[10]]]
    for found in check(judge(name), prompt_of(name, 9), 12, (), bad_words_ids=words, **options):
        tokens = found.tokens
        assert best[10] not in tokens and best[3:5] not in [tokens[n : n + 2] for n in range(11)]


@pytest.mark.parametrize("length", [1, 2, 40, 62, 63])
def test_beams_go_on_to_the_end_of_the_context(judge, length):
    """n_ctx is 64: the last token of all is one that is chosen, and not fed."""
    found = check(judge("vocab-padded"), prompt_of("vocab-padded", length), 64 - length, num_beams=3)
    assert len(found[0].tokens) == 64 - length


def test_beams_go_past_the_window(judge):
    check(judge("tiny-global-local"), prompt_of("tiny-global-local", 260), 40, num_beams=4, num_return_sequences=2)


def test_many_ends_of_text_leave_enough_to_go_on_with(judge):
    model, prompt = judge("tiny-python"), prompt_of("tiny-python", 9)
    ends = np.argsort(-model_logits(model)(np.array([prompt]))[0])[:40].tolist()
    for early_stopping in (False, "never"):
        for least in (0, 3):
            options = {"early_stopping": early_stopping, "num_beams": 5, "num_return_sequences": 5}
            check(model, prompt, 12, ends, min_new_tokens=least, **options)


def text_of(name, length):
    """A stops function of a prompt, and the prompt."""
    tokenizer, prompt = Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json"), prompt_of(name, length)

    def make(*strings):
        def stops(tokens):
            stream = tokenizer.stream(prompt, strings)
            for token in tokens:
                assert not stream.stopped
                stream(token)
            return stream.stopped

        return stops

    return prompt, make


@pytest.mark.parametrize("strings", [["s"], ["e", "(self"], ["\n\n", "x"]], ids=str)
def test_stop_strings_finish_beams_as_in_transformers(judge, strings):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    model = judge("tiny-python")
    prompt, make = text_of("tiny-python", 12)
    options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.5}
    found = search_with(model_logits(model), prompt, 20, stops=make(*strings), **options).hypotheses
    its = model.generate(
        torch.tensor([prompt]),
        **options,
        attention_mask=torch.ones(1, 12, dtype=torch.long),
        max_new_tokens=20,
        stop_strings=strings,
        tokenizer=tokenizer,
        pad_token_id=0,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = (its.beam_indices >= 0).sum(-1).tolist()
    assert [one.tokens for one in found] == [
        row[12 : 12 + n] for row, n in zip(its.sequences.tolist(), lengths, strict=True)
    ]
    np.testing.assert_allclose([one.score for one in found], its.sequences_scores, rtol=1e-5)
    assert "stop" in {one.finish_reason for one in found}


# ---- what transformers 5 no longer has

OLD = json.loads((FIXTURES / "beams/reference.json").read_text())


@pytest.mark.parametrize("case", OLD, ids=lambda one: str(one["options"]))
def test_groups_are_those_of_transformers_4(judge, case):
    """Diverse beams: tests/fixtures/beams/make.py had transformers 4.49 find them, with the same models."""
    model, prompt, eos = judge(case["model"]), case["prompt"], case["eos_token_id"]
    ends = () if eos is None else (eos,)
    search = search_with(model_logits(model), prompt, case["max_new_tokens"], ends, **case["options"])
    assert [one.tokens for one in search.hypotheses] == case["sequences"]
    for one, score in zip(search.hypotheses, case["scores"], strict=True):
        length, penalty = len(one.tokens), case["options"].get("length_penalty", 1.0)
        # The score is a sum of so many log-probabilities, each 2e-5 off in the float32 of another processor, over the
        # penalty: a length_penalty of -1 multiplies the sum and what it is off.
        assert abs(one.score - score) <= 2e-5 * max(1, length / length**penalty)
        assert sum(one.token_scores) / length**penalty == pytest.approx(one.score, rel=1e-5)


# ---- a model of random logits


def random_logits(n_vocab, seed, scale=3.0):
    """Logits that depend on the whole history: a function from int [rows, length] to float32 [rows, n_vocab]."""
    generator = np.random.default_rng(seed)
    places, frequencies, phases = generator.random(64), generator.random(n_vocab) * 9, generator.random(n_vocab) * 9

    def next_logits(rows):
        numbers = (rows + 1) @ places[: rows.shape[1]]
        return (scale * np.sin(numbers[:, None] * frequencies + phases)).astype(np.float32)

    return next_logits


def random_model(n_vocab, seed, scale=3.0):
    """transformers' generate over random_logits."""
    torch, its = pytest.importorskip("torch"), pytest.importorskip("transformers")
    next_logits = random_logits(n_vocab, seed, scale)

    class Model(its.PreTrainedModel, its.GenerationMixin):
        config_class = its.GPT2Config

        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, **rest):
            logits = torch.from_numpy(next_logits(input_ids.numpy()))
            return its.modeling_outputs.CausalLMOutput(logits=logits[:, None])

        def prepare_inputs_for_generation(self, input_ids, **rest):
            return {"input_ids": input_ids}

    model = Model(its.GPT2Config(vocab_size=n_vocab, bos_token_id=None, eos_token_id=None))
    model.generation_config = its.GenerationConfig()
    return model


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(strategies.data())
def test_random_searches_are_transformers(data):
    pytest.importorskip("torch")
    num_beams, ends = data.draw(strategies.integers(2, 6)), data.draw(strategies.integers(0, 3))
    n_vocab = data.draw(strategies.integers(max(2, 1 + ends) * num_beams + 14, 60))
    options = {
        "num_beams": num_beams,
        "num_return_sequences": data.draw(strategies.integers(1, num_beams)),
        "length_penalty": data.draw(strategies.sampled_from([1.0, 0.0, 2, -1, 0.3, -0.5, 5.0])),
        "early_stopping": data.draw(strategies.sampled_from([False, True, "never"])),
        "repetition_penalty": data.draw(strategies.sampled_from([1.0, 1.0, 1.3, 0.8])),
        "no_repeat_ngram_size": data.draw(strategies.sampled_from([0, 0, 1, 2])),
        "min_new_tokens": data.draw(strategies.sampled_from([0, 0, 3])),
        "renormalize_logits": data.draw(strategies.booleans()),
    }
    prompt = data.draw(strategies.lists(strategies.integers(0, n_vocab - 1), min_size=1, max_size=4))
    model = random_model(
        n_vocab, data.draw(strategies.integers(0, 10**6)), data.draw(strategies.sampled_from([0.5, 4]))
    )
    check_random(model, prompt, data.draw(strategies.integers(3, 10)), tuple(range(ends)), options)


def check_random(model, prompt, max_new_tokens, ends, options):
    torch = pytest.importorskip("torch")

    def next_logits(rows):
        return model(torch.tensor(rows)).logits[:, 0].numpy()

    found = search_with(next_logits, prompt, max_new_tokens, ends, **options).hypotheses
    its = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    lengths = (its.beam_indices >= 0).sum(-1).tolist()
    expected = [row[len(prompt) :][:length] for row, length in zip(its.sequences.tolist(), lengths, strict=True)]
    assert [one.tokens for one in found] == expected
    np.testing.assert_allclose([one.score for one in found], its.sequences_scores, rtol=1e-5, atol=1e-5)


# ---- sampling


SAMPLED = {"num_beams": 2, "num_return_sequences": 2, "do_sample": True}


def drawn(next_logits, prompt, max_new_tokens, eos_token_id=(), *, draws, **options):
    """How often each list of sequences comes."""
    searches = (
        search_with(next_logits, prompt, max_new_tokens, eos_token_id, seed=seed, **SAMPLED, **options)
        for seed in range(draws)
    )
    return Counter(tuple(tuple(one.tokens) for one in search.hypotheses) for search in searches)


def test_sampled_beams_come_as_often_as_the_exact_distribution_says():
    """Of 5 tokens and 2 beams, 4 are drawn in a step; the 2 likeliest of them go on, and at the end are the result."""
    prompt, next_logits = [3], random_logits(5, seed=1, scale=1.5)
    first = log_softmax(next_logits(np.array([prompt])).astype(np.float64))[0]
    expected = Counter()
    for left_out in range(5):  # the fifth of an order of draws
        weights = np.exp(first)
        orders = itertools.permutations([token for token in range(5) if token != left_out])
        chance = sum(
            np.prod([weights[one] / (1 - sum(weights[list(order[:n])])) for n, one in enumerate(order)])
            for order in orders
        )
        beams = sorted((token for token in range(5) if token != left_out), key=lambda token: -first[token])[:2]
        second = log_softmax(next_logits(np.array([[*prompt, token] for token in beams])).astype(np.float64))
        totals = {
            (beam, token): first[beam] + second[row, token] for row, beam in enumerate(beams) for token in range(5)
        }
        weights = dict(zip(totals, softmax(np.array([list(totals.values())]))[0], strict=True))
        for order in itertools.permutations(totals, 4):
            best = tuple(sorted(order, key=lambda pair: -totals[pair])[:2])
            left = 1 - np.cumsum([0, *(weights[one] for one in order[:3])])  # of the probability, before each draw
            expected[best] += chance * np.prod([weights[one] for one in order] / left)
    assert sum(expected.values()) == pytest.approx(1)
    found = drawn(next_logits, prompt, 2, draws=8000)
    assert set(found) <= set(expected)
    counts = np.array([found[outcome] for outcome in expected])
    assert chi_square_p_value(counts, np.array(list(expected.values()))) > FALSE_ALARM


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0, "length_penalty": 0.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_p": 0.6, "early_stopping": True},
        {"typical_p": 0.5},
        {"min_p": 0.4, "repetition_penalty": 1.5},
        {"epsilon_cutoff": 0.4, "renormalize_logits": True},
        {"epsilon_cutoff": 0.1, "renormalize_logits": True},
        {"eta_cutoff": 0.9, "early_stopping": "never"},
    ],
    ids=str,
)
def test_sampled_beams_come_as_often_as_transformers(options):
    """Two samples of one distribution, with an end of text; at least 2 tokens of a beam are left by every warper.

    Where exactly 2 are left, the 4 that a step draws are all that there are, and as they are ranked by their scores,
    the same sequences come each time.
    """
    torch = pytest.importorskip("torch")
    prompt, n_vocab = [3], 7
    two_are_left = options in ({"top_k": 1}, {"epsilon_cutoff": 0.4, "renormalize_logits": True})
    draws = 500 if two_are_left else 2000
    found = drawn(random_logits(n_vocab, 2, 1.5), prompt, 3, (0,), draws=draws, **options)
    torch.manual_seed(0)
    its = random_model(n_vocab, 2, 1.5).generate(
        torch.tensor([prompt]).repeat(3 * draws, 1),
        max_new_tokens=3,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=False,
        **{"top_k": 0} | SAMPLED | options,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = (its.beam_indices >= 0).sum(-1).tolist()
    rows = [tuple(row[1 : 1 + n]) for row, n in zip(its.sequences.tolist(), lengths, strict=True)]
    expected = Counter(zip(rows[::2], rows[1::2], strict=True))
    assert len(expected) == 1 if two_are_left else len(expected) > 5
    assert same_distribution(found, expected) > FALSE_ALARM


def same_distribution(one, other):
    """Probability that two counts of the same distribution differ at least so much; rare outcomes are pooled."""
    torch = pytest.importorskip("torch")
    outcomes = sorted(set(one) | set(other))
    table = np.array([[counts[outcome] for outcome in outcomes] for counts in (one, other)], float)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    rare = expected.min(axis=0) < 10
    table, expected = (np.column_stack([of[:, ~rare], of[:, rare].sum(axis=1)]) for of in (table, expected))
    kept = expected.min(axis=0) > 0
    statistic = ((table - expected)[:, kept] ** 2 / expected[:, kept]).sum()
    if not statistic:  # one outcome, for example, has no degree of freedom
        return 1.0
    freedom = torch.tensor(np.count_nonzero(kept) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, torch.tensor(statistic / 2, dtype=torch.float64)))


def test_a_seed_decides_the_beams():
    def run(seed):
        search = search_with(random_logits(50, 1), [3], 8, **SAMPLED, seed=seed)
        return [one.tokens for one in search.hypotheses]

    assert run(0) == run(0) != run(1)
    assert run(None) != run(None)


# ---- ends


def test_time_ends_all_beams_with_the_token_that_it_is_said_with():
    search = BeamSearch(BeamOptions(3, 3), SamplingOptions(), [1, 2], 20)
    logits = random_logits(30, 0)(np.array([[1, 2]]))
    search(logits)
    assert search.hypotheses == []
    assert search(np.repeat(logits, 3, axis=0), end="time") is None
    assert [(len(one.tokens), one.finish_reason) for one in search.hypotheses] == [(2, "time")] * 3


def test_where_no_token_is_left_the_beams_end_as_they_are():
    """As a greedy text does; the scores are those of the tokens that there are."""

    def only_after(length):
        def processor(history, scores):
            return scores if history.shape[1] < length else np.full_like(scores, -np.inf)

        return processor

    for length in (1, 4):
        options = {"num_beams": 3, "num_return_sequences": 2, "logits_processor": [only_after(length)]}
        found = search_with(random_logits(30, 0), [7], 20, **options).hypotheses
        assert [len(one.tokens) for one in found] == [length - 1] * (2 if length > 1 else 1)
        assert {one.finish_reason for one in found} == {"stop"}
        for one in found:
            assert one.score == pytest.approx(sum(one.token_scores) / max(length - 1, 1))


def test_fewer_possible_texts_than_beams_are_all_there_is():
    """Two tokens are possible, one step: two hypotheses of four."""
    options = {"num_beams": 4, "num_return_sequences": 4, "suppress_tokens": list(range(2, 9))}
    found = search_with(random_logits(9, 0), [1], 1, **options).hypotheses
    assert sorted(one.tokens for one in found) == [[0], [1]]
    found = search_with(random_logits(9, 0), [1], 2, **options).hypotheses
    assert sorted(one.tokens for one in found) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_beams_beat_the_greedy_text():
    """What beams are for: with length_penalty 0 the score is the text's own log-probability."""
    next_logits = random_logits(30, 3)
    greedy, score = [5], 0.0
    for _ in range(6):
        logs = log_softmax(next_logits(np.array([greedy])))[0]
        greedy.append(int(logs.argmax()))
        score += logs.max()
    best = search_with(next_logits, [5], 6, num_beams=5, length_penalty=0).hypotheses[0]
    assert best.score > score + 0.1 and best.score == pytest.approx(sum(best.token_scores), rel=1e-5)


# ---- what is refused


REFUSED = {
    "num_beams": [{"num_beams": 0}, {"num_beams": 2.0}, {"num_beams": True}],
    "num_return_sequences": [{"num_beams": 2, "num_return_sequences": 3}, {"num_return_sequences": 0}],
    "length_penalty": [{"length_penalty": "1"}, {"length_penalty": float("nan")}, {"length_penalty": 11}],
    "early_stopping": [{"early_stopping": "always"}, {"early_stopping": 1}],
    "num_beam_groups": [
        {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
        {"num_beams": 4, "num_beam_groups": 2},
        {"num_beam_groups": 0},
    ],
    "diversity_penalty": [{"diversity_penalty": -1.0}, {"num_beams": 4, "diversity_penalty": 1.0}],
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_make_no_sense_are_refused_by_name(name):
    for options in REFUSED[name]:
        with pytest.raises(RequestError, match=name) as error:
            BeamOptions(**options)
        assert "\n" not in str(error.value)


def test_groups_are_not_drawn():
    with pytest.raises(RequestError, match=r"num_beam_groups .*do_sample"):
        BeamSearch(BeamOptions(4, 1, num_beam_groups=2, diversity_penalty=1.0), SamplingOptions(do_sample=True), [1], 5)

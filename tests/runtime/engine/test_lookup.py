"""Prompt lookup: the same tokens as without it, in fewer steps; guesses that fail leave nothing behind."""

import dataclasses
import random

import numpy as np
import pytest
from conftest import GOLDEN, TINY_PYTHON

from neo_tf.errors import RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.lookup import PromptLookup
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import SamplingOptions

MODELS = {
    name: GOLDEN / name for name in ("tiny-global-local", "tiny-local-radius", "attn-mix", "mem-kv", "tiny-global")
}


def counted(session):
    """Lets a session count its runs: [tokens of each]."""
    runs, prefill, decode = [], session.prefill, session.decode

    def counted_prefill(slot, ids, past, logits_of=1):
        runs.append(len(ids))
        return prefill(slot, ids, past, logits_of)

    session.prefill = counted_prefill
    session.decode = lambda first, ids, *more: (runs.append(1), decode(first, ids, *more))[1]
    return runs


# ---- what is guessed


def guesses(tokens, num_tokens=4, ngram=3):
    return PromptLookup(num_tokens, ngram).guess(tokens, 99)


def test_a_guess_goes_on_from_the_latest_place_of_the_longest_n_gram():
    assert guesses([1, 2, 3, 10, 11, 12, 9, 1, 2, 3]) == [10, 11, 12, 9]
    assert guesses([1, 2, 3, 10, 0, 1, 2, 3, 20, 0, 1, 2, 3]) == [20, 0, 1, 2]
    # Three tokens count more than the later place of two.
    assert guesses([1, 2, 3, 10, 5, 2, 3, 20, 1, 2, 3], 1) == [10]
    assert guesses([1, 2, 3, 10, 5, 2, 3, 20, 1, 2, 3], 1, ngram=2) == [20]


def test_nothing_is_guessed_where_nothing_repeats():
    assert guesses([1, 2, 3, 4, 5]) == []
    assert guesses([1]) == []
    assert guesses([1, 7, 1]) == []  # a single token repeats everywhere
    assert guesses([1, 7, 1], ngram=1) == [7, 1]
    assert guesses([7, 7, 7]) == [7]  # the place may overlap the end


def test_a_guess_is_no_longer_than_is_wanted():
    lookup = PromptLookup(10, 2)
    tokens = [*range(20), 3, 4]
    assert lookup.guess(tokens, 3) == [5, 6, 7]
    assert lookup.guess(tokens, 99) == [5, 6, 7, 8]  # the first ones are short
    lookup.held(4, 4)
    assert lookup.guess(tokens, 99) == [5, 6, 7, 8, 9, 10, 11, 12]
    lookup.held(8, 8)
    assert lookup.guess(tokens, 99) == list(range(5, 15))
    lookup.held(10, 2)
    assert lookup.guess(tokens, 99) == [5, 6, 7]


def test_guesses_that_fail_come_more_and_more_seldom():
    lookup, tokens, asked = PromptLookup(4, 2), [1, 2, 3, 1, 2], []
    for step in range(200):
        if lookup.guess(tokens, 99):
            asked.append(step)
            lookup.held(1, 0)
    assert asked[:4] == [0, 2, 6, 14] and np.diff(asked).max() == 33
    lookup.held(1, 1)  # one that holds ends that
    assert lookup.guess(tokens, 99)


# ---- the same tokens as without


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_the_same_up_to_the_last_position(exported, name, seed):
    """Past the window, across compactions of the cache, and to exactly n_ctx; greedy and drawn."""
    rng = random.Random(seed)
    session = Session(exported(MODELS[name]))
    config = session.config
    piece = [rng.randrange(config.n_vocab) for _ in range(rng.randint(2, 9))]
    prompt = (piece * config.n_ctx)[: rng.randint(4, config.n_ctx // 2)]
    # A large bias on the pieces' tokens makes texts that repeat themselves, drawn ones as well.
    options = {"sequence_bias": {(a, b): 30.0 for a, b in zip(piece, [*piece[1:], piece[0]], strict=True)}}
    if seed:
        options |= {"do_sample": True, "temperature": 0.8, "seed": seed}
    request = Request(prompt, sampling=SamplingOptions(**options), logprobs=2)
    (plain,) = Engine(session).generate([request])
    runs = counted(session)
    (looked,) = Engine(session).generate([dataclasses.replace(request, prompt_lookup_num_tokens=10)])
    assert (looked.tokens, looked.finish_reason) == (plain.tokens, "length")
    assert len(prompt) + len(looked.tokens) == config.n_ctx
    np.testing.assert_allclose(looked.token_logprobs, plain.token_logprobs, atol=1e-4)
    if session.cache.has_sums:  # a sum cannot be taken back
        assert max(runs[1:]) == 1
    else:
        assert len(runs) < 0.8 * len(looked.tokens), "no guess held"


def test_a_stop_token_or_string_inside_a_guess_ends_the_text(exported):
    session = Session(exported(TINY_PYTHON))
    prompt = [5, 6, 7, 8, 9] * 4
    # (token, its successor) is as good as certain, so the guess goes on past the stop token.
    bias = {(a, b): 50.0 for a, b in ((5, 6), (6, 7), (7, 8), (8, 9), (9, 5))}
    options = {"sampling": SamplingOptions(sequence_bias=bias), "stop_token_ids": (8,)}
    runs = counted(session)
    (found,) = Engine(session).generate([Request(prompt, prompt_lookup_num_tokens=10, **options)])
    assert (found.tokens, found.finish_reason) == ([5, 6, 7, 8], "stop")
    assert len(runs) < 4
    # The slot is as good as new.
    request = Request([3, 1, 4], max_new_tokens=30)
    (after,) = Engine(session).generate([request])
    (alone,) = Engine(Session(exported(TINY_PYTHON))).generate([request])
    assert after.tokens == alone.tokens


def test_in_company_nothing_is_guessed_and_nothing_changes(exported):
    """Sequences that run together take one token a step: a step of several serves one alone."""
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=3)
    prompts = [[1, 2, 3] * 5, [4, 5] * 9, [6] * 11]
    requests = [Request(prompt, max_new_tokens=new) for prompt, new in zip(prompts, (9, 30, 60), strict=True)]
    plain = Engine(session).generate(requests)
    looked = Engine(session).generate([dataclasses.replace(one, prompt_lookup_num_tokens=8) for one in requests])
    assert [one.tokens for one in looked] == [one.tokens for one in plain]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4"])
def test_a_length_that_makes_no_sense_is_refused(exported, value):
    engine = Engine(Session(exported(GOLDEN / "tiny-global")))
    for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size"):
        with pytest.raises(RequestError, match=name):
            engine.check(Request([1], **{"prompt_lookup_num_tokens": 4, name: value}))

"""The shared-prefix cache: what was computed once is copied, and nobody can tell the difference."""

import random

import numpy as np
import pytest
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.prefix_cache import BLOCK, PrefixCache
from neo_tf.runtime.engine.request import Request

MODELS = {name: GOLDEN / name for name in ("tiny-global-local", "tiny-local-radius", "mem-kv")}
MODELS |= {"tiny-python": TINY_PYTHON}


def prefilled(session):
    """Lets a session note the tokens of its prompts: [(slot, past, tokens)]."""
    runs, prefill = [], session.prefill

    def noted(slot, ids, past, logits_of=1):
        runs.append((slot, past, len(ids)))
        return prefill(slot, ids, past, logits_of)

    session.prefill = noted
    return runs


def test_keys_tell_prompts_apart_by_everything_before(exported):
    prefix_keys = PrefixCache(Session(exported(GOLDEN / "tiny-global-local")).cache).keys
    prompt = list(range(3 * BLOCK + 1))
    assert len(prefix_keys(prompt)) == 3
    assert len(prefix_keys(prompt[:-1])) == 2  # the last token is run in any case
    assert prefix_keys(prompt[: 2 * BLOCK + 1]) == prefix_keys(prompt)[:2]
    other = prefix_keys([999, *prompt[1:]])
    assert not set(other) & set(prefix_keys(prompt))
    assert len(set(prefix_keys([7] * len(prompt)))) == 3
    assert prefix_keys(np.array(prompt, np.int32)) == prefix_keys(prompt)


@pytest.fixture(scope="module")
def known():
    """{(folder, prompts and lengths): the tokens of each one alone}. All sizes of blocks have the same requests."""
    return {}


def tokens_alone(folder, requests):
    """The new tokens of requests that run one by one, and share nothing."""
    engine = Engine(Session(folder), prefix_cache_bytes=0)
    return [engine.generate([request])[0].tokens for request in requests]


@pytest.mark.parametrize("block", [8, 24, 64])
@pytest.mark.parametrize("name", MODELS)
def test_requests_with_one_beginning_are_each_as_if_alone(exported, device, monkeypatch, known, name, block):
    """Prompts that share any part of one text, in any order, in few and many slots."""
    most_new = 24 if device == "cuda" else 10**6  # the stand-in is slow, and prefixes are what matters
    monkeypatch.setattr("neo_tf.runtime.engine.prefix_cache.BLOCK", block)
    rng = random.Random(name)
    folder = exported(MODELS[name])
    config, reused = neo_tf.GPTNeoConfig.from_file(folder / "config.json"), 0
    text = [rng.randrange(config.n_vocab) for _ in range(config.n_ctx)]
    for slots in (1, 4):
        engine = Engine(Session(folder, slots=slots))
        requests = []
        for _ in range(12):
            shared = rng.randint(0, config.n_ctx - 10)
            tail = [rng.randrange(config.n_vocab) for _ in range(rng.randint(1, 8))]
            new = rng.randint(1, config.n_ctx - shared - 8)
            requests.append(Request(text[:shared] + tail, max_new_tokens=min(new, most_new)))
        key = folder, str([(request.prompt, request.max_new_tokens) for request in requests])
        if key not in known:
            known[key] = tokens_alone(folder, requests)
        assert [found.tokens for found in engine.generate(requests)] == known[key]
        reused += engine.prefixes.tokens_reused
    assert reused >= 5 * block or config.n_ctx <= block


def test_a_prefix_is_prefilled_once(exported, device):
    """On CUDA the last token is decoded with other sequences' tokens."""
    last = 0 if device == "cuda" else 1
    session = Session(exported(GOLDEN / "tiny-local-radius"), slots=3)
    runs = prefilled(session)
    text = np.random.default_rng(0).integers(0, session.config.n_vocab, 200).tolist()
    Engine(session).generate([Request(text + [number], max_new_tokens=2) for number in range(5)])
    assert [past for _, past, _ in runs] == [0, *[3 * BLOCK] * 4]
    assert [count for *_, count in runs] == [200 + last, *[200 + last - 3 * BLOCK] * 4]


def test_the_same_prompt_again_still_has_its_last_token_run(exported, device):
    last = 0 if device == "cuda" else 1
    session = Session(exported(GOLDEN / "tiny-local-radius"))
    runs, engine = prefilled(session), Engine(session)
    prompt = list(range(BLOCK))
    (first,) = engine.generate([Request(prompt, max_new_tokens=5)])
    (second,) = engine.generate([Request(prompt, max_new_tokens=5)])
    assert first.tokens == second.tokens and [count for *_, count in runs] == [BLOCK - 1 + last] * 2
    longer = Request([*prompt, 1], max_new_tokens=5)
    engine.generate([longer])  # the block was not kept: its last token had run with logits
    assert runs[-1][1] == 0


def test_prompts_whose_log_probabilities_are_asked_for_are_run_whole(exported):
    session = Session(exported(GOLDEN / "tiny-local-radius"))
    runs, engine = prefilled(session), Engine(session)
    prompt = list(range(BLOCK)) * 2
    engine.generate([Request(prompt, max_new_tokens=1)])
    (asked,) = engine.generate([Request(prompt, max_new_tokens=1, prompt_logprobs=1)])
    assert runs[-1][1] == 0 and len(asked.prompt_token_logprobs) == len(prompt) - 1


@pytest.mark.cpu_only
def test_a_window_that_was_dropped_ends_no_prefix(exported):
    """A local layer keeps 16 to 80 positions here: of a chunk of 200 tokens only the last block has its window."""
    session = Session(exported(GOLDEN / "tiny-local-radius"))
    rng = np.random.default_rng(1)
    text = rng.integers(0, session.config.n_vocab, 200).tolist()
    engine, runs = Engine(session), prefilled(session)
    engine.generate([Request(text, max_new_tokens=1)])
    for shared, past in ((199, 3 * BLOCK), (2 * BLOCK, 0), (BLOCK, 0)):
        engine.generate([Request(text[:shared] + [1, 2, 3], max_new_tokens=1)])
        assert runs[-1][1] == past
    # Once a chunk has ended there, it does.
    engine.generate([Request(text[: 2 * BLOCK] + [9], max_new_tokens=1)])
    assert runs[-1][1] == 2 * BLOCK


def test_the_least_recently_used_blocks_go_first(exported):
    session = Session(exported(GOLDEN / "tiny-local-radius"))
    one = PrefixCache(session.cache, 10**7).block_bytes
    engine = Engine(session, prefix_cache_bytes=3 * one + 1)
    assert engine.prefixes.blocks == 3
    texts = [np.random.default_rng(seed).integers(0, 50, BLOCK + 1).tolist() for seed in range(5)]

    def known(number):
        before = engine.prefixes.tokens_reused
        engine.generate([Request(texts[number], max_new_tokens=1)])
        return engine.prefixes.tokens_reused == before + BLOCK

    assert not any(known(number) for number in (0, 1, 2))
    assert known(0) and known(1)
    assert not known(3)  # takes the place of 2
    assert known(0) and known(1) and known(3)
    assert not known(2)


def test_models_with_running_sums_and_a_limit_of_nothing_have_none(exported):
    assert Engine(Session(exported(GOLDEN / "attn-mix"))).prefixes is None
    assert Engine(Session(exported(GOLDEN / "tiny-global")), prefix_cache_bytes=0).prefixes is None
    assert Engine(Session(exported(GOLDEN / "tiny-global")), prefix_cache_bytes=100).prefixes is None


def test_quantised_prompts_are_cut_as_without_the_cache(tmp_path):
    """Prefixes are whole pieces of a prefill: the rest is then run in the same pieces, and rounded the same."""
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", "int8")
    session = Session(tmp_path / "onnx", slots=2)
    runs, engine = prefilled(session), Engine(session)
    text = np.random.default_rng(0).integers(0, session.config.n_vocab, 400).tolist()
    request = Request(text, max_new_tokens=20, logprobs=0)
    (first,) = engine.generate([request])
    shorter = Request(text[:300], max_new_tokens=20, logprobs=0)
    _, same = engine.generate([shorter, request])
    assert engine.prefixes.tokens_reused == 512 and sum(past == 0 for _, past, _ in runs) == 1
    assert (same.tokens, same.token_logprobs) == (first.tokens, first.token_logprobs)  # to the last bit


@pytest.mark.parametrize("shared", [199, 2 * BLOCK, BLOCK])
def test_on_cuda_a_prefix_ends_with_any_block(exported, device, shared):
    """Its local layers keep every position."""
    if device == "cpu":
        return
    session = Session(exported(GOLDEN / "tiny-local-radius"), slots=2)
    text = np.random.default_rng(1).integers(0, session.config.n_vocab, 200).tolist()
    engine, request = Engine(session), Request([*text[:shared], 1, 2, 3], max_new_tokens=5)
    engine.generate([Request(text, max_new_tokens=1)])
    runs = prefilled(session)
    (found,) = engine.generate([request])
    assert runs[-1][1] == engine.prefixes.tokens_reused == shared // BLOCK * BLOCK
    (alone,) = Engine(session, prefix_cache_bytes=0).generate([request])
    assert found.tokens == alone.tokens

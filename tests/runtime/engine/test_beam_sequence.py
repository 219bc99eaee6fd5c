"""Beams in the engine: transformers' sequences and scores; in company, past the window, and to the last position."""

import random

import numpy as np
import pytest
from conftest import GOLDEN, TINY_PYTHON, TOLERANCE
from sampling_helpers import prompt_of

from neo_tf.errors import RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions
from neo_tf.runtime.tokenizer import Tokenizer

MODELS = {"tiny-python": TINY_PYTHON} | {
    name: GOLDEN / name for name in ("vocab-padded", "tiny-global-local", "tiny-local-radius", "mem-kv", "attn-mix")
}


def found(generation):
    texts = [(one.tokens, one.finish_reason) for one in generation.hypotheses]
    return texts, [one.score for one in generation.hypotheses]


def assert_same(one, other):
    assert found(one)[0] == found(other)[0]
    np.testing.assert_allclose(found(one)[1], found(other)[1], atol=TOLERANCE)


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("name", ["tiny-python", "vocab-padded", "tiny-global-local"])
def test_sequences_and_scores_are_transformers(exported, judge, name, length, beams):
    torch = pytest.importorskip("torch")
    model, prompt = judge(name), prompt_of(name, length)
    session = Session(exported(MODELS[name]), slots=beams)
    new = min(60, session.config.n_ctx - length)  # past the window of 16
    request = Request(prompt, max_new_tokens=new, beams=BeamOptions(beams, num_return_sequences=beams))
    (generation,) = Engine(session).generate([request])
    expected = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [one.tokens for one in generation.hypotheses] == expected.sequences[:, length:].tolist()
    scores = [one.score for one in generation.hypotheses]
    np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), atol=TOLERANCE)
    assert generation.tokens == generation.hypotheses[0].tokens and generation.finish_reason == "length"


@pytest.mark.parametrize("name", MODELS)
def test_beams_are_the_same_in_company_and_fill_the_context(exported, name):
    """Requests with and without beams come and go; prompts are prefilled in small pieces."""
    rng = random.Random(name)
    folder = exported(MODELS[name])
    alone, together = Engine(Session(folder, slots=4), prefix_cache_bytes=0), Engine(Session(folder, slots=7))
    config, requests = together.config, []
    for number in range(7):
        length = rng.randint(1, config.n_ctx - 2)
        prompt = [rng.randrange(config.n_vocab) for _ in range(length)]
        beams = BeamOptions(rng.randint(2, 4), 2, early_stopping=rng.choice([True, False])) if number % 3 else None
        stops = tuple(rng.sample(range(config.n_vocab), config.n_vocab // 20))
        new = rng.choice([config.n_ctx - length, 1 + (config.n_ctx - length) // 2])
        sampling = SamplingOptions(do_sample=number % 4 == 0, seed=number, repetition_penalty=1.1)
        requests.append(Request(prompt, new, stop_token_ids=stops, sampling=sampling, beams=beams))
    for request, same in zip(requests, together.generate(requests), strict=True):
        (expected,) = alone.generate([request])
        assert (same.tokens, same.finish_reason) == (expected.tokens, expected.finish_reason)
        assert_same(same, expected)


def test_only_what_differs_is_copied(exported):
    """The prompt is copied to each beam once; after that, at most what beams have not in common."""
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=4)
    copies, copy = [], session.cache.copy

    def counted(source, target, begin, length):
        copies.append((begin, length))
        copy(source, target, begin, length)

    session.cache.copy = counted
    prompt = prompt_of("tiny-global-local", 100)
    Engine(session).generate([Request(prompt, max_new_tokens=80, beams=BeamOptions(4))])
    assert copies[:3] == [(0, 100)] * 3
    assert all(begin >= 100 for begin, _ in copies[3:])
    moved = sum(length - begin for begin, length in copies[3:])
    assert 0 < moved < 80 * 20, f"{moved} positions"


def test_stop_strings_end_beams_and_their_texts(exported):
    """Judge is the text itself: of hypotheses that stopped, the string ends in the last token and never before."""
    tokenizer = Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json")
    engine = Engine(Session(exported(TINY_PYTHON), slots=5))
    prompt = tokenizer.encode("def read(path):\n    ")
    common = {"max_new_tokens": 24, "tokenizer": tokenizer, "beams": BeamOptions(5, 5, length_penalty=0)}
    (plain,) = engine.generate([Request(prompt, **common)])
    stop = plain.text[8:11]  # likely to come in other beams too
    (whole,) = engine.generate([Request(prompt, stop_strings=(stop,), **common)])
    stopped = [one for one in whole.hypotheses if one.finish_reason == "stop"]
    assert len(stopped) >= 2
    for one in stopped:
        assert stop in one.text and stop not in tokenizer.decode(one.tokens[:-1])
    request = Request(prompt, stop_strings=(stop,), include_stop_str_in_output=False, **common)
    (cut,) = engine.generate([request])
    assert [one.tokens for one in cut.hypotheses] == [one.tokens for one in whole.hypotheses]
    assert all(stop not in one.text for one in cut.hypotheses)
    assert cut.text == cut.hypotheses[0].text


def test_cancelling_and_max_time_free_all_slots(exported):
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=4)
    engine = Engine(session)
    cancelled = engine.submit(Request([1, 2, 3], beams=BeamOptions(4)))
    for _ in range(5):
        engine.step()
    engine.cancel(cancelled)
    assert not engine.step() and cancelled.finish_reason == "cancelled"
    (timed,) = engine.generate([Request([1, 2, 3], beams=BeamOptions(4, 2), max_time=1e-9)])
    assert [one.finish_reason for one in timed.hypotheses] == ["time"] * 2 and len(timed.tokens) == 1
    (again,) = engine.generate([Request([1, 2, 3], max_new_tokens=5, beams=BeamOptions(4))])
    assert len(again.tokens) == 5


def test_a_step_that_fails_ends_the_request_once(exported):
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=5)
    engine, decode = Engine(session), session.decode
    failed = engine.submit(Request([1, 2, 3], beams=BeamOptions(4)))
    engine.step()

    def failing(*arguments):
        raise RuntimeError("no memory")

    session.decode = failing
    engine.step()
    assert engine.ended == [failed] and "no memory" in str(failed.error)
    session.decode = decode
    (other,) = engine.generate([Request([4], max_new_tokens=4)])
    assert len(other.tokens) == 4


def test_what_does_not_go_with_beams_is_refused(exported):
    engine = Engine(Session(exported(GOLDEN / "tiny-global-local"), slots=2))
    for name, value in {"on_token": print, "logprobs": 1, "output_scores": True, "prompt_lookup_num_tokens": 3}.items():
        with pytest.raises(RequestError, match=name):
            engine.check(Request([1], beams=BeamOptions(2), **{name: value}))
    with pytest.raises(RequestError, match=r"3 sequences .* 2 slots"):
        engine.check(Request([1], beams=BeamOptions(3)))

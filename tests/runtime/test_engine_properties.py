"""Any requests at any times, with cancellations and refusals: each comes to what it comes to alone."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from conftest import GOLDEN, TOLERANCE
from hypothesis import strategies as st

from neo_tf.errors import RequestError
from runtime.beams import BeamOptions
from runtime.engine import Engine, Request
from runtime.sampling import SamplingOptions
from runtime.session import Session

MODELS = ("tiny-global-local", "tiny-local-radius", "mem-kv", "attn-mix")
SLOTS = 5


@st.composite
def requests(draw, config):
    """A request of any length and settings; prompts have one of two beginnings, so that some are shared."""
    beginning = draw(st.integers(0, 1))
    shared = draw(st.integers(0, config.n_ctx - 2))
    tail = draw(st.lists(st.integers(0, config.n_vocab - 1), max_size=min(6, config.n_ctx - 1 - shared)))
    prompt = np.random.default_rng(beginning).integers(0, config.n_vocab, shared).tolist() + tail
    prompt = prompt or [1]
    room = config.n_ctx - len(prompt)
    sampling = SamplingOptions(
        do_sample=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.5, 1.0, 1.5])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 3])),
        seed=draw(st.integers(0, 9)),
    )
    kind = draw(st.sampled_from(["plain", "plain", "lookup", "beams"]))
    return Request(
        prompt,
        max_new_tokens=draw(st.one_of(st.none(), st.integers(1, room), st.just(room))),
        min_new_tokens=draw(st.sampled_from([0, 3])),
        stop_token_ids=tuple(draw(st.lists(st.integers(0, config.n_vocab - 1), max_size=8))),
        sampling=sampling,
        logprobs=1 if kind == "plain" and draw(st.booleans()) else None,
        prompt_logprobs=0 if kind == "plain" and draw(st.booleans()) else None,
        prompt_lookup_num_tokens=draw(st.integers(1, 9)) if kind == "lookup" else None,
        beams=BeamOptions(draw(st.integers(2, 4)), 2) if kind == "beams" else None,
    )


def assert_same(request, alone):
    assert (request.tokens, request.finish_reason) == (alone.tokens, alone.finish_reason)
    assert [one.tokens for one in request.hypotheses] == [one.tokens for one in alone.hypotheses]
    for name in ("token_logprobs", "prompt_token_logprobs"):
        np.testing.assert_allclose(getattr(request, name), getattr(alone, name), atol=TOLERANCE)
    found, expected = ([one.score for one in each.hypotheses] for each in (request, alone))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_any_schedule(exported, monkeypatch, name):
    folder = exported(GOLDEN / name)
    alone, session = Session(folder, slots=4), Session(folder, slots=SLOTS)
    config, whole = session.config, session.cache.bytes_of(session.config.n_ctx)
    monkeypatch.setattr("runtime.prefix_cache.BLOCK", 8)

    @hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    @hypothesis.given(st.data())
    def run(data):
        monkeypatch.setattr("runtime.engine.PREFILL_CHUNK", data.draw(st.sampled_from([5, 16, 256]), "chunk"))
        limit = data.draw(st.sampled_from([None, 4 * whole]), "cache_bytes")
        engine = Engine(session, limit, data.draw(st.sampled_from([None, 0, 10**6]), "prefix_cache_bytes"))
        submitted, busy = [], True
        for _ in range(data.draw(st.integers(1, 12), "actions")):
            action = data.draw(st.sampled_from(["submit", "submit", "submit", "step", "cancel", "refused"]))
            if action == "submit":
                submitted.append(data.draw(requests(config)))
                engine.submit(submitted[-1])
            elif action == "cancel" and submitted:
                engine.cancel(data.draw(st.sampled_from(submitted)))
            elif action == "refused":
                with pytest.raises(RequestError):
                    engine.submit(Request([config.n_vocab]))
            for _ in range(data.draw(st.integers(0, 20), "steps") if action == "step" else 0):
                engine.step()
        while busy:
            busy = engine.step()
        for request in submitted:
            expected = dataclasses.replace(request)
            Engine(alone, prefix_cache_bytes=0).generate([expected])
            if request.finish_reason == "cancelled":
                assert request.cancelled and request.tokens == expected.tokens[: len(request.tokens)]
            else:
                assert_same(request, expected)
        # No slot is lost, and none is promised to anybody.
        assert engine.free_slots == SLOTS and not engine._slots._promised

    run()

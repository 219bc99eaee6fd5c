"""Any requests at any times, with cancellations and refusals: each comes to what it comes to alone."""

import hypothesis
import numpy as np
import pytest
from conftest import GOLDEN, SCHEDULES, TINY_PYTHON, TOLERANCE
from cuda_layout import export_cuda_layout
from cuda_standin import stand_in
from hypothesis import strategies as st

import neo_tf
from neo_tf.errors import RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions

MODELS = {name: (GOLDEN / name, "fp32") for name in ("tiny-global-local", "tiny-local-radius", "mem-kv", "attn-mix")}
# Rounded activations: the smallest difference of a sum would show.
MODELS |= {"quantised": (TINY_PYTHON, "int8"), "quantised more": (TINY_PYTHON, "int4")}
MODELS |= {"quantised sums": (GOLDEN / "attn-mix", "int8")}
SLOTS = 5
PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # to make an example smaller takes minutes


@st.composite
def requests(draw, config, kinds, most):
    """A request of any length and settings; prompts have one of two beginnings, so that some are shared."""
    beginning = draw(st.integers(0, 1))
    shared = draw(st.integers(0, config.n_ctx - 2))
    tail = draw(st.lists(st.integers(0, config.n_vocab - 1), max_size=min(6, config.n_ctx - 1 - shared)))
    prompt = np.random.default_rng(beginning).integers(0, config.n_vocab, shared).tolist() + tail
    prompt = prompt or [1]
    room = min(config.n_ctx - len(prompt), most)
    sampling = SamplingOptions(
        do_sample=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.5, 1.0, 1.5])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 3])),
        seed=draw(st.integers(0, 9)),
    )
    kind = draw(st.sampled_from(kinds))
    return Request(
        prompt,
        max_new_tokens=draw(
            st.one_of(st.none() if most == config.n_ctx else st.just(1), st.integers(1, room), st.just(room))
        ),
        min_new_tokens=draw(st.sampled_from([0, 3])),
        stop_token_ids=tuple(draw(st.lists(st.integers(0, config.n_vocab - 1), max_size=8))),
        sampling=sampling,
        logprobs=1 if kind == "plain" and draw(st.booleans()) else None,
        prompt_logprobs=0 if kind == "plain" and draw(st.booleans()) else None,
        prompt_lookup_num_tokens=draw(st.integers(1, 9)) if kind == "lookup" else None,
        beams=BeamOptions(draw(st.integers(2, 4)), 2) if kind == "beams" else None,
    )


def assert_same(found, alone, tolerance):
    assert (found.tokens, found.finish_reason) == (alone.tokens, alone.finish_reason)
    assert [one.tokens for one in found.hypotheses] == [one.tokens for one in alone.hypotheses]
    for name in ("token_logprobs", "prompt_token_logprobs"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=0, atol=tolerance)
    scores, expected = ([one.score for one in each.hypotheses] for each in (found, alone))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


def sessions(folder):
    """One that runs requests alone, and one that runs them together."""
    return [Session(folder, slots=slots) for slots in (4, SLOTS)]


@pytest.mark.parametrize("name", MODELS)
def test_any_schedule(tmp_path, monkeypatch, name):
    source, precision = MODELS[name]
    neo_tf.export_onnx(source, tmp_path / "onnx", precision)
    check_schedules(monkeypatch, sessions(tmp_path / "onnx"), precision)


@pytest.mark.cuda_standin
@pytest.mark.parametrize("name", ["tiny-local-radius", "mem-kv", "attn-mix"])
def test_any_schedule_on_cuda(tmp_path, monkeypatch, name):
    """In the end each request is compared with what it comes to on the CPU."""
    export_cuda_layout(GOLDEN / name, tmp_path / "onnx")
    stand_in(monkeypatch)
    alone = Session(tmp_path / "onnx", slots=4, device="cpu")
    check_schedules(monkeypatch, (alone, Session(tmp_path / "onnx", slots=SLOTS)), "fp32", examples=6)


def check_schedules(monkeypatch, sessions, precision, examples=10):
    """Runs requests that come at any time, and compares each with what it comes to alone."""
    alone, session = sessions
    config, whole = session.config, session.cache.bytes_of(session.config.n_ctx)
    # Guesses are run several at a time: quantised, they differ in the last digits, and then anywhere.
    most = config.n_ctx if precision == "fp32" else 40  # this model is larger
    kinds = ["plain", "plain", "lookup", "beams"] if precision == "fp32" else ["plain", "beams"]
    pieces = [5, 16, 256]
    monkeypatch.setattr("neo_tf.runtime.engine.prefix_cache.BLOCK", 8 if precision == "fp32" else 64)

    examples = SCHEDULES * (examples if precision == "fp32" else 4)

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, phases=PHASES)
    @hypothesis.given(st.data())
    def run(data):
        chunk = data.draw(st.sampled_from(pieces), "chunk")
        for name in ("PREFILL_CHUNK", "CUDA_PREFILL_CHUNK"):
            monkeypatch.setattr(f"neo_tf.runtime.engine.engine.{name}", chunk)
        limit = data.draw(st.sampled_from([None, 4 * whole]), "cache_bytes")
        engine = Engine(session, limit, data.draw(st.sampled_from([None, 0, 10**6]), "prefix_cache_bytes"))
        submitted, busy = [], True
        for _ in range(data.draw(st.integers(1, 12), "actions")):
            action = data.draw(st.sampled_from(["submit", "submit", "submit", "step", "cancel", "refused"]))
            if action == "submit":
                submitted.append(engine.submit(data.draw(requests(config, kinds, most))))
            elif action == "cancel" and submitted:
                engine.cancel(data.draw(st.sampled_from(submitted)))
            elif action == "refused":
                with pytest.raises(RequestError):
                    engine.submit(Request([config.n_vocab]))
            for _ in range(data.draw(st.integers(0, 20), "steps") if action == "step" else 0):
                engine.step()
        while busy:
            busy = engine.step()
        for found in submitted:
            (expected,) = Engine(alone, prefix_cache_bytes=0).generate([found.request])
            if found.finish_reason == "cancelled":
                assert found.cancelled and found.tokens == expected.tokens[: len(found.tokens)]
            else:
                assert_same(found, expected, TOLERANCE if precision == "fp32" else 0)
        # No slot is lost, and none is promised to anybody.
        assert engine.slots.free == SLOTS and not engine.slots._promised

    run()

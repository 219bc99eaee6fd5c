"""Sessions that choose: short and whole rows give the same texts, and short rows ask for no logits."""

import numpy as np
import pytest
from conftest import GOLDEN
from cuda_layout import export_cuda_layout
from cuda_standin import stand_in
from session_helpers import ChoosingSession

from neo_tf.errors import EngineError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.sequence import SingleSequence
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions

MODEL = GOLDEN / "tiny-global-local"
SHORT = [
    {},
    {"logprobs": 5},
    {"top_k": 40, "temperature": 0.8},
    {"top_k": 50, "logprobs": 3},
    {"top_p": 0.7, "temperature": 0.6},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"epsilon_cutoff": 0.02},
]
WHOLE = [
    {"repetition_penalty": 1.3},
    {"logit_bias": {5: 2.0}, "top_k": 9},
    {"temperature": 2.0},
    {"typical_p": 0.8},
    {"top_k": 9, "output_logits": True},
    {"output_scores": True},
    {"logprobs": 100},
    {"top_k": 5, "temperature": 0.7, "logprobs": 2},
    {"suppress_tokens": [3]},
    {"beams": BeamOptions(3)},
]
OF_REQUESTS = ("logprobs", "output_logits", "output_scores", "beams", "min_new_tokens", "on_token")


@pytest.fixture
def folder(exported):
    return exported(MODEL)


def request(options, seed=0, tokens=24, **more):
    own = {name: value for name, value in options.items() if name in OF_REQUESTS}
    sampling = {name: value for name, value in options.items() if name not in OF_REQUESTS}
    sampling["do_sample"] = any(name in sampling for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"))
    sampling["do_sample"] |= "epsilon_cutoff" in sampling
    prompt = np.random.default_rng(seed).integers(0, 257, 3 + seed % 5)
    return Request(prompt, tokens, sampling=SamplingOptions(seed=seed, **sampling), **own, **more)


def test_a_models_texts_are_those_of_whole_rows(folder):
    """All kinds of requests together, over several slots, so that rows come, go and move."""
    requests = [request(options, seed) for seed in range(6) for options in (*SHORT, *WHOLE)]
    session = ChoosingSession(folder, slots=7)
    pairs = zip(Engine(Session(folder, slots=7)).generate(requests), Engine(session).generate(requests), strict=True)
    for expected, found in pairs:
        assert found.tokens == expected.tokens, found.request
        assert found.finish_reason == expected.finish_reason
        assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-5)
        for one, other in zip(found.top_logprobs, expected.top_logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        for one, other in zip(found.logits + found.scores, expected.logits + expected.scores, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


class WholeSession(Session):
    """A Session whose rows are all whole, though its graph chooses."""

    def decode(self, first, token_ids, past, inverse_temperatures=None):
        decoded = super().decode(first, token_ids, past)
        return WholeRows(np.stack([decoded.logits(row) for row in range(len(token_ids))]))


class WholeRows:
    top_ids = top_logprobs = None

    def __init__(self, logits):
        self._logits = logits

    def logits(self, row):
        return self._logits[row]


@pytest.mark.parametrize(
    "where", ["cpu", pytest.param("stand-in", marks=pytest.mark.cuda_standin)], ids=["cpu", "stand-in"]
)
def test_a_graph_that_chooses_gives_the_texts_of_its_whole_rows(tmp_path, monkeypatch, where):
    """Exported as for CUDA: all kinds of requests in one batch, each with its seed, on the short and the whole way."""
    folder = export_cuda_layout(MODEL, tmp_path / "onnx")
    if where == "stand-in":
        stand_in(monkeypatch)
    device = "cpu" if where == "cpu" else "cuda"
    session = Session(folder, slots=7, device=device)
    take, take_short = SingleSequence.take, SingleSequence.take_short
    counts = {"whole": 0, "short": 0}

    def counted(name, function):
        def call(self, *arguments):
            counts[name] += 1
            function(self, *arguments)

        return call

    requests = [request(options, seed) for seed in range(6) for options in (*SHORT, *WHOLE)]
    expected = Engine(WholeSession(folder, slots=7, device="cpu")).generate(requests)
    monkeypatch.setattr(SingleSequence, "take", counted("whole", take))
    monkeypatch.setattr(SingleSequence, "take_short", counted("short", take_short))
    found = Engine(session).generate(requests)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tokens == theirs.tokens and ours.finish_reason == theirs.finish_reason, ours.request
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-5)
        for one, other in zip(ours.top_logprobs, theirs.top_logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    new = sum(len(one.tokens) for one in found if not one.request.beams)
    assert counts["short"] + counts["whole"] == new
    assert min(counts.values()) > 0.2 * new, "one of the ways was hardly taken"


@pytest.mark.parametrize("options", SHORT, ids=str)
def test_short_rows_ask_for_no_logits(folder, options):
    session = ChoosingSession(folder, slots=2)
    Engine(session).generate([request(options, seed) for seed in range(4)])
    assert len(session.whole) > 40
    # Where the most likely tokens do not reach p or epsilon, a step needs its row.
    assert sum(session.whole) < (0.5 if "top_p" in options or "epsilon_cutoff" in options else 0.01) * 90


@pytest.mark.parametrize("options", WHOLE, ids=str)
def test_whole_rows_ask_for_theirs(folder, options):
    session = ChoosingSession(folder, slots=4)
    (found,) = Engine(session).generate([request(options)])
    rows = found.request.slots
    assert session.whole and set(session.whole) == {rows}


def test_a_row_is_whole_while_no_stop_token_may_come(folder):
    session = ChoosingSession(folder)
    prompt = [1, 2, 3, 4]
    free = Engine(session).generate([Request(prompt, 12)])[0].tokens
    session = ChoosingSession(folder)
    (found,) = Engine(session).generate([Request(prompt, 12, 5, [250, free[0]])])
    (expected,) = Engine(Session(folder)).generate([Request(prompt, 12, 5, [250, free[0]])])
    assert found.tokens == expected.tokens and len(found.tokens) > 5
    steps = len(session.whole)
    assert sum(session.whole[: steps - (len(found.tokens) - 5)]) == steps - (len(found.tokens) - 5) > 2
    assert sum(session.whole[steps - (len(found.tokens) - 5) :]) == 0


def test_a_stop_token_and_callbacks_see_short_tokens(folder):
    seen = []
    plain = request({"top_k": 20}, 4)
    (whole,) = Engine(Session(folder)).generate([plain])
    stop = whole.tokens[9]
    (found,) = Engine(ChoosingSession(folder)).generate(
        [request({"top_k": 20}, 4, on_token=seen.append, stop_token_ids=[stop])]
    )
    assert found.tokens == seen == whole.tokens[: whole.tokens.index(stop) + 1]
    assert found.finish_reason == "stop"


def test_an_error_of_a_requests_own_function_ends_it_alone(folder):
    def broken(token):
        raise KeyError("mine")

    expected = Engine(Session(folder)).generate([request({}, 1)])[0].tokens
    engine = Engine(ChoosingSession(folder, slots=3))
    bad = engine.submit(request({"top_k": 20}, on_token=broken))
    good = engine.submit(request({}, 1))
    while engine.step():
        pass
    assert bad.finish_reason == "error" and isinstance(bad.error, KeyError)
    assert good.tokens == expected
    assert engine.slots.free == 3


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_end_their_request_alone(folder, options, value):
    expected = Engine(Session(folder)).generate([request({}, 1)])[0].tokens
    session = ChoosingSession(folder, slots=2)
    engine = Engine(session)

    def changed(logits):
        logits[0, 77] = value
        return logits

    bad, good = engine.submit(request(options)), engine.submit(request({}, 1))
    while len(bad.tokens) < 3:
        engine.step()
    session.changed = changed
    engine.step()
    session.changed = lambda logits: logits
    while engine.step():
        pass
    assert bad.finish_reason == "error" and isinstance(bad.error, EngineError) and "NaN" in str(bad.error)
    assert good.tokens == expected


def test_logits_that_cannot_be_fetched_end_their_request_alone(folder):
    expected = Engine(Session(folder)).generate([request({}, 1)])[0].tokens
    session = ChoosingSession(folder, slots=2)
    engine, decode = Engine(session), session.decode

    def failing(*arguments):
        decoded = decode(*arguments)

        def logits(row):
            raise RuntimeError("no copy")

        decoded.logits = logits
        return decoded

    session.decode = failing
    bad, good = engine.submit(request({"repetition_penalty": 1.2})), engine.submit(request({}, 1))
    while engine.step():
        pass
    assert bad.finish_reason == "error" and "no copy" in str(bad.error)
    assert good.tokens == expected

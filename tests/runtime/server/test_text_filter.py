"""--filter: a user's function judges each text before it is sent, through whole answers and streams."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra server")
from conftest import TINY_PYTHON
from server_helpers import WAIT, running_server

from neo_tf.errors import RequestError
from neo_tf.runtime.engine.generation import Generation
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.beam_group import Hypothesis
from neo_tf.runtime.server.errors import ServerError
from neo_tf.runtime.server.text_filter import TextFilter, load_judge

PROMPT = "def read_lines(path):"
BODY = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.8, "seed": 11, "logprobs": 2}


class Judge:
    """A filter whose verdict a test sets: a function of the text. It notes what it was asked."""

    def __init__(self):
        self.verdict = None
        self.asked = []

    def __call__(self, text, prompt):
        self.asked.append((text, prompt))
        assert threading.current_thread().name != "MainThread"
        return self.verdict(text)


class SlowJudge:
    """A filter that passes every text, once it may answer."""

    def __init__(self):
        self.asked = threading.Event()
        self.may_answer = threading.Event()

    def __call__(self, text, prompt):
        self.asked.set()
        self.may_answer.wait(WAIT)
        return text


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture(scope="module")
def filtered(demo_folder, judge):
    with running_server(demo_folder, judge=judge) as running:
        yield running


@pytest.fixture(scope="module")
def plain(demo_folder):
    with running_server(demo_folder) as running:
        yield running


@pytest.fixture
def server(filtered, judge):
    judge.asked.clear()
    yield filtered
    filtered.wait_until(lambda: filtered.serving.admission.active == 0)


def streamed(server, **body):
    """A stream's raw text, and its chunks."""
    raw = server.post("/v1/completions", **body, stream=True).text
    lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return raw, [json.loads(line) for line in lines]


def parts(text):
    """Pieces of a text by which it would be known again, in JSON, too."""
    pieces = {text[place : place + 10] for place in range(len(text) - 9)}
    return {
        piece for piece in pieces if piece.isprintable() and '"' not in piece and "\\" not in piece and piece.strip()
    }


def test_a_text_that_passes_is_sent_as_it_is(server, plain, judge):
    judge.verdict = lambda text: text
    answer = server.complete(**BODY)
    assert answer["choices"] == plain.complete(**BODY)["choices"]
    assert answer["usage"]["completion_tokens"] == 24
    assert judge.asked == [(answer["choices"][0]["text"], PROMPT)]


def test_a_stream_waits_for_the_verdict_and_comes_in_one_piece(server, plain, judge):
    judge.verdict = lambda text: text
    expected = plain.complete(**BODY)["choices"][0]
    _, chunks = streamed(server, **BODY)
    assert [chunk["choices"] for chunk in chunks] == [[expected]]
    assert len(judge.asked) == 1


@pytest.mark.parametrize("echo", [False, True])
def test_a_replaced_text_leaves_no_trace_of_the_first_one(server, plain, judge, echo):
    judge.verdict = lambda text: "something else"
    begin = PROMPT if echo else ""
    told = parts(plain.complete(**BODY)["choices"][0]["text"])
    assert told
    answer = server.post("/v1/completions", **BODY, echo=echo).text
    choice = json.loads(answer)["choices"][0]
    assert choice["text"] == f"{begin}something else" and choice["finish_reason"] == "length"
    raw, chunks = streamed(server, **BODY, echo=echo)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert not [part for part in told if part in answer or part in raw]


def test_a_withheld_text_is_empty_and_says_why(server, judge):
    judge.verdict = lambda text: None
    choice = server.complete(**BODY)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
    assert not (choice["logprobs"] or {}).get("tokens")
    _, chunks = streamed(server, **BODY)
    assert [(each["text"], each["finish_reason"]) for chunk in chunks for each in chunk["choices"]] == [
        ("", "content_filter")
    ]


def test_each_of_several_texts_is_judged_by_itself(server, plain, judge):
    expected = [choice["text"] for choice in plain.complete(**BODY, n=3)["choices"]]
    judge.verdict = lambda text: None if text == expected[1] else text
    choices = server.complete(**BODY, n=3)["choices"]
    assert [choice["text"] for choice in choices] == [expected[0], "", expected[2]]
    assert [choice["finish_reason"] for choice in choices] == ["length", "content_filter", "length"]


def fails(text):
    raise ValueError("it cannot say")


@pytest.mark.parametrize("verdict", [fails, lambda text: True, lambda text: text.encode()])
def test_a_text_that_could_not_be_judged_is_not_sent(server, plain, judge, verdict):
    judge.verdict = verdict
    told = parts(plain.complete(**BODY)["choices"][0]["text"])
    answer = server.post("/v1/completions", **BODY)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "filter_failed"
    raw, chunks = streamed(server, **BODY)
    assert [chunk["error"]["code"] for chunk in chunks] == ["filter_failed"]
    assert not [part for part in told if part in answer.text or part in raw]
    judge.verdict = lambda text: text
    assert server.complete(**BODY)["choices"][0]["text"]  # the server goes on


def test_beams_are_judged_one_by_one():
    generation = Generation(Request([1, 2]))
    generation.finish_with(
        [Hypothesis([3], -1.0, "length", [-1.0], "good"), Hypothesis([4], -2.0, "stop", [-2.0], "bad")]
    )

    class Letters:
        def decode(self, ids):
            return "ab"

    kept = asyncio.run(TextFilter(lambda text, prompt: text if text == "good" else None, Letters()).apply(generation))
    assert [(one.text, one.tokens, one.finish_reason) for one in kept.hypotheses] == [
        ("good", [3], "length"),
        ("", [], "content_filter"),
    ]
    assert (kept.text, kept.tokens) == ("good", [3])
    none = asyncio.run(TextFilter(lambda text, prompt: None, Letters()).apply(generation))
    assert (none.text, none.tokens, none.finish_reason) == ("", [], "content_filter")
    assert generation.text == "good" and generation.hypotheses[1].text == "bad"  # the engine's own stays as it is
    with pytest.raises(ServerError, match="filter failed"):
        asyncio.run(TextFilter(lambda text, prompt: 1, Letters()).apply(generation))


# ---- which function


def test_a_function_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_neo_tf_filter.py").write_text("def judge(text, prompt):\n    return text.upper()\n\nNUMBER = 3\n")
    (tmp_path / "my_broken_filter.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_judge("my_neo_tf_filter:judge")("a", "") == "A"
    for name, reason in (
        ("my_neo_tf_filter:other", "has no attribute 'other'"),
        ("my_neo_tf_filter:NUMBER", "is no function"),
        ("my_neo_tf_filter", "write it as module:function"),
        (":judge", "write it as module:function"),
        ("my_broken_filter:judge", "no_such_module_at_all"),
    ):
        with pytest.raises(RequestError, match=reason) as caught:
            load_judge(name)
        assert str(caught.value).startswith(f"--filter {name}: ") and "\n" not in str(caught.value)


def test_the_command_refuses_a_filter_before_it_loads_the_model(monkeypatch, capsys):
    from conftest import run_cli

    status, _, error = run_cli(monkeypatch, capsys, "serve", TINY_PYTHON, "--filter", "no_such_filter:judge")
    assert status == 1 and "--filter no_such_filter:judge: cannot be loaded" in error and "Traceback" not in error


def test_a_text_keeps_its_place_until_it_is_judged_and_the_servers_end_waits_for_it(demo_folder):
    slow = SlowJudge()
    with running_server(demo_folder, slots=1, max_queue=0, judge=slow) as running, ThreadPoolExecutor() as pool:
        waiting = pool.submit(running.post, "/v1/completions", prompt=PROMPT, max_tokens=2)
        assert slow.asked.wait(WAIT)
        assert running.free_slots == 1  # the engine is done with it
        assert running.post("/v1/completions", prompt=PROMPT, max_tokens=2).status_code == 429
        running.server.drain()
        time.sleep(0.4)  # the server looks ten times a second whether it may end
        slow.may_answer.set()
        assert waiting.result().status_code == 200


def test_a_client_that_leaves_before_the_verdict_is_no_answer(demo_folder):
    slow = SlowJudge()
    with running_server(demo_folder, judge=slow) as running:
        with running.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 2}, timeout=0.5)
        assert slow.asked.wait(WAIT)
        running.wait_until(lambda: not running.server.server_state.connections)  # the server knows that it has left
        slow.may_answer.set()
        running.wait_until(lambda: running.metric("neo_tf_disconnects_total") == 1)
        running.wait_until(lambda: running.serving.admission.active == 0)

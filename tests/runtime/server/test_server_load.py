"""Load and failure: clients that leave, a full queue, large bodies, keys, the end of the server, a broken engine."""

import contextlib
import json
import logging
import socket
import threading
import time

import httpx
import openai
import pytest
from server_helpers import WAIT, running_server

from neo_tf.runtime.server.api_keys import ApiKeys

LONG = {"prompt": "import os", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
SLOW = 0.02  # seconds of a step


@pytest.fixture
def server(demo_folder):
    """A function that runs a server until the test's end."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(running_server(demo_folder, **options))


def in_background(function, *arguments, **named):
    """A thread that runs a function, and the list that its result comes into."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments, **named)))
    thread.start()
    return thread, results


def raw_request(server, body, receive_buffer=None, path="/v1/completions"):
    """A connection that has sent a request."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(WAIT)
    connection.connect((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


# ---- clients that leave


OF_EACH_PROTOCOL = [
    ("/v1/completions", {**LONG, "n": 1, "stream": True}),
    ("/v1/completions", {**LONG, "n": 1}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 400}}),
    ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 400}}),
]


@pytest.mark.parametrize(("path", "body"), OF_EACH_PROTOCOL)
def test_a_client_that_disconnects_frees_its_slots_within_a_step(server, path, body):
    step = 0.1  # seconds: the news takes some of them where the machine is busy
    running = server(step_seconds=step)
    connection = raw_request(running, body, path=path)
    running.wait_until(lambda: running.free_slots == 3 and len(running.steps) > 2)
    connection.close()
    closed = time.perf_counter()
    running.wait_until(lambda: running.free_slots == 4)
    after = [moment for moment in running.steps if moment > closed + step]  # time for the news to arrive
    assert len(after) <= 2, after
    running.wait_until(lambda: running.serving.admission.active == 0)
    running.wait_until(lambda: running.metric("neo_tf_disconnects_total") == 1)
    assert running.metric('neo_tf_sequences_total{finish_reason="cancelled"}') == 1


def test_a_client_that_waits_in_the_queue_may_leave_too(server):
    running = server(slots=1, step_seconds=SLOW)
    first = raw_request(running, LONG)
    running.wait_until(lambda: running.free_slots == 0)
    second = raw_request(running, {**LONG, "stream": True})
    running.wait_until(lambda: running.serving.admission.active == 2)
    second.close()
    running.wait_until(lambda: running.serving.admission.active == 1)
    assert running.free_slots == 0
    first.close()
    running.wait_until(lambda: running.free_slots == 1)


def test_openais_client_that_closes_its_stream_frees_the_slot(server):
    running = server(step_seconds=SLOW)
    with running.openai() as client:
        stream = client.completions.create(
            model="demo", stream=True, extra_body={"ignore_eos": True}, prompt="a", max_tokens=500
        )
        next(iter(stream))
        assert running.free_slots == 3
        stream.close()
        running.wait_until(lambda: running.free_slots == 4)


def test_connections_that_are_cut_at_any_moment_leave_nothing_behind(server):
    running = server(step_seconds=0.002)
    for number in range(40):
        connection = raw_request(running, {**LONG, "stream": number % 2 == 0, "n": 1 + number % 3, "temperature": 1})
        time.sleep(0.001 * (number % 13))
        connection.close()
    running.wait_until(lambda: running.serving.admission.active == 0 and running.free_slots == 4)
    assert running.serving.service.waiting == 0
    assert len(running.complete(prompt="a", max_tokens=2)["choices"]) == 1


# ---- limits


def test_a_full_queue_answers_429_and_everybody_else_gets_an_answer(server):
    running = server(slots=2, max_queue=6, step_seconds=0.005)

    def ask(number):
        return running.post("/v1/completions", prompt="import os", max_tokens=10, seed=number).status_code

    threads = [in_background(ask, number) for number in range(24)]
    for thread, _ in threads:
        thread.join(WAIT)
    statuses = [results[0] for _, results in threads]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 8
    assert running.metric('neo_tf_errors_total{code="queue_full"}') == statuses.count(429)
    running.wait_until(lambda: running.serving.admission.active == 0)


def test_429_says_when_to_come_again_and_more_than_ever_fit_is_400(server):
    running = server(slots=1, max_queue=1, step_seconds=SLOW)
    connections = [raw_request(running, LONG) for _ in range(2)]
    running.wait_until(lambda: running.serving.admission.active == 2)
    answer = running.post("/v1/completions", prompt="a")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "queue_full"
    answer = running.post("/v1/completions", prompt="a", n=3)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_many_sequences"
    for connection in connections:
        connection.close()


def test_a_large_body_is_413_also_where_its_length_is_not_announced(server):
    running = server(max_body=1000)
    with running.client() as client:
        large = json.dumps({"prompt": "x" * 2000}).encode()
        announced = client.post("/v1/completions", content=large)
        chunked = client.post("/v1/completions", content=iter([large[:900], large[900:]]))
    for answer in (announced, chunked):
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert running.post("/v1/completions", prompt="x" * 100, max_tokens=1).status_code == 200
    # Nobody waits for the rest of a body that is announced and too large.
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), WAIT) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


def test_a_body_that_does_not_come_is_408(server):
    running = server(body_timeout=0.2)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), WAIT) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b"408" in connection.recv(4096).split(b"\r\n")[0]


def test_a_client_that_reads_nothing_is_given_up(server):
    running = server(send_timeout=0.3, slots=8, send_buffer=4096)
    scored = {"prompt": [[7] * 480] * 8, "echo": True, "logprobs": 5, "max_tokens": 0, "stream": True}  # many bytes
    connection = raw_request(running, scored, receive_buffer=4096)
    running.wait_until(lambda: running.metric("neo_tf_disconnects_total") == 1)
    running.wait_until(lambda: running.serving.admission.active == 0)
    connection.close()


# ---- keys


def test_keys(server, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nsecret-1\n\n  secret-2  \n")
    keys = ApiKeys.read(file)
    assert not any("secret" in str(value) for value in vars(keys).values())
    running = server(keys=keys)
    with running.client() as client:
        for value in (None, "Bearer wrong", "secret-1", "Basic secret-1"):
            header = {} if value is None else {"authorization": value}
            answer = client.post("/v1/completions", json={"prompt": "a"}, headers=header)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/metrics", headers=header).status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert client.get("/").status_code == 200
        for path in ("/", "/health"):  # open paths may be read, and nothing else
            assert client.post(path, json={}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "bearer secret-2"}).status_code == 200
    with running.openai("secret-1") as client:
        assert client.completions.create(model="demo", prompt="a", max_tokens=1).choices
    with (
        running.openai("secret") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


# ---- ids and logs


def test_every_answer_and_its_line_in_the_log_have_an_id(server, caplog):
    running = server()
    with running.client() as client, caplog.at_level(logging.INFO, "neo_tf.access"):
        given = client.get("/health", headers={"x-request-id": "abc-1.2:3"})
        unsafe = client.get("/health", headers={"x-request-id": "a b"})
        missing = client.get("/nowhere?secret=1")
        text = client.post("/v1/completions", json={"prompt": "a secret prompt", "max_tokens": 1})
        # A line is written after its answer was sent.
        running.wait_until(lambda: sum(record.name == "neo_tf.access" for record in caplog.records) >= 4)
    assert given.headers["x-request-id"] == "abc-1.2:3"
    ids = [answer.headers["x-request-id"] for answer in (given, unsafe, missing, text)]
    assert len(set(ids)) == 4 and "a b" not in ids
    lines = [record.fields for record in caplog.records if record.name == "neo_tf.access"]
    assert [line["request_id"] for line in lines] == ids
    assert [line["status"] for line in lines] == [200, 200, 404, 200]
    assert missing.json()["error"]["type"] == "not_found_error"
    assert not any("secret" in str(vars(record)) for record in caplog.records)


def test_prompts_are_logged_where_that_is_asked_for(server, caplog):
    running = server(log_prompts=True)
    with caplog.at_level(logging.INFO, "neo_tf"):
        answer = running.post("/v1/completions", prompt="a secret prompt", max_tokens=1)
    (line,) = [record.fields for record in caplog.records if record.name == "neo_tf.prompts"]
    assert line == {"request_id": answer.headers["x-request-id"], "prompt": ["a secret prompt"]}


def test_metrics_count_tokens_and_times(server):
    running = server()
    for _ in range(3):
        running.complete(prompt="import os", max_tokens=5, ignore_eos=True, stream=False)
    tokens = len(running.serving.tokenizer.encode("import os"))
    assert running.metric("neo_tf_new_tokens_total") == 15
    assert running.metric("neo_tf_prompt_tokens_total") == 3 * tokens
    assert running.metric("neo_tf_first_token_seconds_count") == 3
    assert running.metric("neo_tf_inter_token_seconds_count") == 12
    assert running.metric("neo_tf_slots") == 4 and running.metric("neo_tf_slots_in_use") == 0
    assert running.metric('neo_tf_requests_total{path="/v1/completions",status="200"}') == 3
    for path in range(5):
        running.post(f"/random/{path}")
    assert running.metric('neo_tf_requests_total{path="other",status="404"}') == 5


# ---- the end


def test_draining_lets_running_requests_finish_and_refuses_new_ones(server):
    running = server(step_seconds=SLOW)
    thread, results = in_background(running.post, "/v1/completions", **{**LONG, "max_tokens": 60})
    running.wait_until(lambda: running.free_slots == 3)
    running.server.drain()
    refused = running.post("/v1/completions", prompt="a")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
    assert "retry-after" in refused.headers
    with running.client() as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
    thread.join(WAIT)
    assert results[0].status_code == 200 and results[0].json()["usage"]["completion_tokens"] == 60
    running.wait_until(lambda: running.server.should_exit or not running.server.servers[0].is_serving())


def test_what_runs_at_the_timeout_is_cut_and_its_clients_are_told(server):
    running = server(step_seconds=SLOW, shutdown_timeout=0.3)
    whole, whole_result = in_background(running.post, "/v1/completions", **LONG)
    streamed, streamed_result = in_background(running.post, "/v1/completions", **LONG, stream=True)
    running.wait_until(lambda: running.free_slots == 2)
    running.server.drain()
    for thread in (whole, streamed):
        thread.join(WAIT)
    assert whole_result[0].status_code == 503
    events = streamed_result[0].text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert events[-2] == "data: [DONE]"


def test_an_engine_that_breaks_answers_everybody_and_turns_health_to_503(server):
    running = server(slots=1, step_seconds=SLOW)
    asked = [
        in_background(running.post, "/v1/completions", **LONG, stream=stream) for stream in (False, True, False, True)
    ]
    running.wait_until(lambda: running.serving.admission.active == 4 and len(running.steps) > 3)

    def broken():
        raise SystemExit("gone")

    running.serving.pipeline.engine.step = broken
    for thread, _ in asked:
        thread.join(WAIT)
        assert not thread.is_alive()
    for _, (answer,) in asked:
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert '"code":"engine_stopped"' in answer.text
        else:
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_stopped"
    with running.client() as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 503
        assert "gone" in client.get("/health").text
        assert "neo_tf_engine_up 0.0" in client.get("/metrics").text
    assert running.post("/v1/completions", prompt="a").status_code == 503
    assert running.serving.admission.active == 0


def test_a_step_that_fails_is_500_for_its_requests_alone(server, monkeypatch):
    running = server()
    session = running.serving.pipeline.session
    decode = session.decode
    monkeypatch.setattr(session, "decode", lambda *arguments: 1 / 0)
    answer = running.post("/v1/completions", **LONG)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    monkeypatch.setattr(session, "decode", decode)
    assert running.post("/v1/completions", prompt="a", max_tokens=3).status_code == 200
    with running.client() as client:
        assert client.get("/health").status_code == 200


def test_the_service_notices_a_thread_that_ended_outside_a_step(server):
    running = server()

    def broken(ended):
        raise MemoryError("in between")

    running.serving.service._tell = broken
    with httpx.Client(base_url=running.url, timeout=WAIT) as client:
        assert client.post("/v1/completions", json=LONG).status_code == 503
        assert client.get("/health").status_code == 503

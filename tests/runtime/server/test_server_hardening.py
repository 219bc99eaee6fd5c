"""Requests that are made to do harm: each is answered, and the server and its other clients go on."""

import contextlib
import json
import logging
import re
import socket
import time

import pytest
from server_helpers import WAIT, running_server

from neo_tf.runtime.server.api_keys import ApiKeys
from neo_tf.runtime.server.logs import set_up_logging

GENERATES = ("/v1/completions", "/v1/chat/completions", "/generate", "/generate_stream", "/")


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder, chat_template="{{ messages[0]['content'] }}") as running:
        yield running


def raw(server, request):
    """The first bytes of an answer to bytes, in latin-1."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), WAIT) as connection:
        connection.sendall(request)
        return connection.recv(65536).decode("latin-1")


# ---- sizes


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "n": 10**9}),
        ("/v1/completions", {"prompt": "a", "best_of": 10**9}),
        ("/v1/completions", {"prompt": ["a"] * 100, "n": 250}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 10**9}),
        ("/generate", {"inputs": "a", "parameters": {"best_of": 10**9, "do_sample": True}}),
    ],
)
def test_more_sequences_than_ever_fit_are_refused_before_one_is_made(server, path, body):
    answer = server.post(path, **body)
    assert answer.status_code in (400, 422) and "this server holds at most 260 at once" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 3_000_000}),
        ("/v1/completions", {"prompt": ["x", "a" * 3_000_000]}),
        ("/v1/embeddings", {"input": "a" * 3_000_000}),
        ("/generate", {"inputs": "a" * 3_000_000}),
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(server, monkeypatch, path, body):
    encode = server.serving.tokenizer.encode

    def short(text, **options):
        assert len(text) < 100_000
        return encode(text, **options)

    monkeypatch.setattr(server.serving.tokenizer, "encode", short)
    answer = server.post(path, **body)
    assert answer.status_code in (400, 422) and "a text of 3000000 characters" in answer.text


def test_a_text_that_just_fits_is_served(server):
    longest = max(server.serving.tokenizer.get_vocab(), key=len)
    text = server.serving.tokenizer.convert_tokens_to_string([longest]) * 500
    assert len(server.serving.tokenizer.encode(text)) == 500
    assert server.complete(prompt=text, max_tokens=1)["usage"]["prompt_tokens"] == 500
    long = server.complete(prompt=text * 3, max_tokens=1, truncate_prompt_tokens=5)
    assert long["usage"]["prompt_tokens"] == 5


# ---- structured output


def chain(length, forward):
    """A schema of definitions, each of which refers to the next one."""
    parts = {f"d{number}": forward({"$ref": f"#/$defs/d{number + 1}"}) for number in range(length)}
    return {"$defs": {**parts, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def test_a_long_chain_of_definitions_does_not_end_the_process(server):
    # About 1000 of them filled the stack of an ordinary thread, and the process died.
    schema = chain(1500, lambda part: {"type": "object", "properties": {"a": part}, "required": ["a"]})
    answer = server.complete(prompt="x = ", max_tokens=3, guided_json=schema)
    assert answer["choices"][0]["text"][0] == "{"


def test_a_schema_of_too_many_parts_is_refused(server):
    schema = {"anyOf": [{"type": "integer"}] * 10_001}
    for field in (
        {"guided_json": schema},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    ):
        answer = server.post("/v1/completions", prompt="a", **field)
        assert answer.status_code == 400 and "more than 10000 schemas" in answer.text
        assert answer.json()["error"]["param"] == next(iter(field))


# ---- headers, ids and the log


def test_an_id_has_no_letters_beyond_ascii(server):
    answer = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xe9\xff\r\n\r\n")
    assert re.search(r"x-request-id: [0-9a-f]{32}\r\n", answer), answer


def test_headers_that_do_not_come_close_the_connection(server, monkeypatch):
    host, port = server.url.removeprefix("http://").split(":")
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:

        def connect():
            return stack.enter_context(socket.create_connection((host, int(port)), WAIT))

        used = connect()
        used.sendall(request)
        answer = b""
        while not answer.endswith(b"}"):  # headers and body may come apart
            answer += used.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        monkeypatch.setattr("neo_tf.runtime.server.header_timeout.HEADER_SECONDS", 1.0)
        connections = [used, connect(), connect()]
        for connection in connections[:2]:
            connection.sendall(request[:20])
        for connection in connections:
            assert connection.recv(4096) == b""  # the server has closed
    # What takes long after its headers is not closed.
    body = b'{"prompt": "a", "max_tokens": 2}'
    with socket.create_connection((host, int(port)), WAIT) as connection:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode())
        time.sleep(1.3)
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_an_upgrade_to_a_websocket_is_an_ordinary_request(server):
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    request += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert raw(server, request).startswith("HTTP/1.1 200")


@pytest.fixture
def log(monkeypatch):
    """A function that sends the server's log to a stream, in one of its forms; afterwards the log is as before."""
    names = ("neo_tf", "uvicorn")
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in map(logging.getLogger, names)]

    def send(stream, form):
        monkeypatch.setattr("sys.stderr", stream)
        set_up_logging(form)

    yield send
    for logger, handlers, level, propagates in before:
        logger.handlers = handlers
        logger.setLevel(level)
        logger.propagate = propagates


class Lines:
    """A stream of a log."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        """Nothing is held back."""


class Full:
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_client_sends_cannot_write_lines_of_the_log(server, log, form):
    stream = Lines()
    log(stream, form)
    raw(server, b"GET /%0aINFO%20forged%1b[31m%ed%a0%80%e2%80%ae HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_until(lambda: "forged" in stream.text)  # a line of the request before may come first
    *_, line = stream.text.splitlines()
    assert line.isascii() and line.isprintable() and "answered" in line and "forged" in line
    if form == "json":
        assert json.loads(line)["path"].startswith("/\nINFO forged\x1b")


@pytest.mark.parametrize("stream", [Full(), None])
def test_a_log_that_cannot_be_written_stops_no_answer(server, log, stream):
    log(stream, "text")
    assert server.complete(prompt="a", max_tokens=2)["choices"]
    assert server.post("/nowhere").status_code == 404


# ---- the schema says what is answered


def test_the_schema_says_how_each_path_answers(server):
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
        kind = client.get("/metrics").headers["content-type"]
    assert kind in paths["/metrics"]["get"]["responses"]["200"]["content"]
    for path in ("/v1/completions", "/v1/chat/completions", "/generate_stream", "/"):
        assert "text/event-stream" in paths[path]["post"]["responses"]["200"]["content"]

    def error(path):
        return paths[path]["post"]["responses"]["default"]["content"]["application/json"]["schema"]["properties"][
            "error"
        ]

    assert error("/generate")["type"] == "string" and error("/v1/completions")["type"] == "object"


def test_the_page_of_fields_loads_nothing(server):
    with server.client() as client:
        answer = client.get("/docs")
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?:|<script|<link|src=", answer.text)
    for path in GENERATES:
        assert f"<code>POST {path}</code>" in answer.text
    assert "<code>repetition_penalty</code>" in answer.text and "number, above 0" in answer.text
    assert "<code>top_n_tokens</code>" in answer.text  # a field of an object inside the body


# ---- keys


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\nsecond\n")
    keys = ApiKeys.read(file)
    assert keys.accepts("first") and keys.accepts("second") and not keys.accepts("\ufefffirst")

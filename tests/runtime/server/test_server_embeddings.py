"""/v1/embeddings, as openai's client and others ask for it; and what becomes of clients that leave or come too many."""

import base64
import contextlib
import json
import shutil
import threading

import httpx
import numpy as np
import pytest
from server_helpers import WAIT, running_server

from neo_tf.runtime.device.encoder import Encoder

TEXTS = ["import os", "def read(path):\n    return path.read_text()\n", "x"]
IDS = [[5, 6, 7, 8], [300]]


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.openai(max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(demo_folder):
    return Encoder(demo_folder)


@pytest.fixture
def own_server(demo_folder):
    """A function that runs a server of its own until the test's end."""
    with contextlib.ExitStack() as stack:
        yield lambda folder=demo_folder, **options: stack.enter_context(running_server(folder, **options))


def vectors(answer):
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


def ask(server, **body):
    answer = server.post("/v1/embeddings", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_openais_client_gets_the_mean_of_the_hidden_states(server, client, encoder):
    found = client.embeddings.create(model="demo", input=TEXTS)  # it asks for base64 by itself
    plain = client.embeddings.create(model="demo", input=TEXTS, encoding_format="float")
    ids = [server.serving.tokenizer.encode(text) for text in TEXTS]
    for number, token_ids in enumerate(ids):
        expected = encoder.hidden_states(token_ids).mean(axis=0)
        for answer in (found, plain):
            assert answer.data[number].index == number
            np.testing.assert_allclose(answer.data[number].embedding, expected, atol=1e-5)
        assert found.data[number].embedding == plain.data[number].embedding
    assert found.model == "demo" and found.object == "list" and found.data[0].object == "embedding"
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    last = client.embeddings.create(model="demo", input=TEXTS[1], extra_body={"pooling": "last", "normalize": True})
    (entry,) = last.data
    expected = encoder.hidden_states(ids[1])[-1]
    np.testing.assert_allclose(entry.embedding, expected / np.linalg.norm(expected), atol=1e-5)


def test_every_form_of_input(server, encoder):
    tokenizer = server.serving.tokenizer
    forms = {
        "a text": (TEXTS[1], [tokenizer.encode(TEXTS[1])]),
        "texts": (TEXTS, [tokenizer.encode(text) for text in TEXTS]),
        "ids": (IDS[0], IDS[:1]),
        "lists of ids": (IDS, IDS),
    }
    for given, ids in forms.values():
        answer = ask(server, input=given)
        expected = [encoder.hidden_states(one).mean(axis=0) for one in ids]
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)
        assert answer["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    packed = ask(server, input=IDS, encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), vectors(ask(server, input=IDS))[0])


def test_a_text_as_long_as_the_context(server, encoder):
    ids = [number % 2048 for number in range(7, 519)]
    np.testing.assert_allclose(
        vectors(ask(server, input=ids, pooling="last"))[0], encoder.hidden_states(ids)[-1], atol=1e-5
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("input", None, "null"),
        ("input", "", "text 0 has no tokens"),
        ("input", ["x", ""], "text 1 has no tokens"),
        ("input", [], "empty list"),
        ("input", [[1], []], "input must be"),
        ("input", [1, "x"], "input must be"),
        ("input", {"text": "x"}, "input must be"),
        ("input", [1, 2048], "token id 2048 at position 1 is outside the vocabulary of 2048"),
        ("input", [-1], "token id -1"),
        ("input", [10**30], "outside the vocabulary"),
        ("input", [1] * 513, "text 0 has 513 tokens, but the model's context has 512"),
        ("input", ["x", "x y " * 600], "text 1 has"),
        ("input", [[1]] * 2049, "at most 2048"),
        ("dimensions", 64, "dimensions is not served"),
        ("encoding_format", "int8", "encoding_format must be"),
        ("pooling", "none", "pooling must be"),
        ("pooling", ["mean"], "pooling must be"),
        ("normalize", 1, "normalize must be"),
        ("poling", "mean", "unknown field"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(server, field, value, said):
    answer = server.post("/v1/embeddings", **{"input": "x", field: value})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and said in error["message"], answer.text
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_a_missing_input_and_an_unknown_model(server):
    missing = server.post("/v1/embeddings", model="demo")
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "input"
    unknown = server.post("/v1/embeddings", model="text-embedding-3-small", input="x")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    long = server.post("/v1/embeddings", input=[1] * 513)
    assert long.json()["error"]["code"] == "context_length_exceeded"


def test_a_server_that_only_generates_loads_no_encoder(own_server):
    running = own_server()
    running.complete(prompt="import os", max_tokens=3)
    assert running.serving.embedder._encoder is None
    assert not running.serving.embedder._thread._threads
    ask(running, input="x")
    assert running.serving.embedder._encoder is not None


def test_a_folder_without_hidden_states_says_so_and_generates(own_server, demo_folder, tmp_path):
    folder = shutil.copytree(demo_folder, tmp_path / "older")
    (folder / "encoder.onnx").unlink()
    running = own_server(folder)
    answer = running.post("/v1/embeddings", input="x")
    error = answer.json()["error"]
    assert answer.status_code == 501 and error["code"] == "not_served" and "export it again" in error["message"]
    assert running.complete(prompt="import os", max_tokens=3)["usage"]["completion_tokens"] == 3
    assert running.serving.admission.active == 0


class HeldEncoder:
    """An encoder whose texts wait until they may go on."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.texts = []
        self.may_go = threading.Semaphore(0)

    def hidden_states(self, token_ids):
        self.texts.append(list(token_ids))
        assert self.may_go.acquire(timeout=WAIT)
        return self._encoder.hidden_states(token_ids)


def in_background(function, *arguments, **named):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments, **named)))
    thread.start()
    return thread, results


def test_a_client_that_leaves_gives_its_place_back_and_its_other_texts_are_not_computed(own_server, encoder):
    running = own_server()
    held = running.serving.embedder._encoder = HeldEncoder(encoder)
    with running.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"input": [[1]] * 50}, timeout=0.3)
    running.wait_until(lambda: running.serving.admission.active == 0)
    for _ in range(100):
        held.may_go.release()
    np.testing.assert_allclose(vectors(ask(running, input=[2])), [encoder.hidden_states([2])[0]], atol=1e-5)
    assert held.texts == [[1], [2]]
    assert running.metric("neo_tf_disconnects_total") == 1


def test_clients_take_turns_and_one_too_many_is_429(own_server, encoder):
    running = own_server(slots=1, max_queue=1)
    held = running.serving.embedder._encoder = HeldEncoder(encoder)
    first, answers = in_background(ask, running, input=[[1], [2], [3]])
    running.wait_until(lambda: len(held.texts) == 1)
    second, more = in_background(ask, running, input=[9])
    running.wait_until(lambda: running.serving.admission.active == 2)
    refused = running.post("/v1/embeddings", input="x")
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert running.post("/v1/completions", prompt="x").status_code == 429  # one queue for all
    for _ in range(4):
        held.may_go.release()
    first.join()
    second.join()
    assert held.texts == [[1], [9], [2], [3]]
    assert len(answers[0]["data"]) == 3 and len(more[0]["data"]) == 1
    assert running.serving.admission.active == 0


def test_decoding_goes_on_while_texts_are_embedded(own_server, encoder):
    running = own_server()
    held = running.serving.embedder._encoder = HeldEncoder(encoder)
    alone = running.complete(prompt="import os", max_tokens=20, temperature=0)
    thread, answers = in_background(ask, running, input=[1])
    running.wait_until(lambda: held.texts)
    beside = running.complete(prompt="import os", max_tokens=20, temperature=0)
    assert beside["choices"] == alone["choices"] and not answers
    held.may_go.release()
    thread.join()
    assert answers


def test_the_end_of_the_server_tells_those_who_wait(own_server, encoder):
    running = own_server(shutdown_timeout=0.1)
    held = running.serving.embedder._encoder = HeldEncoder(encoder)
    thread, answers = in_background(running.post, "/v1/embeddings", input=[[1], [2]])
    running.wait_until(lambda: held.texts)
    running.server.drain()
    assert running.post("/v1/embeddings", input="x").status_code == 503
    running.wait_until(lambda: running.serving.embedder._thread._shutdown)
    held.may_go.release()
    thread.join()
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "shutting_down"
    assert held.texts == [[1]]


def test_a_failing_encoder_is_500_for_its_request_alone(own_server, encoder):
    running = own_server()

    class Failing:
        def hidden_states(self, token_ids):
            raise RuntimeError("no\nmemory")

    running.serving.embedder._encoder = Failing()
    answer = running.post("/v1/embeddings", input="x")
    assert answer.status_code == 500 and "\n" not in json.loads(answer.text)["error"]["message"]
    running.serving.embedder._encoder = encoder
    assert len(ask(running, input="x")["data"]) == 1
    assert running.serving.admission.active == 0

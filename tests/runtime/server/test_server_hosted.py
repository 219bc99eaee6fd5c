"""The cards' hosted services: the pipeline's texts, keys, whose uploads they are, errors, tasks, clients that leave."""

import json
import os
import pickle
import socket

import httpx
import pytest
from hosted_helpers import npu_form, npz, post_json, run_pipeline, start_task, sync_predict, task_state, upload_data
from server_helpers import running_server

import neo_tf
from neo_tf.runtime.server.api_keys import ApiKeys
from neo_tf.runtime.server.hosted import npu_tasks
from neo_tf.runtime.server.hosted.npu_tasks import Task, Tasks
from neo_tf.runtime.server.uploads import Limits, Uploads

PROMPT = "def read_lines(path):"
OTHER = "import os"
SLOW = 0.02  # seconds of a step


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder, keys=ApiKeys(["ann", "bob"]), max_body=300_000) as running:
        yield running


@pytest.fixture(scope="module")
def slow(demo_folder):
    """A server without keys, with time to leave it."""
    with running_server(demo_folder, step_seconds=SLOW) as running:
        yield running


def of(running, token):
    return running.client(headers={"authorization": f"Bearer {token}"})


@pytest.fixture(scope="module")
def ann(server):
    with of(server, "ann") as client:
        yield client


@pytest.fixture(scope="module")
def bob(server):
    with of(server, "bob") as client:
        yield client


@pytest.fixture(scope="module")
def nobody(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def generator(demo_folder):
    return neo_tf.pipeline(model=demo_folder)


# ---- texts

ARGUMENTS = [
    {"seed": 5, "max_new_tokens": 12},  # drawn with the defaults of transformers' pipeline
    {"max_length": 30, "seed": 5, "temperature": 1.3, "top_k": 10, "top_p": 0.9},
    {"max_length": 30, "do_sample": False},
    {"response_length": 12, "remove_input": True, "seed": 3},
    {"num_return_sequences": 3, "max_new_tokens": 8, "seed": 1},
    {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": 8},
    {"num_beams": 2, "max_new_tokens": 8, "seed": 4},
    {"max_new_tokens": None, "top_k": None, "seed": 2},
    {"stop_strings": ["return", "\n"], "min_new_tokens": 3, "seed": 8, "no_repeat_ngram_size": 2},
    {"generation_config": {"max_new_tokens": 6, "do_sample": False}, "return_full_text": False},
    {"return_type": 1, "max_new_tokens": 6, "seed": 9, "use_cache": True, "pad_token_id": 0},
    {"return_tensors": True, "max_new_tokens": 6, "seed": 9},
    {"logprobs": 2, "max_new_tokens": 5, "seed": 6, "suppress_tokens": [5, 6], "bad_words_ids": [[7]]},
    {"guided_choice": ["yes", "no"], "seed": 6},
]


def as_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda arguments: "-".join(arguments))
def test_a_text_is_the_pipelines_through_every_door(ann, server, generator, arguments):
    alone = as_json(generator(PROMPT, **arguments))
    both = as_json(generator([PROMPT, OTHER], **arguments))
    assert sync_predict(ann, [PROMPT], **arguments).json() == {"state": "COMPLETE", "result": alone}
    assert sync_predict(ann, [PROMPT, OTHER], **arguments).json() == {"state": "COMPLETE", "result": both}
    for prompt, expected in ((PROMPT, alone), ([PROMPT, OTHER], both)):
        run = run_pipeline(ann, [prompt, arguments]).raise_for_status().json()
        assert (run["run_state"], run["result_preview"]) == ("complete", expected)
    task = start_task(ann, [PROMPT, OTHER], **arguments)
    server.wait_until(lambda: task_state(ann, task)["state"] != "PENDING")
    assert task_state(ann, task) == {"state": "COMPLETE", "taskType": "Predict", "progress": 1, "result": both}


def test_what_json_cannot_say_can_be_pickled(ann, generator):
    arguments = {"sequence_bias": {(5,): 4.0, (6, 7): -1.0}, "exponential_decay_length_penalty": (3, 1.5)}
    arguments |= {"max_new_tokens": 8, "seed": 1}
    run = run_pipeline(ann, [PROMPT, arguments]).json()
    assert run["result_preview"] == generator(PROMPT, **arguments)


def test_without_options_the_length_is_the_pipelines(ann, generator):
    assert sync_predict(ann, [OTHER], seed=3).json()["result"] == generator(OTHER, seed=3)
    for given in (OTHER, [OTHER, None]):
        (result,) = run_pipeline(ann, given).raise_for_status().json()["result_preview"]
        assert len(result["generated_text"]) > 100


def test_an_empty_prompt_begins_as_the_pipelines(ann, generator):
    expected = generator("", seed=3, max_new_tokens=9)
    assert sync_predict(ann, [""], seed=3, max_new_tokens=9).json()["result"] == expected
    assert run_pipeline(ann, ["", {"seed": 3, "max_new_tokens": 9}]).json()["result_preview"] == expected


def test_a_whole_number_may_be_of_any_size(ann):
    answer = sync_predict(ann, [PROMPT], frequency_penalty=10**30, presence_penalty=-(10**30), max_new_tokens=3)
    assert answer.json()["state"] == "COMPLETE"


def test_without_a_seed_each_text_is_another(ann):
    texts = {sync_predict(ann, [PROMPT], max_new_tokens=30).json()["result"][0]["generated_text"] for _ in range(3)}
    assert len(texts) == 3


def test_a_run_is_what_the_client_knows_as_one(ann):
    arguments = [PROMPT, {"max_new_tokens": 4, "seed": 1}]
    run = run_pipeline(ann, arguments).json()
    assert run["runnable"]["type"] == "pipeline" and run["runnable"]["id"] == "any"
    assert (run["error"], run["error_info"], run["blocking"]) == (None, None, False)
    assert run["created_at"] <= run["ended_at"]
    found = ann.get(f"/v2/data/{run['data']['id']}", params={"return_data": True}).json()
    assert pickle.loads(bytes.fromhex(found["hex_file"]["data"])) == arguments
    found = ann.get(f"/v2/files/{run['result']['id']}").json()
    assert pickle.loads(bytes.fromhex(found["data"])) == run["result_preview"]
    assert found["file_size"] == len(found["data"]) // 2


def test_a_filter_judges_these_texts_too(demo_folder):
    with running_server(demo_folder, judge=lambda text, prompt: "judged") as running, running.client() as client:
        for arguments in ({"max_new_tokens": 4}, {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2}):
            for prompt in (PROMPT, ""):
                expected = [{"generated_text": f"{prompt}judged"}] * arguments.get("num_return_sequences", 1)
                assert sync_predict(client, [prompt], **arguments).json()["result"] == expected
                assert run_pipeline(client, [prompt, arguments]).json()["result_preview"] == expected


# ---- keys, and whose uploads they are


def of_every_route(client):
    """(what a route does, its answer) of every route that needs a key."""
    yield "sync", sync_predict(client, [PROMPT], max_new_tokens=2)
    yield "hash", client.get("/npu/Hash", params={"hash": "0"})
    yield "upload", client.post("/npu/UploadData", **npu_form(npz(["a"])))
    yield "predict", client.post("/npu/Predict", json={"dataId": "0"})
    yield "status", client.get("/npu/status/0")
    yield "me", client.get("/v2/users/me")
    yield "file", client.post("/v2/files/", files={"file": ("name", "00")})
    yield "data", client.post("/v2/data", json={"id": "0"})
    yield "run", client.post("/v2/runs", json={"pipeline_id": "0", "data_id": "0"})
    yield "files", client.get("/v2/files/0")
    yield "get data", client.get("/v2/data/0")


def told(answer):
    """The message of an error, in the form of the client that it is for."""
    body = answer.json()
    if answer.url.path.startswith("/v2"):
        assert body.keys() == {"detail"} and body["detail"].keys() == {"message"}
        return body["detail"]["message"]
    assert body.keys() == {"error", "code"}
    return body["error"]


def test_every_route_needs_a_key_and_says_so_in_its_clients_form(server, nobody):
    with of(server, "wrong") as wrong:
        for client, why in ((nobody, "is needed"), (wrong, "is wrong")):
            for route, answer in of_every_route(client):
                assert answer.status_code == 401, route
                assert why in told(answer), route


def test_npus_token_is_checked_in_the_body(nobody, bob):
    empty = {"authorization": "Bearer"}  # the client may send it empty
    answer = nobody.post("/npu/Token", json={"token": "ann", "project_name": "Mine"}, headers=empty)
    assert (answer.status_code, answer.json()) == (200, "Mine")
    for token, why in (({"token": "wrong"}, "is wrong"), ({"token": ""}, "is needed"), ({}, "is needed")):
        answer = bob.post("/npu/Token", json={**token, "project_name": "Mine"})  # a right key in the header is another
        assert answer.status_code == 401 and why in told(answer)
    assert nobody.post("/npu/Token", json={"token": 5}).status_code == 400
    assert nobody.get("/npu/Token").status_code == 405


def test_while_the_server_ends_every_route_says_so(server, ann, monkeypatch):
    monkeypatch.setattr(server.serving.admission, "draining", True)
    for route, answer in of_every_route(ann):
        assert answer.status_code == 503 and "shutting down" in told(answer), route
    assert ann.post("/npu/Token", json={"token": "ann"}).status_code == 503


def check_that_it_is_another_ones(one, other):
    """What one token has uploaded and begun does not exist for the other."""
    arguments = {"max_new_tokens": 4, "seed": 1}
    data = one.post("/npu/UploadData", **npu_form(npz([PROMPT]))).json()["id"]
    task = one.post("/npu/Predict", json={"data_name": data, "input_kwargs": arguments}).text
    run = run_pipeline(one, [PROMPT, arguments]).json()
    file, result = run["data"]["hex_file"]["id"], run["result"]["id"]
    routes = [
        ("GET", f"/npu/status/{task}", None),
        ("POST", "/npu/Predict", {"dataId": data, "input_kwargs": arguments}),
        ("GET", f"/v2/files/{file}", None),
        ("GET", f"/v2/files/{result}", None),
        ("GET", f"/v2/data/{run['data']['id']}", None),
        ("POST", "/v2/data", {"id": file}),
        ("POST", "/v2/runs", {"pipeline_id": "x", "data_id": run["data"]["id"]}),
    ]
    for method, path, body in routes:
        assert one.request(method, path, json=body).status_code == 200, path
        answer = other.request(method, path, json=body)
        assert answer.status_code == 404, path
        assert "there is no" in told(answer)


def test_uploads_and_tasks_belong_to_their_token_with_keys_and_without(ann, bob, slow):
    check_that_it_is_another_ones(ann, bob)
    with of(slow, "one") as one, of(slow, "other") as other, slow.client() as nobody:
        check_that_it_is_another_ones(one, other)
        check_that_it_is_another_ones(one, nobody)


def test_an_id_of_one_kind_is_no_id_of_another(ann):
    data = ann.post("/npu/UploadData", **npu_form(npz([PROMPT]))).json()["id"]
    assert ann.get(f"/v2/files/{data}").status_code == 404
    assert ann.post("/v2/runs", json={"pipeline_id": "x", "data_id": data}).status_code == 404
    assert ann.post("/npu/Predict", json={"dataId": upload_data(ann, pickle.dumps(["a"]))}).status_code == 404


def test_data_that_are_here_are_found_by_what_they_are(ann, bob):
    import hashlib

    data = npz(["found by its hash"])
    digest = hashlib.md5(data).hexdigest()
    assert ann.get("/npu/Hash", params={"hash": digest}).status_code == 204  # the client takes an error for its end
    name = ann.post("/npu/UploadData", **npu_form(data, hash="another")).json()["id"]
    found = ann.get("/npu/Hash", params={"hash": digest, "project": "Default"})
    assert (found.status_code, found.json()["id"]) == (200, name)
    assert bob.get("/npu/Hash", params={"hash": digest}).status_code == 204
    assert ann.get("/npu/Hash", params={"hash": "another"}).status_code == 204


# ---- what is refused


WRONG = [
    ({"nonsense": 1}, "unknown argument 'nonsense'"),
    ({"temperature": -1}, "temperature must be"),
    ({"max_new_tokens": "5"}, "max_new_tokens must be a whole number"),
    ({"max_new_tokens": 100_000}, "context"),
    ({"response_length": 0}, "response_length must be at least 1"),
    ({"response_length": 5, "max_new_tokens": 5}, "response_length is an old name"),
    ({"remove_input": "no"}, "remove_input must be"),
    ({"eos_token_id": 10**6}, "outside the vocabulary"),
    ({"bad_words_ids": [[1], [-5]]}, "outside the vocabulary"),
    ({"forced_bos_token_id": True}, "forced_bos_token_id must be a token id"),
    ({"eos_token_id": [False]}, "eos_token_id must be"),
    ({"prefix": "\ud800"}, "UTF-8"),
    ({"num_return_sequences": 10**9}, "1000000000 sequences"),
    ({"num_return_sequences": 2, "do_sample": False}, "num_return_sequences needs"),
    ({"logprobs": 50}, "logprobs must be at most 5"),
    ({"output_scores": True}, "output_scores is for calls from Python"),
    ({"generation_config": {"output_logits": True}}, "output_logits is for calls from Python"),
    ({"streamer": "x"}, "streamer is for calls from Python"),
    ({"logits_processor": ["x"]}, "logits_processor is for calls from Python"),
    ({"custom_generate": "somebody/code"}, "custom_generate is not served"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"generation_config": 5}, "generation_config must be"),
]


@pytest.mark.parametrize(("arguments", "why"), WRONG, ids=[why for _, why in WRONG])
def test_an_argument_that_cannot_be_served_is_named(ann, arguments, why):
    answer = sync_predict(ann, [PROMPT], **arguments)
    assert answer.status_code == 200 and answer.json()["state"] == "FAILURE"  # the client raises it with its reason
    assert why in answer.json()["result"]
    answer = run_pipeline(ann, [PROMPT, arguments])
    assert answer.status_code == 400 and why in told(answer)
    data = ann.post("/npu/UploadData", **npu_form(npz([PROMPT]))).json()["id"]
    answer = post_json(ann, "/npu/Predict", {"dataId": data, "input_kwargs": arguments})
    assert answer.status_code == 400 and why in told(answer)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "must be [prompt]"),
        ([PROMPT, {}, {}], "must be [prompt]"),
        ({"prompt": PROMPT}, "must be [prompt]"),
        ([5], "a prompt must be a text, not int"),
        ([[PROMPT, 5]], "a prompt must be a text, not int"),
        ([[]], "there is no prompt"),
        ([PROMPT, ["max_length", 5]], "must be a dict of arguments, not list"),
        ([PROMPT, {5: 5}], "names must be texts, not int"),
        (["\ud800"], "UTF-8"),
        ([b"bytes"], "holds bytes"),
        ([os.system], "refused, and nothing is run"),
        (b"\x80\x04]", "damaged"),
    ],
)
def test_arguments_in_another_form_are_refused(ann, given, why):
    answer = run_pipeline(ann, given)
    assert answer.status_code == 400 and why in told(answer)


def test_a_file_that_is_no_text_of_hexadecimal_digits_is_refused(ann):
    for text in (b"0", b"zz", b"00 00", b"\xff\xff", "ü".encode()):
        file = ann.post("/v2/files/", files={"file": ("name", text)}).raise_for_status().json()
        data = ann.post("/v2/data", json=file).raise_for_status().json()["id"]
        answer = ann.post("/v2/runs", json={"pipeline_id": "x", "data_id": data})
        assert answer.status_code == 400 and "hexadecimal" in told(answer)


def test_a_pickle_that_names_anything_runs_nothing(ann, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in (0, 2, 4, 5):
        for value in (Runs(), [PROMPT, {"seed": Runs()}]):
            answer = run_pipeline(ann, pickle.dumps(value, protocol))
            assert answer.status_code == 400 and "pickle" in told(answer)
    assert not (tmp_path / "ran").exists()


def test_data_that_are_no_texts_are_refused(ann):
    for route, fields in (("/npu/SyncPredict", {"input_kwargs": {}}), ("/npu/UploadData", {})):
        answer = ann.post(route, **npu_form(b"no npz", **fields))
        reason = answer.json().get("result") or answer.json()["error"]
        assert "no .npz file" in reason
        assert answer.status_code == (200 if "Sync" in route else 400)


def test_forms_and_bodies_that_are_none_are_refused(ann):
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    bodies = [
        {"json": {}},
        {"content": b"hello", "headers": boundary},
        {"content": b"", "headers": {"content-type": "multipart/form-data"}},
        {"content": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', "headers": boundary},
        {"files": [("file", ("a", b"00")), ("file", ("b", b"00"))]},
        {"files": [(f"file{number}", ("a", b"00")) for number in range(20)]},
        {"files": {"other": ("a", b"00")}},
        {"content": b"--b\r\n" + b"x" * 9000 + b": y\r\n\r\nx\r\n--b--\r\n", "headers": boundary},
    ]
    for path in ("/npu/SyncPredict", "/npu/UploadData", "/v2/files/"):
        for number, body in enumerate(bodies):
            answer = ann.post(path, **body)
            assert answer.status_code == 400 and told(answer), (path, number)
    for content in (b"{", b"[]", b'{"input_kwargs": 5}', b'{"input_kwargs": {}, "nonsense": 1}', b'{"scripts": ["x"]}'):
        answer = ann.post("/npu/SyncPredict", files={"file": ("a", npz(["a"])), "json": (None, content)})
        assert answer.status_code == 400 and told(answer), content
    for body in (
        {"dataId": "0", "nonsense": 1},
        {"dataId": "0", "data_start": 1},
        {},
        {"dataId": "0", "scripts": ["x"]},
    ):
        answer = ann.post("/npu/Predict", json=body)
        assert answer.status_code == 400 and told(answer), body
    assert "UTF-8" in told(post_json(ann, "/npu/Token", {"token": "ann", "project_name": "\ud800"}))
    for body in (
        {},
        {"pipeline_id": "x"},
        {"pipeline_id": None, "data_id": "0"},
        {"pipeline_id": "\ud800", "data_id": "0"},
    ):
        answer = post_json(ann, "/v2/runs", body)
        assert answer.status_code == 400 and told(answer), body
    for body in ({"function_id": "x", "data_id": "x"}, {"pipeline_id": "x", "data_id": "x", "data": ["a"]}):
        answer = ann.post("/v2/runs", json=body)
        assert answer.status_code == 400 and told(answer), body
    assert told(ann.post("/v2/data", json=[])) and told(ann.get("/npu/Hash"))


def test_a_body_that_is_too_large_is_answered_in_the_clients_form(ann):
    large = "ab" * 200_000
    for answer in (
        ann.post("/v2/files/", files={"file": ("name", large)}),
        ann.post("/npu/UploadData", files={"file": ("name", large)}),
    ):
        assert answer.status_code == 413 and "300000 bytes" in told(answer)


def test_paths_that_are_not_there_are_answered_in_the_clients_form(ann):
    for path in ("/npu/Train", "/npu/Export", "/v2/pipelines", "/v2/runs/1/2"):
        answer = ann.get(path)
        assert answer.status_code == 404 and told(answer)


def test_the_schema_describes_the_routes(ann):
    paths = ann.get("/openapi.json").json()["paths"]
    assert {"200", "204"} <= paths["/npu/Hash"]["get"]["responses"].keys()
    form = paths["/npu/SyncPredict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "json"]
    for path, key in (("/npu/Predict", "error"), ("/v2/runs", "detail"), ("/v1/completions", "error")):
        answers = paths[path]["post"]["responses"]
        assert "422" not in answers
        properties = answers["default"]["content"]["application/json"]["schema"]["properties"]
        assert next(iter(properties)) == key
    assert paths["/v2/files/"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == [
        "file"
    ]


# ---- tasks


def test_a_task_tells_how_far_it_is_and_holds_its_result_back_until_it_is_asked_for(slow):
    with slow.client() as client:
        task = start_task(client, [PROMPT], max_new_tokens=60, eos_token_id=[])
        seen = []
        while not seen or seen[-1]["state"] == "PENDING":
            answer = client.get(f"/npu/status/{task}", params={"include_result": False})
            seen.append(answer.raise_for_status().json())
        progress = [each["progress"] for each in seen]
        assert progress == sorted(progress) and progress[-1] == 1
        assert any(0.02 < share < 0.98 for share in progress)
        assert all(each.keys() == {"state", "taskType", "progress"} for each in seen)
        assert seen[-1]["state"] == "COMPLETE"
        (result,) = task_state(client, task)["result"]
        assert result["generated_text"].startswith(PROMPT)


def test_a_task_that_fails_says_why(server, ann, monkeypatch):
    def fail(*given):
        raise ValueError("this broke")

    monkeypatch.setattr(server.serving.pipeline, "results", fail)
    task = start_task(ann, [PROMPT], max_new_tokens=2)
    server.wait_until(lambda: task_state(ann, task)["state"] != "PENDING")
    found = task_state(ann, task)
    assert (found["state"], found["result"]) == ("FAILURE", "ValueError: this broke")


def test_a_task_that_nobody_asks_for_ends_and_frees_its_slots(slow, monkeypatch):
    monkeypatch.setattr(slow.serving.part(Tasks), "_kept", Uploads("task", Limits(seconds=0.5), Task.cancel))
    begin = len(slow.steps)
    with slow.client() as client:
        task = start_task(client, [PROMPT], max_new_tokens=400, eos_token_id=[], num_return_sequences=2)
        slow.wait_until(lambda: not slow.serving.part(Tasks)._running)
        assert len(slow.steps) - begin < 350
        assert client.get(f"/npu/status/{task}").status_code == 404
    slow.wait_until(lambda: slow.free_slots == 4 and slow.serving.admission.active == 0)


def test_a_token_has_so_many_tasks_that_run(slow, monkeypatch):
    monkeypatch.setattr(npu_tasks, "_MOST_RUNNING", 2)
    with of(slow, "one") as one, of(slow, "other") as other:
        tasks = [start_task(one, [PROMPT], max_new_tokens=400, eos_token_id=[]) for _ in range(2)]
        with pytest.raises(httpx.HTTPStatusError) as caught:
            start_task(one, [PROMPT], max_new_tokens=400)
        answer = caught.value.response
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 and "2 tasks" in told(answer)
        start_task(other, [PROMPT], max_new_tokens=2)
    for name in tasks:
        slow.serving.part(Tasks)._kept._entries[name].value.cancel()
    slow.wait_until(lambda: slow.serving.admission.active == 0)


# ---- clients that leave


@pytest.mark.parametrize("service", ["npu", "pipeline-ai"])
def test_a_client_that_disconnects_frees_its_slots(slow, service):
    with slow.client() as client:
        gone = slow.metric("neo_tf_disconnects_total")
        long = {"max_new_tokens": 400, "eos_token_id": []}
        if service == "npu":
            request = {"url": "/npu/SyncPredict", **npu_form(npz([PROMPT]), input_kwargs=long)}
        else:
            data = upload_data(client, pickle.dumps([PROMPT, long]))
            request = {"url": "/v2/runs", "json": {"pipeline_id": "x", "data_id": data}}
        begin = len(slow.steps)
        with pytest.raises(httpx.ReadTimeout):
            client.post(**request, timeout=10 * SLOW)
        slow.wait_until(lambda: slow.metric("neo_tf_disconnects_total") == gone + 1)
    slow.wait_until(lambda: slow.free_slots == 4 and slow.serving.admission.active == 0)
    assert len(slow.steps) - begin < 350


def test_a_client_that_leaves_before_its_form_is_whole_is_no_error_of_the_server(slow):
    gone = slow.metric("neo_tf_disconnects_total")
    host, port = slow.url.removeprefix("http://").split(":")
    for path in ("/npu/UploadData", "/v2/files/"):
        with socket.create_connection((host, int(port))) as connection:
            head = "Host: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000"
            connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n--b\r\n".encode())
    slow.wait_until(lambda: slow.metric("neo_tf_disconnects_total") == gone + 2)

"""The server on Ray Serve, and a job on a Ray cluster: the same texts as without Ray, whatever ends on the way.

`make peers` installs Ray in an environment of its own. One cluster serves all tests.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from conftest import run_cli
from peer_helpers import peer

from neo_tf.errors import EngineError
from neo_tf.runtime.server.ray import Replica, ReplicaArguments, load
from neo_tf.text_generation import pipeline

ROOT = Path(__file__).parents[3]
RAY = ROOT / ".peers/ray"
MARK = uuid.uuid4().hex  # in the environment of all processes of the cluster
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": MARK}
WAIT = 150  # seconds, at most: a hang must fail, and Ray is slow to start on a busy machine
LONG = {"prompt": "def", "max_tokens": 500, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def cluster(demo_folder):
    """{"url": that of the server, with one slot and no queue, "address": the cluster's}."""
    peer("ray")
    arguments = json.dumps({"model": str(demo_folder), "model_name": "demo", "slots": 1, "max_queue": 0})
    environment = os.environ | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    child = subprocess.Popen(
        [RAY / "bin/python", ROOT / "tests/ray_cluster.py", arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    line = child.stdout.readline()
    if not line:
        pytest.fail(child.communicate()[1][-3000:])
    yield json.loads(line)
    child.communicate("", timeout=WAIT)


@pytest.fixture
def client(cluster):
    with httpx.Client(base_url=cluster["url"], timeout=WAIT) as client:
        yield client


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def wait_until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


# ---- a replica, without Ray


def test_a_broken_engine_fails_the_health_check():
    replica = object.__new__(Replica)
    replica._serving = SimpleNamespace(service=SimpleNamespace(failure=None))
    asyncio.run(replica.check_health())
    replica._serving.service.failure = "the engine stopped: no memory"
    with pytest.raises(EngineError, match="no memory"):
        asyncio.run(replica.check_health())


def test_arguments_are_those_of_serve(demo_folder, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "template").write_text("{{ messages[0].content }}")
    arguments = ReplicaArguments(
        model=str(demo_folder),
        model_name="a",
        alias=["b"],
        slots=3,
        max_queue=5,
        max_body="2kB",
        cache_memory="40MB",
        api_keys=str(tmp_path / "keys"),
        chat_template=str(tmp_path / "template"),
        max_logprobs=9,
    )
    serving = load(arguments)
    try:
        options, engine = serving.options, serving.pipeline.engine
        assert options.names == ("a", "b") and options.max_body == 2000 and options.max_logprobs == 9
        assert options.keys.accepts("secret") and not options.keys.accepts("other")
        assert options.chat_template == "{{ messages[0].content }}"
        assert serving.admission.limit == 8 and engine.slots.limit == 40_000_000 and engine.slots.free == 3
    finally:
        serving.close()
    for wrong in ({"slot": 3}, {"slots": 0}, {"device": "cuda:1"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReplicaArguments(model="m", **wrong)


# ---- the server


def test_a_text_is_the_pipelines(cluster, demo_folder):
    generator = pipeline("text-generation", model=demo_folder, do_sample=True, temperature=0.9, top_k=0)
    (expected,) = generator("def read", max_new_tokens=30, seed=5, return_full_text=False)
    with openai.OpenAI(base_url=f"{cluster['url']}/v1", api_key="none") as client:
        options = {"model": "demo", "prompt": "def read", "max_tokens": 30, "temperature": 0.9, "seed": 5}
        whole = client.completions.create(**options)
        assert whole.choices[0].text == expected["generated_text"]
        assert re.fullmatch(r"[\w-]+", whole._request_id)  # once, though Ray's proxy writes one of its own
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
        assert len(pieces) > 5 and "".join(pieces) == expected["generated_text"]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(**options | {"temperature": -1})


def test_a_stream_comes_as_it_is_written_and_others_are_told_to_wait(client):
    with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["finish_reason"] is None
        # It still runs, in the only slot: the app's own refusal comes through the proxy.
        refused = client.post("/v1/completions", json=LONG)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert client.get("/health").json() == {"status": "ok"}
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_disconnects_frees_its_slot(cluster, client, streams):
    gone = 'neo_tf_requests_total{path="/v1/completions",status="499"}'
    before, tokens = metric(client, gone), metric(client, "neo_tf_new_tokens_total")
    host, port = cluster["url"].removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": streams}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: metric(client, "neo_tf_slots_in_use"))
    wait_until(lambda: metric(client, gone) == before + 1)
    wait_until(lambda: not metric(client, "neo_tf_slots_in_use"))
    assert metric(client, "neo_tf_new_tokens_total") - tokens < LONG["max_tokens"]
    assert client.post("/v1/completions", json=LONG | {"max_tokens": 1}).status_code == 200


# ---- a job


def start_job(cluster, folder, *arguments):
    command = [RAY / "bin/neo-tf", "generate", folder, *arguments, "--ray", "--threads", 1, "--ray-workers", 2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | TOKEN | {"RAY_ADDRESS": cluster["address"]}
    return subprocess.Popen([*map(str, command)], env=environment, **pipes)


def worker_processes():
    """The ids of the processes of this cluster that run lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not process.joinpath("cmdline").read_bytes().startswith(b"ray::RayWorker"):
                continue
            # Ray writes a worker's title over its environment; that of its parent is still there.
            parent = re.search(r"PPid:\s*(\d+)", process.joinpath("status").read_text())[1]
            if MARK.encode() in Path("/proc", parent, "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def test_a_job_that_loses_its_workers_writes_the_same_file(cluster, demo_folder, tmp_path, monkeypatch, capsys):
    prompts, plain, output = tmp_path / "p.jsonl", tmp_path / "plain.jsonl", tmp_path / "o.jsonl"
    with prompts.open("w") as file:
        for number in range(30):  # long enough to be running still when the worker is killed
            line = {"prompt": "def é"[: 1 + number % 5], "id": f"é{number}", "max_new_tokens": 200 + 7 * number}
            if number % 7 == 3:
                line |= {"num_return_sequences": 2, "prompt": [5, number]}
            if number == 11:
                line = {"prompt": "x", "id": 4, "topk": 1}
            file.write(json.dumps(line) + "\n")
    options = ("--input", prompts, "--batch-size", 2, "--seed", 7, "--do-sample", "--skip-errors")
    assert run_cli(monkeypatch, capsys, "generate", demo_folder, *options, "--output", plain)[0] == 1
    job = start_job(cluster, demo_folder, *options, "--output", output)
    partial = tmp_path / "o.jsonl.partial"
    wait_until(lambda: job.poll() is not None or (partial.exists() and partial.read_bytes().count(b"\n") > 2))
    assert job.poll() is None, job.communicate()[1]
    for process in worker_processes():  # one of them may have no line yet
        os.kill(process, signal.SIGKILL)
    out, err = job.communicate(timeout=WAIT)
    assert (job.returncode, out) == (1, "")
    assert "a worker on" in err and "was lost" in err and "1 of 30 prompts could not be served" in err
    assert output.read_bytes() == plain.read_bytes() and not partial.exists()

"""`make ray-nodes`: loses nodes of a Ray cluster of three on loopback, during a job and under traffic.

It shows that no result of the job is lost or comes twice, that the file is byte for byte that of a job without Ray,
and that the service goes on answering. It takes a few minutes, and runs in the environment that has Ray.
"""

import argparse
import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
# A node that is gone is missed after seconds, not half a minute.
os.environ |= {"RAY_health_check_period_ms": "2000", "RAY_health_check_failure_threshold": "4"}
os.environ.pop("RAY_ADDRESS", None)

import ray
from ray import serve
from ray.cluster_utils import Cluster

from neo_tf.runtime.server.ray import ReplicaArguments, app

LINES = 200
COMMAND = [sys.executable, "-m", "neo_tf", "generate"]


def say(*words):
    """Prints a line at once."""
    print(*words, flush=True)


def write_prompts(path):
    """Lines of all lengths, with ids and seeds that tell them apart."""
    with path.open("w") as file:
        for number in range(LINES):
            line = {"prompt": [5, number % 200, 7], "id": f"q{number}", "max_new_tokens": 20 + 37 * number % 400}
            file.write(json.dumps(line) + "\n")


def lose_a_node_in_a_job(cluster, folder, scratch):
    """Runs a job on two nodes, kills one of them in its middle, and compares the results with those without Ray."""
    prompts, plain, output = scratch / "prompts.jsonl", scratch / "plain.jsonl", scratch / "output.jsonl"
    write_prompts(prompts)
    options = ["--input", prompts, "--do-sample", "--seed", 7, "--batch-size", 4, "--threads", 1]
    subprocess.run(list(map(str, [*COMMAND, folder, *options, "--output", plain])), check=True)
    node = cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=1)
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    command = [*COMMAND, folder, *options, "--output", output, "--ray", "--ray-workers", 2]
    begun = time.monotonic()
    job = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    partial = Path(f"{output}.partial")
    while job.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") > LINES // 4):
        time.sleep(0.02)
    assert job.poll() is None, job.communicate()[1]
    done = partial.read_bytes().count(b"\n") - 1
    cluster.remove_node(node, allow_graceful=False)  # kills its processes
    _, told = job.communicate(timeout=300)
    assert job.returncode == 0, told
    assert "was lost" in told, told
    indices = [json.loads(line)["index"] for line in output.open()]
    assert indices == list(range(LINES)), "a result is missing or comes twice"
    assert output.read_bytes() == plain.read_bytes(), "the results differ from those without Ray"
    say(f"job: {LINES} lines on two nodes; one killed after {done} results; {told.strip()}")
    say(f"job: {time.monotonic() - begun:.0f} s in all; the file is byte for byte that of the job without Ray")
    cluster.remove_node(other)


def lose_a_node_under_traffic(cluster, folder, seconds=25):
    """Two replicas on two nodes, four clients; one node is killed. Counts what the clients see."""
    first, second = (cluster.add_node(num_cpus=1) for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(ReplicaArguments(model=str(folder), slots=4, num_replicas=2, shutdown_timeout=5)))
    body = json.dumps({"prompt": "def read", "max_tokens": 60, "temperature": 0})
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException) as error:
                status, text = type(error).__name__, b""
            finally:
                connection.close()
            told = json.loads(text)["choices"][0]["text"] if status == 200 else None
            answers.append((time.monotonic(), status, told))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(5)
    killed = time.monotonic()
    cluster.remove_node(second, allow_graceful=False)
    time.sleep(seconds)
    stop.set()
    for client in clients:
        client.join()
    good = [answer for answer in answers if answer[1] == 200]
    bad = [answer for answer in answers if answer[1] != 200]
    texts = {text for _, _, text in good}
    assert len(texts) == 1, texts
    last_bad = max((moment - killed for moment, _, _ in bad), default=0.0)
    after = [moment for moment, _, _ in good if moment > killed]
    assert len(after) > 20 and after[-1] - killed > seconds - 5, "the service did not answer"
    gaps = [later - earlier for earlier, later in zip([killed, *after], after, strict=False)]
    statuses = sorted({str(status) for _, status, _ in bad})
    say(f"traffic: {len(good)} answers with the same text, {len(good) - len(after)} before the node was killed")
    say(f"traffic: {len(bad)} requests failed {statuses}, the last one {last_bad:.1f} s after the kill")
    say(f"traffic: the longest time without an answer was {max(gaps):.1f} s")
    serve.shutdown()
    cluster.remove_node(first)


def main():
    """Runs both on one cluster, whose first node has no CPU for workers or replicas."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an ONNX folder")
    folder = parser.parse_args().folder.resolve()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        stack.callback(cluster.shutdown)
        stack.callback(ray.shutdown)
        lose_a_node_in_a_job(cluster, folder, Path(scratch))
        lose_a_node_under_traffic(cluster, folder)


if __name__ == "__main__":
    main()

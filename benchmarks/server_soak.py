"""Cuts connections to a real server at random moments, and checks memory, slots and file descriptors.

    python benchmarks/server_soak.py MODEL --connections 10000

MODEL is an ONNX folder; a small one will do. The server is a process of its own. Fails if its memory grew by more than
--tolerance after the first fifth, if a slot is not free at the end, if the queue is not empty, if file descriptors
stay open, if a text is not the same as before, or if one of 200 clients at once gets neither an answer nor a 429.
"""

import argparse
import concurrent.futures
import json
import random
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SLOTS = 8
QUEUE = 32
CLIENTS = 200  # at once, on a queue of 32
_PATIENCE = 60  # seconds for an answer, and for the server to come to rest
_PATHS = ("/v1/completions", "/generate", "/generate_stream", "/v1/embeddings", "/tokenize", "/metrics")
_PROMPT = {"prompt": "def read_lines(path):", "max_tokens": 24, "temperature": 0.9, "seed": 11}


class Server:
    """`neo-tf serve` in a process of its own, while the block runs.

    Args:
        folder: The ONNX folder.
    """

    def __init__(self, folder):
        command = [sys.executable, "-m", "neo_tf.cli", "serve", folder, "--port", "0", "--threads", "1"]
        command += ["--slots", SLOTS, "--max-queue", QUEUE]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(_PATIENCE)

    @property
    def resident_bytes(self):
        """The resident memory of its process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    @property
    def descriptors(self):
        """The number of its open files and connections."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def ask(self, path, body=None):
        """(status, body) of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def text(self):
        """A text that is always the same."""
        status, body = self.ask("/v1/completions", _PROMPT)
        assert status == 200, body
        return json.loads(body)["choices"][0]["text"]

    def busy(self):
        """{gauge: value} of those that are 0 in a server at rest."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        names = ("neo_tf_slots_in_use", "neo_tf_queue", "neo_tf_active_sequences")
        found = {
            name: float(line.rpartition(" ")[2]) for name in names for line in lines if line.startswith(f"{name} ")
        }
        return {name: value for name, value in found.items() if value}

    def rest(self):
        """Waits until nothing runs and waits; returns what is still there when the time is over."""
        deadline = time.monotonic() + _PATIENCE
        while (busy := self.busy()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return busy


def request_bytes(draw):
    """The bytes of a random request."""
    path = draw.choice(_PATHS)
    if path == "/metrics":
        return b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    text = " ".join(draw.choice(("def", "import", "x", "(", "name")) for _ in range(draw.randrange(1, 150)))
    if path == "/v1/completions":
        body = {"prompt": text, "max_tokens": draw.randrange(1, 200), "stream": draw.random() < 0.6, "ignore_eos": True}
        body |= {"n": draw.randrange(1, 4), "logprobs": draw.choice([None, 5])}
    elif path == "/v1/embeddings":
        body = {"input": [text] * draw.randrange(1, 4)}
    elif path == "/tokenize":
        body = {"prompt": text}
    else:
        body = {"inputs": text, "parameters": {"max_new_tokens": draw.randrange(1, 200)}}
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def cut(port, seed):
    """One connection, which is cut at a random moment in a random way."""
    draw = random.Random(seed)
    content = request_bytes(draw)
    if draw.random() < 0.3:  # in the headers, or in the body
        content = content[: draw.randrange(len(content))]
    with socket.socket() as connection:
        connection.settimeout(_PATIENCE)
        if draw.random() < 0.2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port))
        if draw.random() < 0.3:  # a reset in place of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            connection.sendall(content)
            if draw.random() < 0.1:
                connection.shutdown(socket.SHUT_WR)
            if draw.random() < 0.6:
                time.sleep(draw.expovariate(1 / 0.02))
            connection.settimeout(0.5)
            for _ in range(draw.choice((0, 0, 1, 3, 50))):
                if not connection.recv(draw.choice((100, 4096))):
                    break
        except OSError:  # the server has answered and closed, or writes nothing for now
            pass


def crowd(server):
    """How many of CLIENTS requests at once got each status."""
    body = {"prompt": "import os", "max_tokens": 40, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
        answers = [threads.submit(server.ask, "/v1/completions", body) for _ in range(CLIENTS)]
        statuses = [answer.result()[0] for answer in answers]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def soak(folder, connections, seed=0, workers=32, report=print):
    """Cuts connections, and lets a crowd in.

    Args:
        folder: The ONNX folder.
        connections: Their number.
        seed: Of the random moments.
        workers: The number of connections at the same time.
        report: Is told how far it is, in lines.

    Returns:
        {figure: value}; "busy" is what is not free at the end, and "same_text" whether a text stayed the same.
    """
    with Server(folder) as server, concurrent.futures.ThreadPoolExecutor(workers) as threads:
        before = server.text()
        resident = []
        for part in range(10):
            first = connections * part // 10
            last = connections * (part + 1) // 10
            list(threads.map(lambda number: cut(server.port, seed + number), range(first, last)))
            busy = server.rest()
            resident.append(server.resident_bytes)
            if part == 0:
                descriptors = server.descriptors
            report(f"{last} connections: {resident[-1] / 1e6:.1f} MB, {server.descriptors} descriptors")
        statuses = crowd(server)
        busy = server.rest()
        deadline = time.monotonic() + 10  # connections that are kept alive
        while server.descriptors > descriptors and time.monotonic() < deadline:
            time.sleep(0.1)
        return {
            "resident": resident,
            "descriptors": (descriptors, server.descriptors),
            "statuses": statuses,
            "busy": busy,
            "same_text": server.text() == before,
        }


def main():
    """Soaks a server, and says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=20, help="MB by which memory may grow")
    chosen = parser.parse_args()
    begin = time.monotonic()
    found = soak(chosen.folder, chosen.connections, chosen.seed)
    print(f"{found} in {time.monotonic() - begin:.0f} s")
    wrong = []
    if found["resident"][-1] - found["resident"][1] > chosen.tolerance * 1e6:
        wrong.append("memory grew")
    if found["busy"]:
        wrong.append("the server is not at rest")
    if found["descriptors"][1] > found["descriptors"][0]:
        wrong.append("file descriptors stay open")
    if not set(found["statuses"]) <= {200, 429} or sum(found["statuses"].values()) != CLIENTS:
        wrong.append("a client of the crowd got neither an answer nor a 429")
    if not found["same_text"]:
        wrong.append("a text is not the same as before")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()

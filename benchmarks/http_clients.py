"""A server in a process of its own, and clients that cost little: what the benchmarks through HTTP have in common."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from neo_tf.errors import NeoTFError

_EVENT = b"data: {"  # each chunk of a stream; the last event, [DONE], has no object
_KEPT = 300  # bytes at the end of an answer that are kept: enough for its last events


@dataclass(frozen=True)
class TextTask:
    """One request: its prompt, as a text and as token ids, and the number of new tokens that it asks for."""

    text: str
    prompt: list[int]
    new_tokens: int

    @property
    def body(self):
        """The request's body for /v1/completions."""
        asked = {"prompt": self.text, "max_tokens": self.new_tokens}
        return json.dumps({**asked, "temperature": 0, "ignore_eos": True, "stream": True}).encode()


@dataclass
class Answer:
    """What came of one request.

    Attributes:
        sent: When it was sent, in time.perf_counter's seconds.
        status: The HTTP status.
        times: When each event with text came. A token that is no whole character has no event of its own.
        ended: When the answer was complete.
    """

    sent: float
    status: int = 0
    times: list = field(default_factory=list)
    ended: float = 0.0

    @property
    def first_token(self):
        """Seconds from the request to its first event."""
        return self.times[0] - self.sent


def text_tasks(tasks, tokenizer, seed=0):
    """The tasks of serving.make_workload with texts as prompts: random whole words, of about as many tokens.

    Greedy random weights repeat their last token. Every token must be a whole text, so that each one is an event.
    """
    random = np.random.default_rng(seed)
    found = []
    words = [text for token in range(tokenizer.vocab_size) if _is_word(text := tokenizer.decode([token]))]
    for task in tasks:
        text = "".join(words[number] for number in random.integers(0, len(words), len(task.prompt)))
        found.append(TextTask(text, list(tokenizer.encode(text)), task.new_tokens))
    return found


def _is_word(text):
    return len(text) > 3 and text[0] == " " and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()


class ServerProcess:
    """`neo-tf serve` in a process of its own, inside a `with` block.

    Args:
        folder: The model.
        options: More options of `neo-tf serve`.
        cores: The numbers of the cores that it may use; all where empty.

    Attributes:
        url: Its address.
    """

    def __init__(self, folder, *options, cores=()):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed at the end of the block)
        command = [sys.executable, "-m", "neo_tf", "serve", folder, "--port", 0, *options]
        self.process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=self._errors, text=True, env=dict(os.environ)
        )
        pin(self.process.pid, cores)

    def __enter__(self):
        words = self.process.stdout.readline().split()
        if not words:
            self.process.wait()
            self._errors.seek(0)
            raise NeoTFError(f"the server ended early: {self._errors.read().strip()[-2000:]}")
        self.url = words[-1]
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self._errors.close()

    def metric(self, name):
        """The value of one of the server's metrics, given by its name."""
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def processor_seconds(process):
    """The processor time that all threads of a process have taken so far, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(process, cores):
    """Pins a process that has just started to these cores. Without cores it may use all."""
    if cores:
        os.sched_setaffinity(process, cores)


class _Reader(asyncio.Protocol):
    """Sends one request on a connection of its own, and notes the times of what comes."""

    def __init__(self, request, answer):
        self._request = request
        self._answer = answer
        self._last = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        """Sends the request."""
        transport.write(self._request)

    def data_received(self, data):
        """Notes the events in a piece of the answer."""
        now = time.perf_counter()
        if not self._answer.status:
            self._answer.status = int(data[9:12])
        # An event's beginning may be divided: the end of the piece before belongs to the search.
        searched = self._last[1 - len(_EVENT) :] + data
        self._answer.times += [now] * searched.count(_EVENT)
        self._last = (self._last + data)[-_KEPT:]

    def connection_lost(self, error):
        """The answer has ended."""
        self._answer.ended = time.perf_counter()
        if self._answer.status == 200:
            if b'"finish_reason":"length"' not in self._last or b"[DONE]" not in self._last:
                self.done.set_exception(NeoTFError(f"an answer did not come to its end: {self._last!r}"))
                return
            self._answer.times.pop()  # the last event says why the text has ended, and has no text
        self.done.set_result(None)


async def send(url, body):
    """Sends one request on a connection of its own and reads its answer.

    Returns:
        The Answer. Its first event may hold the time of several tokens.
    """
    parts = urlsplit(url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    answer = Answer(time.perf_counter())
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: _Reader(head.encode() + body, answer), parts.hostname, parts.port)
    await reader.done
    return answer


async def closed_loop(url, tasks, clients):
    """Clients that each send their next request when the last one was answered: [an Answer for each task]."""
    answers = [None] * len(tasks)
    waiting = iter([*enumerate(task.body for task in tasks)])

    async def client():
        for number, body in waiting:
            answers[number] = await send(url, body)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(url, tasks, arrivals):
    """Requests that are sent at their times, whatever has come of the others: [an Answer for each task].

    Args:
        url: The server.
        tasks: The requests.
        arrivals: When each one is sent, in seconds from the beginning.
    """
    bodies = [task.body for task in tasks]
    start = time.perf_counter()

    async def client(body, arrival):
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        return await send(url, body)

    return await asyncio.gather(*map(client, bodies, arrivals))

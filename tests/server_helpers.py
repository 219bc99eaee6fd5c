"""A real server on loopback for tests, in a thread of the test's process."""

import contextlib
import socket
import time
from dataclasses import dataclass

import httpx
import openai

from neo_tf.runtime.pipeline import TextGenerationPipeline
from neo_tf.runtime.server.app import create_app
from neo_tf.runtime.server.serve import DrainingServer, address_of, bind
from neo_tf.runtime.server.serving import ServerOptions, Serving

WAIT = 20  # seconds, at most: a hang must fail


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: Its address.
        serving: The model behind it.
        server: The server.
        steps: A list that grows with each step of the engine.
    """

    url: str
    serving: Serving
    server: DrainingServer
    steps: list

    def client(self, **options):
        # There is no TLS here, and to read the certificates that it would need takes 30 ms.
        return httpx.Client(base_url=self.url, timeout=WAIT, verify=False, **options)

    def openai(self, api_key="none", **options):
        """OpenAI's own client of the server."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, **options)

    def post(self, path, **body):
        with self.client() as client:
            return client.post(path, json=body)

    def complete(self, **body):
        """The answer of /v1/completions, which must be one."""
        answer = self.post("/v1/completions", **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, line):
        """The value of a metric, given by its name with its labels."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(f"{line} "))

    def wait_until(self, condition):
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.005)

    @property
    def free_slots(self):
        return self.serving.pipeline.engine.slots.free


@contextlib.contextmanager
def running_server(folder, slots=4, step_seconds=0, shutdown_timeout=WAIT, protocols=None, send_buffer=None, **options):
    """Runs a server over an ONNX folder.

    Args:
        folder: The ONNX folder.
        slots: The number of its slots.
        step_seconds: Seconds that each step of the engine takes longer, so that there is time to interrupt it.
        shutdown_timeout: See DrainingServer.
        protocols: See create_app.
        send_buffer: Bytes of an answer that the system takes before its client reads any.
        options: Those of ServerOptions.
    """
    pipeline = TextGenerationPipeline(folder, batch_size=slots, defaults={})
    steps = []
    step = pipeline.engine.step

    def slow_step():
        steps.append(time.perf_counter())
        time.sleep(step_seconds)
        return step()

    pipeline.engine.step = slow_step
    serving = Serving(pipeline, ServerOptions(**{"names": ("demo", "tiny-python"), **options}))
    app = create_app(serving, *([protocols] if protocols else []))
    server = DrainingServer(app, serving, shutdown_timeout)
    with bind("127.0.0.1", 0) as bound:
        if send_buffer:  # connections inherit it
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        with server.running(bound):
            yield Running(address_of(bound), serving, server, steps)

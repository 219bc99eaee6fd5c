"""Many requests at once against the same ones one after the other: throughput, waiting, and the engine's own time."""

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.evaluation.machine import describe_machine, peak_memory, versions
from neo_tf.evaluation.speed import STEPS, TimedSession, describe_model
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request

_PROMPTS, _NEW = (32, 512), (16, 256)  # tokens: the least and the most
_LEAST_CONTEXT, _SLOTS = 64, 16
_BATCHES = (1, 8)  # at which the engine's own time is taken
WAYS = ("alone", "together")


@dataclass(frozen=True)
class ServingSettings:
    """What is measured.

    Args:
        requests: how many.
        slots: how many of them run at a time.
        rounds: samples of each figure.
        device, threads, precision: see Session.
    """

    requests: int
    slots: int
    rounds: int = 5
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    @classmethod
    def within(cls, n_ctx, *, requests, slots=None, **others):
        """Settings for a context of n_ctx; slots are 16, or as many as the requests, where None.

        Raises:
            RequestError: something is below its least value, or n_ctx is.
        """
        settings = cls(requests, min(_SLOTS, requests) if slots is None else slots, **others)
        for name in ("requests", "slots", "rounds"):
            if getattr(settings, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(settings, name)}")
        if n_ctx < _LEAST_CONTEXT:
            raise RequestError(f"n_ctx is {n_ctx}: these requests need at least {_LEAST_CONTEXT}")
        return settings

    @property
    def batches(self):
        """Batches at which the engine's own time is taken."""
        return tuple(sorted({min(batch, self.slots) for batch in _BATCHES}))

    @property
    def work(self):
        """How often progress is called."""
        return self.rounds * (len(WAYS) * self.requests + len(self.batches))


@dataclass(frozen=True)
class Task:
    """One request of a workload: a prompt's ids, and how many tokens follow it."""

    prompt: list
    new_tokens: int


def make_workload(requests, config, number=0):
    """Random prompts of 32 to 512 tokens with 16 to 256 new ones; at most 2/3 and 1/3 of n_ctx. The same every time.

    The shared-prefix cache knows prompts that came before: workloads of other numbers have the same lengths and other
    ids.

    Args:
        requests: how many.
        config: a GPTNeoConfig of a context of 64 at least.
        number: of the workload.

    Returns:
        A list of Tasks.
    """
    lengths, ids = np.random.default_rng(0), np.random.default_rng([1, number])
    prompts = lengths.integers(_PROMPTS[0], min(_PROMPTS[1], config.n_ctx * 2 // 3) + 1, requests)
    news = lengths.integers(_NEW[0], min(_NEW[1], config.n_ctx // 3) + 1, requests)
    sizes = zip(prompts.tolist(), news.tolist(), strict=True)
    return [Task(ids.integers(0, config.n_vocab, length).tolist(), new) for length, new in sizes]


def benchmark_serving(folder, settings, progress=None):
    """Measures a folder.

    Args:
        folder: an ONNX folder that export_onnx wrote: its path, or an OnnxFolder.
        settings: a ServingSettings.
        progress: called as progress(1), settings.work times.

    Returns:
        A dict for JSON: "model", "machine", "versions", "settings"; "workload"; "alone" and "together", see summary;
        "ratio" of their tokens/s; "engine", a row for each batch; "peak_memory_bytes"; "samples" of each round.

    Raises:
        NeoTFError: see Session.
    """
    folder = OnnxFolder.read(folder)
    workloads = [make_workload(settings.requests, folder.config, number) for number in range(settings.rounds)]
    rounds = _Rounds(folder, settings, workloads, progress or (lambda count: None))
    for number in range(settings.rounds):
        rounds.run(number)
    session, samples = rounds.session, rounds.samples
    about = {"model": describe_model(session), "machine": describe_machine(), "versions": versions()}
    chosen = {"device": session.device, "threads": settings.threads or physical_cores()}
    about["settings"] = asdict(settings) | chosen | {"precision": session.precision}
    ratios = [many["tokens_per_s"] / one["tokens_per_s"] for one, many in zip(*map(samples.get, WAYS), strict=True)]
    return about | {
        "workload": describe_workload(workloads[0]),
        **{way: medians(samples[way]) for way in WAYS},
        "ratio": statistics.median(ratios),
        "engine": [
            {"batch": batch, **medians(rows)}
            for batch, rows in zip(settings.batches, zip(*samples["engine"], strict=True), strict=True)
        ],
        "peak_memory_bytes": rounds.peak_memory_bytes,
        "samples": samples,
    }


class _Rounds:
    """The sessions under test, and samples of every measure: {name: [one a round]}."""

    def __init__(self, folder, settings, workloads, progress):
        self._folder, self._settings, self._workloads, self._progress = folder, settings, workloads, progress
        self.samples = {name: [] for name in (*WAYS, "engine")}
        self.session = TimedSession(self._load(settings.slots))
        self._engines = {"together": Engine(self.session)}
        self._warm("together", settings.slots)
        self.peak_memory_bytes = None

    def run(self, number):
        """Takes one sample of everything; another way begins each time."""
        for way in WAYS if number % 2 else WAYS[::-1]:
            if way not in self._engines:
                # Only now: what it takes is no part of the memory that many requests need.
                self.peak_memory_bytes = peak_memory()
                self._engines[way] = Engine(self._load(1))
                self._warm(way, 1)
            self._rest()
            self.samples[way].append(summary(serve(self._engines[way], self._workloads[number], way, self._progress)))
        self._rest()
        self.samples["engine"].append([self._own_time(batch) for batch in self._settings.batches])

    def _load(self, slots):
        settings = self._settings
        return Session(self._folder, slots, settings.device, settings.threads, settings.precision)

    def _warm(self, way, count):
        """Binds buffers of every number of rows: a prompt joins in each step."""
        prompt = self._workloads[0][0].prompt[:8]
        task = Task(prompt, min(2 * count, self.session.config.n_ctx - len(prompt)))
        serve(self._engines[way], [task] * count, "together")

    def _rest(self):
        """What ran before lets go of the cores: threads spin for a moment after a step."""
        time.sleep(0.1)

    def _own_time(self, batch):
        """A step of decoding so many sequences, and how much of it is not the session's."""
        engine, length = self._engines["together"], _PROMPTS[0]
        steps = min(STEPS, self.session.config.n_ctx - length - batch - 1)
        prompt = self._workloads[0][0].prompt[:length]
        request = Request(prompt, max_new_tokens=batch + steps + 1)
        generations = [engine.submit(request) for _ in range(batch)]
        while not all(generation.tokens or generation.error for generation in generations):
            engine.step()
        self.session.seconds, start = 0.0, time.perf_counter()
        for _ in range(steps):
            engine.step()
        seconds = (time.perf_counter() - start) / steps
        own = seconds - self.session.seconds / steps
        while engine.step():  # to their ends
            pass
        for generation in generations:
            if generation.error:
                raise generation.error
        self._progress(1)
        return {"ms_per_step": seconds * 1e3, "own_ms": own * 1e3, "share": own / seconds}


def serve(engine, workload, way, progress=None):
    """Runs a workload greedily, all of it submitted at once.

    Args:
        engine: an Engine.
        workload: Tasks.
        way: "together", or "alone": one after the other.
        progress: called as progress(1) at each request's last token.

    Returns:
        A list for each task: the seconds from the beginning to each of its tokens.
    """
    times, start = [[] for _ in workload], time.perf_counter()

    def clock(task, own):
        def note(token):
            own.append(time.perf_counter() - start)
            if progress and len(own) == task.new_tokens:
                progress(1)

        return note

    pairs = zip(workload, times, strict=True)
    requests = [Request(task.prompt, max_new_tokens=task.new_tokens, on_token=clock(task, own)) for task, own in pairs]
    for group in [requests] if way == "together" else [[request] for request in requests]:
        engine.generate(group)
    return times


def summary(times):
    """Throughput and waiting of a workload.

    Args:
        times: for each request, the seconds from the submission of all to each of its tokens.

    Returns:
        {"seconds", "tokens_per_s", "first_token_p50_ms", "first_token_p99_ms", "inter_token_p50_ms",
        "inter_token_p99_ms"}: a first token's time is over requests, that between tokens over all pairs of neighbours.
    """
    seconds = max(own[-1] for own in times)
    first, between = [own[0] for own in times], np.concatenate([np.diff(own) for own in times])
    figures = {"seconds": seconds, "tokens_per_s": sum(map(len, times)) / seconds}
    for name, values in (("first_token", first), ("inter_token", between)):
        for rank in (50, 99):
            figures[f"{name}_p{rank}_ms"] = float(np.percentile(values, rank)) * 1e3
    return figures


def medians(samples):
    """The median of each figure over [{name: figure}]."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def describe_workload(workload):
    """How many requests, and how many tokens are in all of their prompts and follow them."""
    prompts, news = [len(task.prompt) for task in workload], [task.new_tokens for task in workload]
    return {"requests": len(workload), "prompt_tokens": sum(prompts), "new_tokens": sum(news)}

"""Many requests at once against the same ones one after the other: throughput, waiting, and the engine's own time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import RequestError
from neo_tf.evaluation.machine import peak_memory
from neo_tf.evaluation.measuring import STEPS, TimedSession, describe_run
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.progress import Progress, no_progress
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request

# The least and the most tokens of a prompt, and of its continuation.
_PROMPT_TOKENS = (32, 512)
_NEW_TOKENS = (16, 256)
_LEAST_CONTEXT = 64
_SLOTS = 16
_BATCHES = (1, 8)  # at which the engine's own time is taken
WAYS = ("alone", "together")


@dataclass(frozen=True)
class ServingSettings:
    """What is measured.

    Args:
        requests: The number of requests, which are all submitted at once.
        slots: The number of requests that run at the same time.
        rounds: The number of samples of each figure.
        device, threads, precision: See Session.
    """

    requests: int
    slots: int
    rounds: int = 5
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    @classmethod
    def within(cls, n_ctx: int, *, requests: int, slots: int | None = None, **others: Any) -> ServingSettings:
        """Settings for a model of n_ctx positions. Without slots there are 16, or one for each request if fewer.

        Raises:
            RequestError: A value is too small, or n_ctx is.
        """
        if slots is None:
            slots = min(_SLOTS, requests)
        settings = cls(requests, slots, **others)
        for name in ("requests", "slots", "rounds"):
            if getattr(settings, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(settings, name)}")
        if n_ctx < _LEAST_CONTEXT:
            raise RequestError(f"n_ctx is {n_ctx}: these requests need at least {_LEAST_CONTEXT}")
        return settings

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes at which the engine's own time is taken."""
        return tuple(sorted({min(batch, self.slots) for batch in _BATCHES}))

    @property
    def work(self) -> int:
        """What the amounts of benchmark_serving's progress add up to: requests, and samples of the engine's time."""
        return self.rounds * (len(WAYS) * self.requests + len(self.batches))


@dataclass(frozen=True)
class Task:
    """One request of a workload: a prompt's token ids, and the number of tokens that follow it."""

    prompt: list[int]
    new_tokens: int


def make_workload(requests: int, config: GPTNeoConfig, number: int = 0) -> list[Task]:
    """Random prompts of 32 to 512 tokens with 16 to 256 new ones; at most 2/3 and 1/3 of n_ctx. The same every time.

    The shared-prefix cache knows the prompts of earlier rounds. So each round has a workload with another number: its
    lengths are the same and its token ids are not.

    Args:
        requests: The number of tasks.
        config: The model's config; its n_ctx is at least 64.
        number: The number of the workload.
    """
    lengths = np.random.default_rng(0)
    ids = np.random.default_rng([1, number])
    prompts = lengths.integers(_PROMPT_TOKENS[0], min(_PROMPT_TOKENS[1], config.n_ctx * 2 // 3) + 1, requests)
    news = lengths.integers(_NEW_TOKENS[0], min(_NEW_TOKENS[1], config.n_ctx // 3) + 1, requests)
    sizes = zip(prompts.tolist(), news.tolist(), strict=True)
    return [Task(ids.integers(0, config.n_vocab, length).tolist(), new) for length, new in sizes]


def benchmark_serving(
    folder: OnnxFolder | Path | str, settings: ServingSettings, progress: Progress = no_progress
) -> dict[str, Any]:
    """Measures a folder.

    Args:
        folder: An ONNX folder that export_onnx wrote: its path, or an OnnxFolder.
        settings: What is measured.
        progress: Called with 1 after each request and each sample of the engine's time, settings.work times.

    Returns:
        A dict for JSON: "model", "machine", "versions", "settings"; "workload"; "alone" and "together", see summary;
        "ratio" of their tokens/s; "engine", a row for each batch size; "peak_memory_bytes"; "samples" of each round.

    Raises:
        NeoTFError: See Session.
    """
    folder = OnnxFolder.read(folder)
    workloads = [make_workload(settings.requests, folder.config, number) for number in range(settings.rounds)]
    rounds = _ServingRounds(folder, settings, workloads, progress)
    for number in range(settings.rounds):
        rounds.run(number)
    samples = rounds.samples
    pairs = zip(samples["alone"], samples["together"], strict=True)
    ratios = [together["tokens_per_s"] / alone["tokens_per_s"] for alone, together in pairs]
    return describe_run(rounds.session, asdict(settings)) | {
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


class _ServingRounds:
    """The sessions under test, and the samples of every measure.

    Attributes:
        samples: {"alone" or "together": [a summary a round], "engine": [[a row for each batch size] a round]}.
        peak_memory_bytes: The peak of this process before anything ran alone.
    """

    def __init__(
        self,
        folder: OnnxFolder,
        settings: ServingSettings,
        workloads: Sequence[Sequence[Task]],
        progress: Progress,
    ):
        self._folder = folder
        self._settings = settings
        self._workloads = workloads
        self._progress = progress
        self.samples: dict[str, list[Any]] = {name: [] for name in (*WAYS, "engine")}
        self.session = self._load(settings.slots)
        self._engines = {"together": Engine(self.session)}
        self._warm("together", settings.slots)
        self.peak_memory_bytes: int | None = None

    def run(self, number: int) -> None:
        """Takes one sample of everything; the rounds begin with each way in turn."""
        ways = WAYS if number % 2 else WAYS[::-1]
        for way in ways:
            if way not in self._engines:
                # It is loaded only now: its memory does not belong to what many requests need.
                self.peak_memory_bytes = peak_memory()
                self._engines[way] = Engine(self._load(1))
                self._warm(way, 1)
            self._rest()
            times = serve(self._engines[way], self._workloads[number], way, self._progress)
            self.samples[way].append(summary(times))
        self._rest()
        self.samples["engine"].append([self._own_time(batch) for batch in self._settings.batches])

    def _load(self, slots: int) -> TimedSession:
        settings = self._settings
        return TimedSession(self._folder, slots, settings.device, settings.threads, settings.precision)

    def _warm(self, way: str, count: int) -> None:
        """Binds buffers for every number of rows: in each step another prompt joins."""
        prompt = self._workloads[0][0].prompt[:8]
        task = Task(prompt, min(2 * count, self.session.config.n_ctx - len(prompt)))
        serve(self._engines[way], [task] * count, "together")

    def _rest(self) -> None:
        """Waits until the cores are free: threads spin for a moment after a step."""
        time.sleep(0.1)

    def _own_time(self, batch: int) -> dict[str, float]:
        """The time of a decode step of `batch` sequences, and the part of it that is not the session's."""
        engine = self._engines["together"]
        length = _PROMPT_TOKENS[0]
        steps = min(STEPS, self.session.config.n_ctx - length - batch - 1)
        prompt = self._workloads[0][0].prompt[:length]
        request = Request(prompt, max_new_tokens=batch + steps + 1)
        generations = [engine.submit(request) for _ in range(batch)]
        while not all(generation.tokens or generation.error for generation in generations):
            engine.step()
        self.session.seconds = 0.0
        start = time.perf_counter()
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


def serve(engine: Engine, workload: Sequence[Task], way: str, progress: Progress | None = None) -> list[list[float]]:
    """Runs a workload greedily.

    Args:
        engine: The engine that runs it.
        workload: The requests.
        way: "together" submits all of them at once; "alone" submits each one after the end of the one before.
        progress: Called with 1 at each request's last token.

    Returns:
        For each task a list: the seconds from the beginning to each of its tokens.
    """
    times: list[list[float]] = [[] for _ in workload]
    start = time.perf_counter()

    def clock(task: Task, own: list[float]) -> Callable[[int], None]:
        def note(token: int) -> None:
            own.append(time.perf_counter() - start)
            if progress and len(own) == task.new_tokens:
                progress(1)

        return note

    pairs = zip(workload, times, strict=True)
    requests = [Request(task.prompt, max_new_tokens=task.new_tokens, on_token=clock(task, own)) for task, own in pairs]
    groups = [requests] if way == "together" else [[request] for request in requests]
    for group in groups:
        engine.generate(group)
    return times


def summary(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """Throughput and waiting times of a workload.

    Args:
        times: For each request, the seconds from the submission of all to each of its tokens.

    Returns:
        {"seconds", "tokens_per_s", "first_token_p50_ms", "first_token_p99_ms", "inter_token_p50_ms",
        "inter_token_p99_ms"}. The percentiles of the first token are over the requests, those between tokens over all
        pairs of neighbouring tokens.
    """
    seconds = max(own[-1] for own in times)
    first = [own[0] for own in times]
    between = np.concatenate([np.diff(own) for own in times])
    figures = {"seconds": seconds, "tokens_per_s": sum(map(len, times)) / seconds}
    for name, values in (("first_token", first), ("inter_token", between)):
        for rank in (50, 99):
            figures[f"{name}_p{rank}_ms"] = float(np.percentile(values, rank)) * 1e3
    return figures


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over [{name: figure}]."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def describe_workload(workload: Sequence[Task]) -> dict[str, int]:
    """The number of requests, of tokens in all prompts, and of new tokens in all continuations."""
    return {
        "requests": len(workload),
        "prompt_tokens": sum(len(task.prompt) for task in workload),
        "new_tokens": sum(task.new_tokens for task in workload),
    }

"""Speed and memory of an exported folder: short rounds of every measure in turn, and the medians over them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.evaluation.fresh_process import run_fresh_process
from neo_tf.evaluation.machine import memory_bandwidth
from neo_tf.evaluation.measuring import STEPS, TimedSession, describe_run
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.progress import Progress, no_progress
from neo_tf.runtime.device.buckets import bucket_for
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.runtime.engine.engine import PREFILL_CHUNK, Engine
from neo_tf.runtime.engine.request import Request

# The defaults, as far as they fit into n_ctx.
_PROMPT_TOKENS = 32
_NEW_TOKENS = 128
_PREFILLS = (128, 512, 1024)
_CONTEXTS = (32, 256, 512, 1024, 1500, 2000)
_BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        prompt_tokens, new_tokens: The lengths of the prompt and the continuation that are decoded, in tokens.
        prefills: The lengths of prompts whose prefill is timed, in tokens.
        contexts: The lengths of the context at which a decode step is timed, in tokens.
        batches: The numbers of sequences that are decoded together.
        rounds: The number of samples of each figure.
        device, threads, precision: See Session.
    """

    prompt_tokens: int
    new_tokens: int
    prefills: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    rounds: int = 5
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    @classmethod
    def within(
        cls,
        n_ctx: int,
        *,
        prompt_tokens: int | None = None,
        new_tokens: int | None = None,
        prefills: Sequence[int] | None = None,
        contexts: Sequence[int] | None = None,
        batches: Sequence[int] | None = None,
        **others: Any,
    ) -> Settings:
        """Settings for a model of n_ctx positions. What is None gets its default, as far as it fits.

        Raises:
            RequestError: A value is too small, or reaches beyond n_ctx.
        """
        if prompt_tokens is None:
            prompt_tokens = max(1, min(_PROMPT_TOKENS, n_ctx // 2, n_ctx - (new_tokens or 2)))
        if new_tokens is None:
            new_tokens = max(2, min(_NEW_TOKENS, n_ctx - prompt_tokens))
        if prefills is None:
            prefills = [*(count for count in _PREFILLS if count < n_ctx), n_ctx]
        if contexts is None:
            longest = min(_CONTEXTS[-1], n_ctx - STEPS)
            contexts = [*(count for count in _CONTEXTS if count < longest), max(1, longest)]
        settings = cls(
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            prefills=tuple(sorted(set(prefills))),
            contexts=tuple(sorted(set(contexts))),
            batches=tuple(sorted(set(batches or _BATCHES))),
            **others,
        )
        settings._check(n_ctx)
        return settings

    def _check(self, n_ctx: int) -> None:
        # A decode step needs a token before it and room for itself; the time per token is taken between two tokens.
        least = {"prompt_tokens": 1, "new_tokens": 2, "prefills": 1, "contexts": 1, "batches": 1, "rounds": 1}
        most = {"prefills": n_ctx, "contexts": n_ctx - 1}
        for name, bound in least.items():
            values = getattr(self, name)
            values = values if isinstance(values, tuple) else (values,)
            if not values:
                raise RequestError(f"{name} is empty: name at least one number")
            if values[0] < bound:
                raise RequestError(f"{name} must be at least {bound}, not {values[0]}")
            if values[-1] > most.get(name, values[-1]):
                raise RequestError(f"{name} must be at most {most[name]}, not {values[-1]}: n_ctx is {n_ctx}")
        if self.prompt_tokens + self.new_tokens > n_ctx:
            raise RequestError(
                f"prompt_tokens {self.prompt_tokens} and new_tokens {self.new_tokens} exceed n_ctx {n_ctx}"
            )

    @property
    def work(self) -> int:
        """The number of samples, which is what the amounts of benchmark's progress add up to."""
        return self.rounds * (3 + len(self.prefills) + len(self.contexts) + len(self.batches))


def benchmark(folder: OnnxFolder | Path | str, settings: Settings, progress: Progress = no_progress) -> dict[str, Any]:
    """Measures a folder.

    Args:
        folder: An ONNX folder that export_onnx wrote: its path, or an OnnxFolder.
        settings: What is measured.
        progress: Called with 1 after each sample, settings.work times.

    Returns:
        A dict for JSON: "model", "machine", "versions", "settings"; "fresh_process", "decode", "prefill", "context",
        "batch", "bandwidth", "floor"; "samples" of each round. Names end in their units.

    Raises:
        NeoTFError: See Session.
    """
    rounds = _SpeedRounds(OnnxFolder.read(folder), settings, progress)
    for _ in range(settings.rounds):
        rounds.run()
    about = describe_run(rounds.session, asdict(settings))
    figures = _figures(rounds.samples, settings, about["model"]["bytes_per_token"])
    return about | figures | {"samples": dict(rounds.samples)}


class _SpeedRounds:
    """The session under test, and the samples of every measure.

    Attributes:
        samples: {name: [one sample a round]}, in seconds unless the name ends in another unit.
    """

    def __init__(self, folder: OnnxFolder, settings: Settings, progress: Progress):
        self.folder = folder
        self.settings = settings
        self._progress = progress
        slots = max(settings.batches)
        self.session = self._load(slots)
        # One sequence is decoded in an engine of one slot, like `neo-tf generate` does. Every round has the same
        # prompt: no cache may know it from the round before.
        self._single = self.session if slots == 1 else self._load(1)
        self.engine = Engine(self._single, prefix_cache_bytes=0)
        self.threads = settings.threads or physical_cores()
        config = self.session.config
        self.tokens = np.random.default_rng(0).integers(0, config.n_vocab, config.n_ctx)
        self.samples: dict[str, list[Any]] = defaultdict(list)
        self._decode({})  # binds buffers, wakes threads

    def _load(self, slots: int) -> TimedSession:
        settings = self.settings
        return TimedSession(self.folder, slots, settings.device, settings.threads, settings.precision)

    def run(self) -> None:
        """Takes one sample of everything."""
        sample: dict[str, float | None] = {}
        self._fresh(sample)
        self._decode(sample)
        self._progress(1)
        if self.session.device == "cpu":
            sample["bandwidth_bytes_per_s"] = memory_bandwidth(self.threads)
        self._progress(1)
        self._prefills(sample)
        self._contexts(sample)
        self._batches(sample)
        for name, value in sample.items():
            self.samples[name].append(value)

    def _fresh(self, sample: dict[str, float | None]) -> None:
        """Starts a new process and waits for its first token and its peak memory."""
        settings = self.settings
        sample |= run_fresh_process(
            self.folder,
            device=settings.device,
            threads=settings.threads,
            precision=settings.precision,
            prompt=self.tokens[: settings.prompt_tokens].tolist(),
            new_tokens=settings.new_tokens,
        )
        self._progress(1)

    def _decode(self, sample: dict[str, float | None]) -> None:
        """Decodes one sequence in the engine, and times it from its first new token to its last."""
        settings = self.settings
        times: list[float] = []
        prompt = self.tokens[: settings.prompt_tokens].tolist()
        request = Request(prompt, settings.new_tokens, on_token=lambda token: times.append(time.perf_counter()))
        self._single.seconds = 0.0
        start = time.perf_counter()
        self.engine.generate([request])
        steps = settings.new_tokens - 1
        sample["decode_first_token"] = times[0] - start
        sample["decode_token"] = (times[-1] - times[0]) / steps
        sample["decode_step"] = self._single.seconds / steps

    def _prefills(self, sample: dict[str, float | None]) -> None:
        for count in self.settings.prefills:
            start = time.perf_counter()
            self._fill(0, 0, count)
            sample[f"prefill_{count}"] = time.perf_counter() - start
            self._progress(1)

    def _contexts(self, sample: dict[str, float | None]) -> None:
        n_ctx = self.session.config.n_ctx
        held = 0  # tokens that the slot holds from the context before, which is shorter
        for context in self.settings.contexts:
            self._fill(0, held if held <= context else 0, context)
            held = min(context + STEPS, n_ctx)
            sample[f"context_{context}"] = self._steps(1, context, held)
            self._progress(1)

    def _batches(self, sample: dict[str, float | None]) -> None:
        n_ctx = self.session.config.n_ctx
        first = self.settings.prompt_tokens
        for batch in self.settings.batches:
            for slot in range(batch):
                self._fill(slot, 0, first)
            sample[f"batch_{batch}"] = self._steps(batch, first, min(first + STEPS, n_ctx))
            self._progress(1)

    def _fill(self, slot: int, held: int, end: int) -> None:
        """Prefills a slot that holds `held` tokens until it holds `end` tokens, in the engine's chunks."""
        for start in range(held, end, PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, end)
            self.session.prefill(slot, self.tokens[start:stop], start, logits_of=1 if stop == end else 0)

    def _steps(self, batch: int, first: int, end: int) -> float:
        """The mean seconds of a decode step of `batch` rows, whose lengths run from `first` to `end`."""
        session = self.session
        rows = bucket_for(session.buckets, batch)  # as the engine runs them

        def steps() -> float:
            start = time.perf_counter()
            for past in range(first, end):
                session.decode(0, np.full(rows, self.tokens[past]), np.full(rows, past))
            return (time.perf_counter() - start) / (end - first)

        return session.thread.run(steps) if session.thread else steps()


def _figures(samples: dict[str, list[Any]], settings: Settings, read: int | None) -> dict[str, Any]:
    """The medians over all rounds.

    Args:
        samples: See _SpeedRounds.
        settings: What was measured.
        read: The bytes of weights that one token reads; None where they are not known.
    """
    median = {name: statistics.median(values) for name, values in samples.items() if None not in values}
    token = median["decode_token"]
    speed = median.get("bandwidth_bytes_per_s")
    floor = read / speed if read and speed else None  # seconds: no token can be faster
    fresh = ("first_token_s", "imports_s", "load_s", "generate_s", "peak_memory_bytes")
    if "peak_memory_bytes" in median:
        median["peak_memory_bytes"] = int(median["peak_memory_bytes"])
    return {
        "fresh_process": {name: median.get(name) for name in fresh},
        "decode": {
            "prompt_tokens": settings.prompt_tokens,
            "new_tokens": settings.new_tokens,
            "first_token_ms": median["decode_first_token"] * 1e3,
            **_rate("ms_per_token", token),
            "step_ms": median["decode_step"] * 1e3,
        },
        "prefill": [{"tokens": n, **_rate("ms", median[f"prefill_{n}"], n)} for n in settings.prefills],
        "context": [{"context": n, **_rate("ms_per_token", median[f"context_{n}"])} for n in settings.contexts],
        "batch": [{"batch": n, **_rate("ms_per_step", median[f"batch_{n}"], n)} for n in settings.batches],
        "bandwidth": {"bytes_per_s": speed},
        "floor": {"ms_per_token": floor and floor * 1e3, "share": floor and floor / token},
    }


def _rate(name: str, seconds: float, tokens: int = 1) -> dict[str, float]:
    """{name: milliseconds, "tokens_per_s": ...} of the time in which some tokens were made."""
    return {name: seconds * 1e3, "tokens_per_s": tokens / seconds}

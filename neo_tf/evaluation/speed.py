"""Speed and memory of an exported folder: short rounds of every measure in turn, and the medians over them."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from neo_tf.errors import NeoTFError, RequestError
from neo_tf.evaluation.machine import describe_machine, memory_bandwidth, versions
from neo_tf.onnx_folder import DECODER, OnnxFolder
from neo_tf.runtime.device.kv_cache import KVCache
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import PREFILL_CHUNK, Engine
from neo_tf.runtime.engine.request import Request

_FRESH = "from neo_tf.evaluation.fresh_process import main\nmain(sys.argv[1])"
STEPS = 32  # steps of one sample of a context or a batch
_PROMPT, _NEW = 32, 128
_PREFILLS, _CONTEXTS, _BATCHES = (128, 512, 1024), (32, 256, 512, 1024, 1500, 2000), (1, 2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        prompt_tokens, new_tokens: of the sequence that is decoded.
        prefills: prompts' lengths.
        contexts: lengths at which a token's time is taken.
        batches: sequences that are decoded together.
        rounds: samples of each figure.
        device, threads, precision: see Session.
    """

    prompt_tokens: int
    new_tokens: int
    prefills: tuple
    contexts: tuple
    batches: tuple
    rounds: int = 5
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    @classmethod
    def within(
        cls, n_ctx, *, prompt_tokens=None, new_tokens=None, prefills=None, contexts=None, batches=None, **others
    ):
        """Settings for a context of n_ctx: what is None becomes as much of the defaults as fits.

        Raises:
            RequestError: something is below its least value, or reaches beyond n_ctx.
        """
        if prompt_tokens is None:
            prompt_tokens = max(1, min(_PROMPT, n_ctx // 2, n_ctx - (new_tokens or 2)))
        if new_tokens is None:
            new_tokens = max(2, min(_NEW, n_ctx - prompt_tokens))
        if prefills is None:
            prefills = [*(count for count in _PREFILLS if count < n_ctx), n_ctx]
        if contexts is None:
            longest = min(_CONTEXTS[-1], n_ctx - STEPS)
            contexts = [*(count for count in _CONTEXTS if count < longest), max(1, longest)]
        lists = {"prefills": prefills, "contexts": contexts, "batches": batches or _BATCHES}
        lists = {name: tuple(sorted(set(values))) for name, values in lists.items()}
        settings = cls(prompt_tokens, new_tokens, **lists, **others)
        settings._check(n_ctx)
        return settings

    def _check(self, n_ctx):
        # A decode step needs a token before it and room for itself; decoding's time is taken between tokens.
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
    def work(self):
        """How often progress is called."""
        return self.rounds * (3 + len(self.prefills) + len(self.contexts) + len(self.batches))


def benchmark(folder, settings, progress=None):
    """Measures a folder.

    Args:
        folder: an ONNX folder that export_onnx wrote: its path, or an OnnxFolder.
        settings: a Settings.
        progress: called as progress(1), settings.work times.

    Returns:
        A dict for JSON: "model", "machine", "versions", "settings"; "fresh_process", "decode", "prefill", "context",
        "batch", "bandwidth", "floor"; "samples" of each round. Names end in their units.

    Raises:
        NeoTFError: see Session.
    """
    rounds = _Rounds(OnnxFolder.read(folder), settings, progress or (lambda count: None))
    for _ in range(settings.rounds):
        rounds.run()
    model = describe_model(rounds.session)
    about = {"model": model, "machine": describe_machine(), "versions": versions()}
    about["settings"] = asdict(settings) | {
        "device": rounds.session.device,
        "threads": rounds.threads,
        "precision": rounds.session.precision,
    }
    return about | _figures(rounds.samples, settings, model["bytes_per_token"]) | {"samples": dict(rounds.samples)}


class _Rounds:
    """The session under test, and samples of every measure: {name: [one a round]}, in seconds unless the name says."""

    def __init__(self, folder, settings, progress):
        self.folder, self.settings, self._progress = folder, settings, progress
        slots, chosen = max(settings.batches), (settings.device, settings.threads, settings.precision)
        self.session = TimedSession(Session(folder, slots, *chosen))
        # One sequence is decoded in an engine of one slot, as `neo-tf generate` does. Every round has the same prompt:
        # it must not be known from the one before.
        self._single = self.session if slots == 1 else TimedSession(Session(folder, 1, *chosen))
        self.engine = Engine(self._single, prefix_cache_bytes=0)
        self.threads = settings.threads or physical_cores()
        config = self.session.config
        self.tokens = np.random.default_rng(0).integers(0, config.n_vocab, config.n_ctx)
        self.samples = defaultdict(list)
        self._decode({})  # binds buffers, wakes threads

    def run(self):
        """Takes one sample of everything."""
        sample = {}
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

    def _fresh(self, sample):
        """A new process until its first token, seen from here, and its peak memory."""
        settings = self.settings
        prompt = self.tokens[: settings.prompt_tokens].tolist()
        chosen = (settings.device, settings.threads, settings.precision)
        task = json.dumps([str(self.folder.path), *chosen, prompt, settings.new_tokens])
        # Where this process finds its modules, that one does, too: no folder of the user's comes between.
        code = f"import sys; sys.path[:] = {sys.path!r}\n" + _FRESH
        with tempfile.TemporaryFile("w+") as errors:
            start = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-c", code, task], stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                first, elapsed = child.stdout.readline(), time.perf_counter() - start
                rest = child.stdout.read()
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
            errors.seek(0)
            if child.returncode or not first:
                said = errors.read().strip().splitlines() or ["it said nothing"]
                raise NeoTFError(f"the fresh process ended early: {said[-1]}")
        spans = json.loads(first)
        # Before it began to load: the interpreter's start and the imports.
        sample |= {"first_token_s": elapsed, "imports_s": elapsed - sum(spans.values()), **spans, **json.loads(rest)}
        self._progress(1)

    def _decode(self, sample):
        """One sequence through the engine: from its first new token to its last."""
        settings, times = self.settings, []
        prompt = self.tokens[: settings.prompt_tokens].tolist()
        request = Request(prompt, settings.new_tokens, on_token=lambda token: times.append(time.perf_counter()))
        self._single.seconds, start = 0.0, time.perf_counter()
        self.engine.generate([request])
        steps = settings.new_tokens - 1
        sample["decode_first_token"] = times[0] - start
        sample["decode_token"] = (times[-1] - times[0]) / steps
        sample["decode_step"] = self._single.seconds / steps

    def _prefills(self, sample):
        for count in self.settings.prefills:
            start = time.perf_counter()
            self._fill(0, 0, count)
            sample[f"prefill_{count}"] = time.perf_counter() - start
            self._progress(1)

    def _contexts(self, sample):
        held, n_ctx = 0, self.session.config.n_ctx
        for context in self.settings.contexts:
            self._fill(0, held if held <= context else 0, context)
            held = min(context + STEPS, n_ctx)
            sample[f"context_{context}"] = self._steps(1, context, held)
            self._progress(1)

    def _batches(self, sample):
        first, n_ctx = self.settings.prompt_tokens, self.session.config.n_ctx
        for batch in self.settings.batches:
            for slot in range(batch):
                self._fill(slot, 0, first)
            sample[f"batch_{batch}"] = self._steps(batch, first, min(first + STEPS, n_ctx))
            self._progress(1)

    def _fill(self, slot, held, end):
        """Prefills a slot that holds some tokens up to `end`, in the engine's chunks."""
        for start in range(held, end, PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, end)
            self.session.prefill(slot, self.tokens[start:stop], start, keep=1 if stop == end else None)

    def _steps(self, batch, first, end):
        """Seconds of a step of so many rows, at lengths from first to end."""
        start = time.perf_counter()
        for past in range(first, end):
            self.session.decode(0, np.full(batch, self.tokens[past]), np.full(batch, past))
        return (time.perf_counter() - start) / (end - first)


class TimedSession:
    """A Session that adds up the time of its decode steps."""

    def __init__(self, session):
        self._session, self.seconds = session, 0.0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def decode(self, *arguments):
        """See Session.decode."""
        start = time.perf_counter()
        logits = self._session.decode(*arguments)
        self.seconds += time.perf_counter() - start
        return logits


def describe_model(session):
    """What was measured: {"folder", "precision", "parameters", "n_ctx", and sizes in bytes}."""
    from neo_tf.variables import count_parameters

    folder = session.folder

    try:
        from neo_tf.evaluation.traffic import bytes_per_token

        read = bytes_per_token(folder.graph_path(session.precision, DECODER))
    except ImportError:  # a machine that decodes need not have onnx
        read = None
    cache = session.cache
    return {
        "folder": str(folder.path),
        "precision": session.precision,
        "parameters": count_parameters(session.config),
        "n_ctx": session.config.n_ctx,
        "weights_bytes": folder.data_path.stat().st_size,
        "bytes_per_token": read,
        "cache_bytes_per_sequence": KVCache.bytes_per_slot(session.config, cache.dtype, cache.device),
    }


def _figures(samples, settings, read):
    median = {name: statistics.median(values) for name, values in samples.items() if None not in values}
    token, speed = median["decode_token"], median.get("bandwidth_bytes_per_s")
    floor = read / speed if read and speed else None
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


def _rate(name, seconds, tokens=1):
    """{name: milliseconds, "tokens_per_s": ...} of a time in which so many tokens came."""
    return {name: seconds * 1e3, "tokens_per_s": tokens / seconds}

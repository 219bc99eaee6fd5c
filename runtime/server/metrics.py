"""What the server tells Prometheus of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.service import Service
    from .admission import Admission

_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_INTER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms of one server, in a registry of its own.

    Args:
        service: The service behind it.
        engine: The service's engine.
        admission: What counts its sequences.
    """

    def __init__(self, service: Service, engine: Engine, admission: Admission) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Gauges(service, engine, admission))
        self._requests = Counter(
            "neo_tf_requests", "HTTP requests that were answered.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "neo_tf_request_seconds", "Time of an HTTP request.", ["path"], buckets=_WHOLE, registry=registry
        )
        self._errors = Counter("neo_tf_errors", "HTTP requests that ended in an error.", ["code"], registry=registry)
        self._gone = Counter("neo_tf_disconnects", "Clients that left before their answer.", registry=registry)
        self.prompt_tokens = Counter("neo_tf_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.new_tokens = Counter("neo_tf_new_tokens", "New tokens.", registry=registry)
        self.ended = Counter("neo_tf_sequences", "Sequences that ended.", ["finish_reason"], registry=registry)
        self.first_token = Histogram(
            "neo_tf_first_token_seconds",
            "From the request to its first new token, the time in the queue included.",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.inter_token = Histogram(
            "neo_tf_inter_token_seconds", "From a new token to the next one.", buckets=_INTER_TOKEN, registry=registry
        )

    def sequence(self, prompt_tokens: int) -> Timing:
        """Begins to time a sequence."""
        self.prompt_tokens.inc(prompt_tokens)
        return Timing(self)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts an HTTP request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def failed(self, code: str) -> None:
        """Counts an error."""
        self._errors.labels(code).inc()

    def client_gone(self) -> None:
        """Counts a client that has left."""
        self._gone.inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class Timing:
    """Times one sequence. The engine's thread calls it.

    Attributes:
        tokens: The number of new tokens so far.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.tokens = 0
        self._metrics = metrics
        self._last = time.perf_counter()

    def token(self, token: int) -> None:
        """A new token has come."""
        now = time.perf_counter()
        histogram = self._metrics.inter_token if self.tokens else self._metrics.first_token
        histogram.observe(now - self._last)
        self._last = now
        self.tokens += 1

    def end(self, done: Any) -> None:
        """The sequence's future has ended."""
        error = done.exception()
        if error is not None:
            self._metrics.ended.labels("error").inc()
            return
        generation = done.result()
        self._metrics.new_tokens.inc(sum(len(found.tokens) for found in generation.continuations))
        self._metrics.ended.labels(str(generation.finish_reason)).inc()


class _Gauges(Collector):
    """What is read at the moment when Prometheus asks."""

    def __init__(self, service: Service, engine: Engine, admission: Admission) -> None:
        self._service = service
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        slots = self._engine.slots
        prefixes = self._engine.prefixes
        total = self._engine.session.slots
        gauges = (
            ("slots", "Sequences that can be decoded at once.", total),
            ("slots_in_use", "Slots that hold a sequence.", total - slots.free),
            ("queue", "Requests that wait for a slot.", self._service.waiting),
            ("active_sequences", "Sequences that run or wait.", self._admission.active),
            ("admission_limit", "Sequences that may run or wait.", self._admission.limit),
            ("cache_bytes", "The most memory that the slots in use may need.", slots.bytes_promised),
            ("prefix_cache_bytes", "Memory of the shared-prefix cache.", prefixes.bytes_used if prefixes else 0),
            ("draining", "1 while the server ends.", int(self._admission.draining)),
            ("engine_up", "1 while the engine runs.", int(self._service.failure is None)),
        )
        for name, meaning, value in gauges:
            yield GaugeMetricFamily(f"neo_tf_{name}", meaning, value=value)

"""A worker of a job on a Ray cluster: a process with a model and an engine of its own."""

import socket
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, Protocol

from neo_tf.errors import EngineError

from ..engine.service import Service, Submission
from ..pipeline import TextGenerationPipeline
from .open_line import OpenLine, Outcome, settings_of
from .prompts import Line


class JobModel(Protocol):
    """The model of a job. It is sent to each worker, which loads it from its own machine."""

    def load(self, slots: int) -> TextGenerationPipeline:
        """Loads the model, for `slots` sequences at once. Raises NeoTFError."""

    def digest(self) -> str:
        """A hash of the contents of all files that decide a text."""


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when its model is loaded.

    Args:
        host: The name of its machine.
        digest: See JobModel.
        settings: {name: value} of what else decides a text, such as the device and the precision.
    """

    host: str
    digest: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    """The answer of a worker whose engine runs no more.

    Args:
        reason: Why it ended.
    """

    reason: str


class RayWorker:
    """Runs lines of a job, many at the same time: Ray calls `run` in as many threads.

    Args:
        model: The model.
        slots: The number of sequences that are decoded at the same time.
    """

    def __init__(self, model: JobModel, slots: int) -> None:
        self._model = model
        self._slots = slots

    def load(self) -> WorkerInfo:
        """Loads the model; called once, before any line.

        Raises:
            NeoTFError: The model cannot be loaded.
        """
        self._generator = self._model.load(self._slots)
        self._service = Service(self._generator.engine)
        return WorkerInfo(socket.gethostname(), self._model.digest(), settings_of(self._generator))

    def run(self, line: Line, arguments: dict[str, Any], seed: int) -> Outcome | Broken:
        """Runs a line to its end; see OpenLine.read."""
        one = OpenLine.read(line, self._generator, arguments, seed, self._service.check)
        if isinstance(one, Outcome):
            return one
        submissions: list[Submission] = []
        try:
            for request in one.requests:
                submissions.append(self._service.submit(request))
        except EngineError as error:
            return Broken(str(error))
        wait(submissions)
        if self._service.failure is not None:
            return Broken(self._service.failure)
        one.generations = [submission.generation for submission in submissions]
        return one.outcome(self._generator)

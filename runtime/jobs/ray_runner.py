"""Runs the lines of a job on the workers of a Ray cluster. Each line's result is taken here, once."""

import os
import queue
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neo_tf.errors import EngineError, MissingExtraError, NeoTFError, RequestError, first_line
from neo_tf.notes import note

from .open_line import Outcome, head_of
from .prompts import Line
from .ray_worker import Broken, JobModel, RayWorker, WorkerInfo

_PATIENCE = 30  # seconds for the first worker until a note says what is waited for
_WAIT = 0.2  # seconds that a step waits at most
# A line that was lost with its worker this many times runs alone: what ends its worker then is the line.
_LOST_WITH_OTHERS = 2
_LOST_ALONE = 2
_REACH_SECONDS = 10
_FAILED_STARTS = 3  # workers in a row that end before they are ready


@dataclass(eq=False)
class _Worker:
    """A worker as this process knows it.

    Args:
        actor: Ray's handle.
        info: What it has said of itself; None until its model is loaded.
        lines: The lines that it runs, by index.
    """

    actor: Any
    info: WorkerInfo | None = None
    lines: dict[int, Line] = field(default_factory=dict)


class RayRunner:
    """Workers on the nodes of a Ray cluster, each with a model of its own; LineRunner.

    The cluster is that of $RAY_ADDRESS, or the one that this machine belongs to. A worker that ends, alone or with its
    node, is replaced as soon as the cluster has room, and its lines go to others.

    Args:
        model: The model; see JobModel.
        slots: The number of sequences that each worker decodes at the same time.
        cuda: Whether each worker has a GPU of its own.
        threads: The number of CPUs of each worker; all of the smallest node's where None, or 1 beside a GPU.
        workers: The number of workers; as many as the nodes have room for where None.

    Raises:
        MissingExtraError: Ray is not installed.
        RequestError: No cluster is there, or it has no room for a worker.
    """

    def __init__(
        self, model: JobModel, slots: int, cuda: bool = False, threads: int | None = None, workers: int | None = None
    ) -> None:
        self._ray = _connect()
        self._model = model
        self._slots = slots
        self._cuda = cuda
        self._workers: list[_Worker] = []
        self._waiting: deque[Line] = deque()  # lines that no worker has
        self._lost: dict[int, int] = {}  # how often a line's worker was lost, by the line's index
        self._answers: queue.SimpleQueue[tuple[_Worker, Line | None, Any]] = queue.SimpleQueue()
        self._failed_starts = 0
        self._tokens = 0
        self._digest = ""
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._cpus = threads or _cpus(nodes, cuda)
            count = workers or _room(nodes, self._cpus, cuda)
            if not count:
                needs = f"{self._cpus} CPUs" if not cuda else f"a GPU and {self._cpus} CPUs"
                raise RequestError(f"--ray: no node of the cluster has {needs} for a worker")
            for _ in range(count):
                self._start_worker()
        except BaseException:
            self.close()
            raise

    def begin(self) -> Mapping[str, Any]:
        """Waits for the first worker.

        Returns:
            Its settings; see WorkerInfo. All workers' are the same.

        Raises:
            NeoTFError: It cannot load the model, or its model is another one than this machine's.
        """
        self._digest = self._model.digest()
        told_at = time.monotonic()
        while not self._ready:
            self.step()
            if time.monotonic() - told_at > _PATIENCE:
                note(f"no worker has started for {_PATIENCE} seconds: the cluster may have no room yet; waiting")
                told_at = time.monotonic()
        first = self._ready[0].info
        assert first is not None
        return first.settings

    def set_arguments(self, arguments: dict[str, Any], seed: int) -> None:
        """Sets what all lines have in common; see EngineRunner. It is called before the first line."""
        self._arguments = arguments
        self._seed = seed

    # ---- LineRunner

    @property
    def window(self) -> int:
        """Each worker holds twice as many lines as it has slots, so that no slot is idle."""
        return self._lines_of_each * max(len(self._ready), 1)

    @property
    def has_room(self) -> bool:
        """Whether fewer lines run or wait than the window has."""
        return sum(len(worker.lines) for worker in self._workers) + len(self._waiting) < self.window

    @property
    def tokens(self) -> int:
        """The number of new tokens of lines that have ended."""
        return self._tokens

    def start(self, line: Line) -> Outcome | None:
        """Gives a line to a worker; see LineRunner."""
        self._waiting.append(line)
        self._give_lines()
        return None

    def step(self) -> list[Outcome]:
        """Takes what the workers have answered; see LineRunner."""
        outcomes: list[Outcome] = []
        try:
            answer = self._answers.get(timeout=_WAIT)
            while True:
                outcomes += self._take(*answer)
                answer = self._answers.get_nowait()
        except queue.Empty:
            pass
        self._give_lines()
        return outcomes

    def cancel(self) -> None:
        """Ends all workers; see LineRunner."""
        self.close()

    def close(self) -> None:
        """Ends all workers, and leaves the cluster."""
        for worker in self._workers:
            self._kill(worker)
        self._workers = []
        self._ray.shutdown()

    # ---- workers

    @property
    def _ready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.info is not None]

    @property
    def _lines_of_each(self) -> int:
        return 2 * self._slots

    def _start_worker(self) -> None:
        actor = self._ray.remote(RayWorker).options(
            num_cpus=self._cpus,
            num_gpus=int(self._cuda),
            max_concurrency=self._lines_of_each + 1,
            max_restarts=0,  # a new one is started here
            scheduling_strategy="SPREAD",
        )
        worker = _Worker(actor.remote(self._model, self._slots))
        self._workers.append(worker)
        self._ask(worker, None, worker.actor.load.remote())

    def _ask(self, worker: _Worker, line: Line | None, answer: Any) -> None:
        """Puts the answer of a call into the queue when it comes; a thread of Ray's calls this."""

        def put(done: Any) -> None:
            self._answers.put((worker, line, done.exception() or done.result()))

        answer.future().add_done_callback(put)

    def _take(self, worker: _Worker, line: Line | None, answer: Any) -> list[Outcome]:
        """Takes an answer; `line` is None where the model is loaded. An answer of a lost worker counts no more."""
        if worker not in self._workers:
            return []
        if isinstance(answer, self._ray.exceptions.RayTaskError):
            raise _told(answer)
        if isinstance(answer, Broken):
            return self._lose(worker, answer.reason)
        if isinstance(answer, BaseException):
            return self._lose(worker, first_line(answer))
        if line is None:
            self._check(answer)
            worker.info = answer
            self._failed_starts = 0
            return []
        del worker.lines[line.index]
        self._lost.pop(line.index, None)
        self._tokens += answer.tokens
        return [answer]

    def _check(self, info: WorkerInfo) -> None:
        """Raises RequestError where a worker would write other texts."""
        if info.digest != self._digest:
            raise RequestError(
                f"--ray: {info.host} has another model or tokenizer under this name than this machine: export the "
                "model once, and copy the folder to all machines"
            )
        for worker in self._ready:
            if worker.info and worker.info.settings != info.settings:
                raise RequestError(
                    f"--ray: {info.host} runs the model as {dict(info.settings)}, and {worker.info.host} as "
                    f"{dict(worker.info.settings)}"
                )

    def _lose(self, worker: _Worker, reason: str) -> list[Outcome]:
        """Starts another worker, and takes the lines back. Returns the lines that are given up."""
        self._workers.remove(worker)
        self._kill(worker)
        if worker.info is None:
            self._failed_starts += 1
            if self._failed_starts == _FAILED_STARTS:
                raise EngineError(f"--ray: workers end before their model is loaded: {reason}")
        else:
            note(f"a worker on {worker.info.host} was lost, and its {len(worker.lines)} lines go to others: {reason}")
        self._start_worker()
        given_up = []
        for line in reversed(worker.lines.values()):
            self._lost[line.index] = self._lost.get(line.index, 0) + 1
            if self._lost[line.index] < _LOST_WITH_OTHERS + _LOST_ALONE:
                self._waiting.appendleft(line)
            else:
                error = EngineError(f"the worker that ran it was lost {self._lost[line.index]} times: {reason}")
                given_up.append(Outcome(line, head_of(line, line.read()), error=error))
        return given_up

    def _kill(self, worker: _Worker) -> None:
        try:
            self._ray.kill(worker.actor)
        except Exception as error:  # Ray has lost it, or the whole cluster: it has ended then
            note(f"a worker could not be ended: {first_line(error)}")

    # ---- lines

    def _give_lines(self) -> None:
        """Gives waiting lines to the workers that have the fewest."""
        while self._waiting:
            line = self._waiting[0]
            free = [worker for worker in self._ready if not any(map(self._runs_alone, worker.lines))]
            worker = min(free, key=lambda each: len(each.lines), default=None)
            if worker is None or len(worker.lines) >= self._lines_of_each:
                return
            if self._runs_alone(line.index) and worker.lines:
                return
            self._waiting.popleft()
            worker.lines[line.index] = line
            self._ask(worker, line, worker.actor.run.remote(line, self._arguments, self._seed))

    def _runs_alone(self, index: int) -> bool:
        return self._lost.get(index, 0) >= _LOST_WITH_OTHERS


def _connect() -> Any:
    """Ray's module, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home, as neo-tf does it elsewhere
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"--ray needs {error.name}: install it with `pip install 'neo-tf[ray]'`") from None
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        where = "on this machine (`ray start --head` starts one, and RAY_ADDRESS names another)"
    else:
        where = f"at RAY_ADDRESS={address}"
        _reach(address, where)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of several kinds, such as a wrong token, or another version of Ray
        if address == "auto" and isinstance(error, ConnectionError):
            raise RequestError(f"--ray: no Ray cluster runs {where}") from None
        raise RequestError(f"--ray: no Ray cluster can be used {where}: {first_line(error)}") from None
    return ray


def _reach(address: str, where: str) -> None:
    """Raises RequestError where nothing listens at a host and port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RequestError(f"--ray: no Ray cluster runs {where}: {getattr(error, 'strerror', None) or error}") from None


def _cpus(nodes: list[dict[str, float]], cuda: bool) -> int:
    """The CPUs of a worker: one beside a GPU, else all of the smallest node's, so that each node has one model."""
    if cuda:
        return 1
    return int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1))


def _room(nodes: list[dict[str, float]], cpus: int, cuda: bool) -> int:
    """The number of workers that the nodes have room for."""
    count = 0
    for node in nodes:
        of_cpus = int(node.get("CPU", 0) // cpus)
        count += min(of_cpus, int(node.get("GPU", 0))) if cuda else of_cpus
    return count


def _told(error: Any) -> NeoTFError:
    """An error of a worker's own code, as it would be told without Ray."""
    cause = error.cause
    if isinstance(cause, NeoTFError):
        return cause
    return EngineError(f"--ray: a worker failed: {type(cause).__name__}: {first_line(cause)}")

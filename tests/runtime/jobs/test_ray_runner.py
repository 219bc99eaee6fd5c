"""Workers that end, and lines that end them: no line is lost or comes twice. A stand-in for Ray."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from neo_tf.errors import EngineError, RequestError
from neo_tf.runtime.jobs import ray_runner
from neo_tf.runtime.jobs.job import Job
from neo_tf.runtime.jobs.open_line import Outcome
from neo_tf.runtime.jobs.prompts import Given
from neo_tf.runtime.jobs.ray_runner import RayRunner
from neo_tf.runtime.jobs.ray_worker import Broken, WorkerInfo

MODEL = SimpleNamespace(digest=lambda: "same")
CPU = {"device": "cpu"}


class Actor:
    """A worker whose calls are answered by the test."""

    def __init__(self, cluster):
        self.cluster, self.lines = cluster, {}
        self.load = SimpleNamespace(remote=lambda: self._call(self._load))
        self.run = SimpleNamespace(remote=lambda line, *job: self._call(self._run, line))

    def _call(self, function, *arguments):
        future = Future()
        function(future, *arguments)
        return SimpleNamespace(future=lambda: future)

    def _load(self, future):
        answer = next(self.cluster.loads)
        future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    def _run(self, future, line):
        self.lines[line.index] = line, future
        self.cluster.given.append((self, line.index))


class Cluster:
    """What a RayRunner needs of Ray."""

    class exceptions:
        class RayTaskError(Exception):
            cause = RequestError("the worker's own words")

    def __init__(self, loads, cpus=4):
        self.loads, self.actors, self.given, self.killed = iter(loads), [], [], []
        self.cpus = cpus

    def nodes(self):
        dead = {"Alive": False, "Resources": {"CPU": 64}}
        return [dead, {"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": True, "Resources": {"CPU": 4}}]

    def remote(self, kind):
        def make(model, slots):
            self.actors.append(Actor(self))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=make))

    def kill(self, actor):
        self.killed.append(actor)

    def shutdown(self):
        pass


class Results:
    ordered, done, errors, partial = False, 0, 0, None

    def __init__(self):
        self.results = {}

    def holds(self, line):
        return False

    def add(self, line, result):
        assert line.index not in self.results, "twice"
        self.results[line.index] = result

    def finish(self, count):
        assert sorted(self.results) == list(range(count))


@pytest.fixture
def started(monkeypatch):
    def start(loads, slots=1, cpus=4, **options):
        cluster = Cluster(loads, cpus)
        monkeypatch.setattr(ray_runner, "_connect", lambda: cluster)
        monkeypatch.setattr(ray_runner, "_WAIT", 0.01)
        runner = RayRunner(MODEL, slots, **options)
        runner.set_arguments({}, 0)
        return runner, cluster

    return start


def info(host="a", digest="same", settings=CPU):
    return WorkerInfo(host, digest, settings)


def finish(actor, index):
    line, future = actor.lines.pop(index)
    future.set_result(Outcome(line, {"index": index}, tokens=2))


class Ender:
    """Answers, each time that a job steps, what the workers hold: it ends a worker that holds one of these lines."""

    def __init__(self, runner, cluster, fatal=(), broken=False):
        self.cluster, self.fatal, self.broken, self.deaths = cluster, fatal, broken, []
        step, runner.step = runner.step, lambda: (self.answer(), step())[1]

    def answer(self):
        for actor in self.cluster.actors:
            held = list(actor.lines)
            if any(index in self.fatal for index in held):
                self.deaths.append(held)
                for index in held:
                    _, future = actor.lines.pop(index)
                    if self.broken:
                        future.set_result(Broken("no memory"))
                    else:
                        future.set_exception(RuntimeError("the node died\nlong story"))
            else:
                for index in held:
                    finish(actor, index)


def test_a_worker_for_each_node_that_lives(started):
    assert len(started([info()] * 2)[1].actors) == 2
    assert len(started([info()] * 5, cpus=16)[1].actors) == 5  # of the smallest node's 4 CPUs each
    assert len(started([info()] * 3, workers=3)[1].actors) == 3
    with pytest.raises(RequestError, match="no node of the cluster has a GPU"):
        started([], cuda=True)
    with pytest.raises(RequestError, match="no node of the cluster has 99 CPUs"):
        started([], threads=99)


@pytest.mark.parametrize("broken", [False, True])
def test_lines_of_a_lost_worker_go_to_others_and_come_once(started, broken):
    runner, cluster = started([info()] * 9)
    assert runner.begin() == CPU
    fatal = {2}
    ender, results = Ender(runner, cluster, fatal, broken), Results()
    lose = runner._lose

    def once(*arguments):  # the line is not to blame: its next worker lives
        fatal.clear()
        return lose(*arguments)

    runner._lose = once
    Job(runner, results).run(Given(["x"] * 40))
    assert len(cluster.killed) == 1 and len(cluster.actors) == 3
    assert runner.tokens == 80
    assert ender.cluster.given.count((cluster.killed[0], 2)) == 1


def test_an_answer_of_a_lost_worker_counts_no_more(started):
    runner, cluster = started([info()] * 3, workers=1)
    runner.begin()
    first, second = Given(["x", "y"])
    assert runner.start(first) is None and runner.start(second) is None
    (actor,) = cluster.actors
    _, future = actor.lines.pop(0)
    future.set_exception(RuntimeError("lost"))
    finish(actor, 1)  # it comes late
    assert runner.step() == []
    runner.step()
    (other,) = cluster.actors[1:]
    assert sorted(other.lines) == [0, 1]
    for index in (0, 1):
        finish(other, index)
    assert [outcome.result["index"] for outcome in runner.step()] == [0, 1]


def test_a_line_that_ends_its_workers_is_found_and_the_others_are_served(started):
    runner, cluster = started([info()] * 20, slots=3)
    runner.begin()
    ender = Ender(runner, cluster, fatal={5})
    results = Results()
    Job(runner, results, skip_errors=True).run(Given(["x"] * 60))
    (bad,) = [result for result in results.results.values() if "error" in result]
    assert bad["index"] == 5 and "lost 4 times: the node died" in bad["error"]
    assert len(cluster.killed) == 4
    assert len(ender.deaths[0]) > 1 and ender.deaths[2:] == [[5], [5]]  # alone in the end


def test_without_skip_errors_such_a_line_ends_the_job(started):
    runner, cluster = started([info()] * 20)
    runner.begin()
    Ender(runner, cluster, fatal={1})
    with pytest.raises(EngineError, match="prompt 2: the worker that ran it was lost 4 times"):
        Job(runner, Results()).run(Given(["x"] * 9))


def test_workers_with_other_texts_are_refused(started):
    runner, _ = started([info(digest="other"), info()])
    with pytest.raises(RequestError, match="a has another model or tokenizer"):
        runner.begin()
    runner, _ = started([info(), info("b", settings={"device": "cuda"})])
    with pytest.raises(RequestError, match=r"b runs the model as .*cuda.*, and a as .*cpu"):
        runner.begin()


def test_workers_that_cannot_start_end_the_job(started):
    runner, _ = started([RuntimeError("no memory\nmore")] * 5)
    with pytest.raises(EngineError, match=r"workers end before their model is loaded: no memory$"):
        runner.begin()
    runner, _ = started([Cluster.exceptions.RayTaskError()] * 2)
    with pytest.raises(RequestError, match="the worker's own words"):
        runner.begin()

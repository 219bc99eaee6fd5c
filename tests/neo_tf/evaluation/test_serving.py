"""Many requests at once on the demo model: the workload, percentiles on a clock of steps, figures that agree."""

import functools
import json
import statistics
from dataclasses import replace

import pytest
from conftest import run_cli

from neo_tf.cli.benchmark_plot import draw_figures
from neo_tf.errors import EngineError, RequestError
from neo_tf.evaluation import serving
from neo_tf.evaluation.serving import ServingSettings, Task, benchmark_serving, make_workload, medians, serve, summary
from neo_tf.progress import no_progress
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine

N_CTX = 512  # of the demo model
FIGURES = {"seconds", "tokens_per_s"} | {
    f"{name}_p{rank}_ms" for name in ("first_token", "inter_token") for rank in (50, 99)
}


@pytest.fixture(scope="module")
def settings():
    return ServingSettings.within(N_CTX, requests=5, slots=3, rounds=2)


@pytest.fixture(scope="module")
def figures(demo_folder, settings):
    return benchmark_serving(demo_folder, settings)


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command; returns its exit status, standard output and standard error."""
    return functools.partial(run_cli, monkeypatch, capfd, "benchmark")


class Clock:
    """The clock that is measured by: it moves by so many seconds with each call of a method."""

    def __init__(self, monkeypatch):
        self.now, self._patch = 0, monkeypatch
        monkeypatch.setattr(serving.time, "perf_counter", lambda: self.now)

    def moves_with(self, owner, name, seconds):
        inner = getattr(owner, name)

        def call(*arguments, **named):
            self.now += seconds
            return inner(*arguments, **named)

        self._patch.setattr(owner, name, call)


@pytest.mark.parametrize("n_ctx, prompts, news", [(2048, (32, 512), (16, 256)), (512, (32, 341), (16, 170))])
def test_a_workload_is_the_same_every_time_and_reaches_its_limits(demo_folder, n_ctx, prompts, news):
    config = replace(Session(demo_folder).config, n_ctx=n_ctx)
    workload = make_workload(3000, config)
    assert workload == make_workload(3000, config)
    # No prompt of another round is in the shared-prefix cache; all else is the same.
    other = make_workload(3000, config, 1)
    assert not {tuple(task.prompt) for task in workload} & {tuple(task.prompt) for task in other}
    sizes = [[(len(task.prompt), task.new_tokens) for task in tasks] for tasks in (workload, other)]
    assert sizes[0] == sizes[1]
    for sizes, limits in (([len(task.prompt) for task in workload], prompts), ([t.new_tokens for t in workload], news)):
        assert (min(sizes), max(sizes)) == limits
    ids = {token for task in workload for token in task.prompt}
    assert ids == set(range(config.n_vocab))


@pytest.mark.parametrize("n_ctx", [64, 65, 100, 767])
def test_a_workload_fits_a_short_context(demo_folder, n_ctx):
    config = replace(Session(demo_folder).config, n_ctx=n_ctx)
    assert all(len(task.prompt) + task.new_tokens <= n_ctx for task in make_workload(200, config))


def test_percentiles_are_over_requests_and_over_pairs_of_neighbours():
    # 101 requests: the first tokens come after 1, 2, ... 101 s. A hundred pairs are 0.25 s apart, and one is 9 s.
    times = [[1.0 + number, 1.25 + number] for number in range(100)] + [[101.0, 110.0]]
    figures = summary(times)
    assert figures["seconds"] == 110 and figures["tokens_per_s"] == pytest.approx(202 / 110)
    assert figures["first_token_p50_ms"] == pytest.approx(51_000)
    assert figures["first_token_p99_ms"] == pytest.approx(100_000)
    assert figures["inter_token_p50_ms"] == figures["inter_token_p99_ms"] == pytest.approx(250)
    assert summary([[2.0], [1.0, 4.0]])["inter_token_p99_ms"] == pytest.approx(3000)


def test_times_run_from_the_submission_of_all(demo_folder, monkeypatch):
    engine, calls = Engine(Session(demo_folder, slots=2)), []
    clock = Clock(monkeypatch)
    clock.moves_with(engine, "step", 1)
    workload = [Task([5, 6, 7], 4), Task([8, 9], 3), Task([10], 2)]
    # A prompt's step is its first decode step, too: n tokens take n - 1 steps, one after the other.
    assert serve(engine, workload, "alone", calls.append) == [[1, 1, 2, 3], [4, 4, 5], [6, 6]]
    assert calls == [1, 1, 1] and clock.now == 6
    clock.now = 0
    # The second prompt waits for the first one's; the third waits for a slot.
    assert serve(engine, workload, "together") == [[1, 1, 2, 3], [2, 2, 3], [4, 4]]


def test_requests_are_greedy_and_have_their_full_length(demo_folder):
    engine, workload = Engine(Session(demo_folder, slots=2)), [Task([5, 6, 7], 40), Task([8, 9], 30)]
    assert [len(own) for own in serve(engine, workload, "together")] == [40, 30]


def test_figures_agree_with_each_other_and_with_the_settings(figures, settings, demo_folder):
    workload = make_workload(5, Session(demo_folder).config)
    total = sum(task.new_tokens for task in workload)
    assert figures["workload"]["new_tokens"] == total and figures["workload"]["requests"] == 5
    assert figures["workload"]["prompt_tokens"] == sum(len(task.prompt) for task in workload)
    for way in ("alone", "together"):
        samples = figures["samples"][way]
        assert len(samples) == 2 and set(figures[way]) == FIGURES
        assert all(figures[way][name] == statistics.median(one[name] for one in samples) for name in FIGURES)
        for one in samples:
            assert one["tokens_per_s"] == pytest.approx(total / one["seconds"])
            assert 0 < one["first_token_p50_ms"] < one["first_token_p99_ms"] < 1000 * one["seconds"]
    alone, together = (figures["samples"][way] for way in ("alone", "together"))
    ratios = [two["tokens_per_s"] / one["tokens_per_s"] for one, two in zip(alone, together, strict=True)]
    assert figures["ratio"] == pytest.approx(statistics.median(ratios))
    assert [row["batch"] for row in figures["engine"]] == [1, 3]
    for number, row in enumerate(figures["engine"]):
        samples = [rows[number] for rows in figures["samples"]["engine"]]
        assert row == {"batch": row["batch"], **medians(samples)}
        assert all(one["share"] == pytest.approx(one["own_ms"] / one["ms_per_step"]) for one in samples)
        assert all(0 < one["share"] < 1 for one in samples)
    assert figures["peak_memory_bytes"] > figures["model"]["weights_bytes"]
    assert figures["settings"]["slots"] == 3 and figures["settings"]["threads"] >= 1


def test_the_engines_own_time_is_all_but_the_sessions(demo_folder, settings, monkeypatch):
    rounds = serving._ServingRounds(demo_folder, settings, [[Task(list(range(32)), 2)]], no_progress)
    clock = Clock(monkeypatch)
    clock.moves_with(rounds._engines["together"], "step", 1)
    clock.moves_with(Session, "decode", 3)
    clock.moves_with(rounds.session, "prefill", 100)  # before the steps that are measured
    assert rounds._own_time(3) == {"ms_per_step": 4000, "own_ms": 1000, "share": 0.25}
    assert not rounds._engines["together"].step()  # nothing is left behind


def test_a_step_that_fails_ends_it(demo_folder, settings, monkeypatch):
    rounds = serving._ServingRounds(demo_folder, settings, [[Task(list(range(32)), 2)]], no_progress)
    monkeypatch.setattr(rounds.session, "prefill", lambda *_, **__: [][0])
    with pytest.raises(EngineError, match="index out of range"):
        rounds._own_time(3)


def test_another_way_begins_each_round_and_progress_is_as_announced(demo_folder, settings, monkeypatch):
    ways, prompts, calls, inner = [], [], [], serve

    def noted(engine, workload, way, progress=None):
        if progress:
            ways.append((way, engine.session.slots))
            prompts.append([task.prompt for task in workload])
        return inner(engine, workload, way, progress)

    monkeypatch.setattr(serving, "serve", noted)
    benchmark_serving(demo_folder, settings, calls.append)
    assert ways == [("together", 3), ("alone", 1), ("alone", 1), ("together", 3)]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert calls == [1] * settings.work


def test_defaults():
    assert [ServingSettings.within(2048, requests=count).slots for count in (4, 16, 64)] == [4, 16, 16]
    with pytest.raises(RequestError, match="n_ctx is 63"):
        ServingSettings.within(63, requests=4)


def test_the_command_writes_json_and_a_plot_and_prints_tables(run, demo_folder, tmp_path):
    pytest.importorskip("matplotlib")
    report, drawn = tmp_path / "report.json", tmp_path / "plot.svg"
    arguments = ("--requests", 3, "--slots", 2, "--rounds", 1, "--json", report, "--plot", drawn)
    code, out, err = run(demo_folder, *arguments)
    assert (code, err) == (0, "")
    figures = json.loads(report.read_text())
    for way in ("alone", "together"):
        assert f"{figures[way]['tokens_per_s']:,.1f}" in out and f"{figures[way]['inter_token_p99_ms']:,.2f} ms" in out
    assert f"{figures['ratio']:.2f} times" in out and f"{figures['engine'][1]['share']:.1%}" in out
    assert drawn.read_bytes().startswith(b"<?xml")


def test_the_plot_shows_the_figures(figures, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # text stays text
        draw_figures(figures, tmp_path / "plot", ".svg")
    text = (tmp_path / "plot").read_text()
    for way in ("alone", "together"):
        assert f">{figures[way]['tokens_per_s']:.3g}<" in text
        assert f">{figures[way]['first_token_p99_ms'] / 1000:.3g}<" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--requests", "0"], "requests must be at least 1"),
        (["--requests", "4", "--slots", "0"], "slots must be at least 1"),
        (["--requests", "4", "--rounds", "0"], "rounds"),
        (["--requests", "4", "--contexts", "8"], "--contexts and --requests"),
        (["--requests", "4", "--new-tokens", "8"], "--new-tokens and --requests"),
        (["--slots", "4"], "--slots needs --requests"),
        (["--requests", "4", "--plot", "plot.pdf"], ".svg"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, demo_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neo_tf.evaluation.speed.memory_bandwidth", lambda threads: pytest.fail("it began to measure"))
    monkeypatch.setattr(serving, "serve", lambda *_: pytest.fail("it began to measure"))
    code, out, err = run(demo_folder, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []

"""The GPU suite itself, as far as it can be tested without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import check_parity
import dummy_cuda
import numpy as np
import plan
import pytest
import report
import start
import suite
from conftest import GOLDEN, GOLDEN_NAMES
from result import Result

from neo_tf.runtime.device.session import Session

GPU = Path(__file__).parent

# ---- where no GPU starts


def test_without_a_gpu_it_says_so_and_exits_with_2(tmp_path):
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, GPU / "suite.py", "--report", tmp_path / "report"]
    done = subprocess.run(command, capture_output=True, text=True, env=hidden)
    assert done.returncode == 2
    assert done.stdout.startswith("No GPU starts here: ") and done.stdout.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_no_step_runs_where_no_gpu_starts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["suite.py"])
    monkeypatch.setattr(start, "why_no_gpu", lambda: "it is a toaster")
    monkeypatch.setattr(suite, "run", lambda *_: pytest.fail("it ran"))
    assert suite.main() == 2
    assert capsys.readouterr().out == "No GPU starts here: it is a toaster\n"


@pytest.mark.skipif(dummy_cuda.why_not() is not None, reason=str(dummy_cuda.why_not()))
def test_a_gpu_is_there_where_a_session_starts_and_does_not_pass_by_starting(tmp_path):
    """ONNX Runtime starts on the dummy libraries, whose kernels compute nothing: parity must not hold."""
    libraries = dummy_cuda.build(tmp_path)
    code = "import runpy, sys, dummy_cuda; dummy_cuda.load(sys.argv.pop(1)); "
    code += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    path = os.pathsep.join(map(str, (GPU.parents[1], GPU.parent, GPU)))

    def run(script, *arguments):
        command = [sys.executable, "-c", code, libraries, GPU / script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})

    started = run("start.py")
    assert started.returncode == 0, started.stdout + started.stderr
    done = run("check_parity.py", "golden", "--only", "tiny-global", "--precisions", "fp16", "--result", tmp_path / "r")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cosine" in json.loads((tmp_path / "r").read_text())["failures"][0]


# ---- the plan


def test_the_plan_fits_its_time_and_covers_what_it_must(tmp_path):
    steps = plan.steps(tmp_path)
    assert sum(step.seconds for step in steps) <= plan.SECONDS - 20  # the start and the report take some
    assert len({step.name for step in steps}) == len(steps)
    made = {preparation.name for preparation in plan.preparations(tmp_path)}
    assert {step.needs for step in steps} - {None} == made == {"125M", "1.3B", "2.7B"}
    words = " ".join(str(word) for step in steps for word in step.command)
    assert all(precision in words for precision in ("fp16", "bf16", "int8", "int4"))
    scripts = [Path(word) for step in steps for word in step.command if str(word).endswith(".py")]
    scripts += [Path(word) for made in plan.preparations(tmp_path) for word in made.command if word.endswith(".py")]
    assert len(scripts) >= 8 and all(script.is_file() for script in scripts)


# ---- running steps


def step(name, code, seconds=60, **options):
    """A step that runs some Python code, in which `path` is the file of its result."""
    command = (sys.executable, "-c", f"import sys; path = sys.argv[-1]\n{code}")
    return plan.Step(name, f"runs {name}", command, seconds, **options)


def writing(**found):
    """Code that writes a result."""
    text = json.dumps({"checks": 1, "failures": [], "figures": {}, "notes": []} | found)
    return f"print('at work'); open(path, 'w').write({text!r})"


def run(steps, tmp_path, preparations=(), seconds=100):
    status = suite.run(steps, list(preparations), tmp_path / "report", tmp_path, seconds)
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (tmp_path / "report" / "report.md").is_file()
    assert found["passed"] == (status == 0)
    return status, {step["name"]: step for step in found["steps"]}


def test_it_passes_where_every_step_does(tmp_path, capsys):
    status, found = run([step("one", writing(checks=3)), step("two", "", has_result=False)], tmp_path)
    assert status == 0 and found["one"]["checks"] == 3
    assert {name: step["outcome"] for name, step in found.items()} == {"one": "passed", "two": "passed"}
    printed = capsys.readouterr().out
    assert "one: runs one\n  at work\none: passed after" in printed


@pytest.mark.parametrize(
    "code, options, outcome",
    [
        (writing() + "; sys.exit(3)", {}, "failed"),
        (writing(failures=["logits are wrong"]), {}, "failed"),  # even if it exits with 0
        (writing(checks=0), {}, "failed"),  # nothing was checked
        ("print('nothing is written')", {}, "failed"),
        ("import os; os.abort()", {"has_result": False}, "failed"),
        ("import time; time.sleep(60)", {"seconds": 1}, "timed out"),
        (writing(), {"needs": "model"}, "failed"),  # its preparation fails
    ],
)
def test_a_step_that_does_not_pass_fails_the_suite(code, options, outcome, tmp_path):
    preparations = [plan.Preparation("model", (sys.executable, "-c", "raise SystemExit('no space')"))]
    steps = [step("wrong", code, **options), step("right", writing())]
    status, found = run(steps, tmp_path, preparations if "needs" in options else ())
    assert status == 1
    assert found["wrong"]["outcome"] == outcome and found["right"]["outcome"] == "passed"
    if "needs" in options:
        assert found["wrong"]["last_lines"] == ["model could not be made", "no space"]
    assert "FAILED: wrong, after" in (tmp_path / "report" / "report.md").read_text()


def test_steps_without_time_are_not_passed_over(tmp_path):
    status, found = run([step("slow", "import time; time.sleep(60)"), step("late", writing())], tmp_path, seconds=1)
    assert status == 1
    assert found["slow"]["outcome"] == "timed out" and found["late"]["outcome"] == "not run"


def test_no_steps_are_no_success(tmp_path):
    assert run([], tmp_path)[0] == 1


def test_pytest_fails_where_it_selects_nothing(tmp_path):
    """The step of the engine's tests: its marker must select some."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    command = (sys.executable, "-m", "pytest", "-q", "-k", "no_such_test", str(tmp_path))
    status, _ = run([plan.Step("tests", "none", command, 60, has_result=False)], tmp_path)
    assert status == 1


# ---- the report


def made_up(times_the_read=1.4, tokens_per_s=900.0, batch=20_000.0):
    ours = {
        "tokens_per_s": tokens_per_s,
        "times_the_read": times_the_read,
        "first_token_ms": 4.0,
        "batches": {"1": tokens_per_s, "8": 6000.0, "32": batch},
    }
    theirs = {"tokens_per_s": 100.0, "batches": {"1": 100.0, "8": 700.0, "32": 2500.0}}
    figures = {"bytes_per_s": 3e12, "neo-tf fp16": ours, "neo-tf int8": ours, "transformers fp16": theirs}
    shared = {"about": "a step", "outcome": "passed", "seconds": 50.0, "checks": 3, "last_lines": [], "notes": []}
    steps = [shared | {"name": f"speed at {size}", "figures": figures} for size in ("125M", "1.3B", "2.7B")]
    return {"passed": True, "seconds": 300.0, "machine": {"GPU": "a card, 80 GB"}, "steps": steps}


def test_the_report_has_figures_and_goals(tmp_path):
    report.write(made_up(), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert len(found["goals"]) == 8 and all(goal["reached"] for goal in found["goals"])
    text = (tmp_path / "report.md").read_text()
    assert "- GPU: a card, 80 GB" in text and "passed, after 300 seconds" in text
    assert "| 2.7B, neo-tf int8 | 900.0 | 6000 | 20000 | 4.0 ms | 1.40 |" in text
    assert "| 2.7B, transformers fp16 | 100.0 | 700 | 2500 |  |  |" in text


def test_goals_that_are_missed_or_not_measured_are_said(tmp_path):
    missed = report.goals(made_up(times_the_read=1.7, tokens_per_s=250.0, batch=4000.0))
    assert [goal["reached"] for goal in missed] == [False] * 8
    none = report.goals(made_up() | {"steps": []})
    assert [goal["reached"] for goal in none] == [None] * 5
    report.write(made_up() | {"steps": []}, tmp_path)
    assert (tmp_path / "report.md").read_text().count("not measured") == 5


# ---- parity


def test_parity_holds_on_the_cpu_and_is_not_vacuous(tmp_path, monkeypatch):
    def failures(name="tiny-global-local"):
        result = Result()
        check_parity.check([name], GOLDEN.__truediv__, ["fp16"], "cpu", result, tmp_path)
        assert result.checks == 1
        return result.failures

    assert failures() == []
    right = Session.decode
    with monkeypatch.context() as patch:  # every step at the position before: the last token is overwritten
        patch.setattr(Session, "decode", lambda self, first, ids, past, *more: right(self, first, ids, past - 1, *more))
        assert "step by step" in failures()[0]


def test_wrong_choices_are_seen():
    class Decoded:
        def __init__(self, ids, logprobs):
            self.top_ids = ids
            self.top_logprobs = logprobs

    logits = np.log(np.array([[0.1, 0.6, 0.3]], np.float32))
    right = Decoded(np.array([[1, 2]]), np.log(np.array([[0.6, 0.3]], np.float32)))
    assert check_parity.wrong_choice(right, logits) is None
    assert check_parity.wrong_choice(Decoded(None, None), logits) is None
    assert "log-probability" in check_parity.wrong_choice(Decoded(np.array([[1, 0]]), right.top_logprobs), logits)
    assert "log-probability" in check_parity.wrong_choice(Decoded(right.top_ids, right.top_logprobs + 0.1), logits)


def test_models_of_the_published_head_sizes(tmp_path):
    for name, (size, _) in check_parity.HEADS.items():
        params = json.loads(check_parity.head_model(name, tmp_path).read_text())
        assert params["n_embd"] // params["n_head"] == size
        assert params["n_ctx"] - check_parity.STEPS > 4 * params["local_attention_radius"]
    assert len(GOLDEN_NAMES) == 17

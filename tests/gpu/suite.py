"""Everything that only a GPU can tell: parity, the engine's tests, memory and speed, in ten minutes.

    python tests/gpu/suite.py [--report FOLDER]

Prints as it goes, and writes report.md and report.json. Exits with 0 where every step has passed, with 1 where one has
not (a step for which no time was left is one of them), and with 2 where no GPU starts.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import plan as gpu_plan
import report as gpu_report
import start

ROOT = Path(__file__).parents[2]
PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"
_KEPT = 30  # lines of a step's output for the report
_PACKAGES = ("neo-tf", "onnxruntime-gpu", "torch", "transformers", "optimum", "numpy")


class Process:
    """A process in a group of its own, whose output is printed as it comes.

    Args:
        command: The command.
        environment: More variables for it.
        prefix: What stands before each of its lines.
    """

    def __init__(self, command, environment, prefix):
        path = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, args=(prefix,), daemon=True)
        self._reader.start()

    def _read(self, prefix):
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            print(f"{prefix}{line.rstrip()}", flush=True)

    def wait(self, seconds):
        """Waits for its end; returns its exit status, or None where it has not ended in time."""
        try:
            status = self._process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(10)
        return status

    def stop(self):
        """Ends it, and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Suite:
    """Runs steps one after the other, within a time.

    Args:
        steps: The Steps of plan.py.
        preparations: Its Preparations, which begin at once.
        work: The folder for what steps and preparations write.
        seconds: The time for all of them.
    """

    def __init__(self, steps, preparations, work, seconds):
        self._steps = steps
        self._work = work
        self._end = time.monotonic() + seconds
        self._preparing = {made.name: Process(made.command, {}, "    ") for made in preparations}

    def run(self):
        """Runs all steps; returns what the report has of each."""
        try:
            return [self._run(number, step) for number, step in enumerate(self._steps)]
        finally:
            for process in self._preparing.values():
                process.stop()

    def _run(self, number, step):
        begin = time.monotonic()
        end = min(begin + step.seconds, self._end)
        found = {"name": step.name, "about": step.about, "last_lines": []}
        print(f"{step.name}: {step.about}", flush=True)
        if begin >= self._end:
            found |= {"outcome": NOT_RUN, "last_lines": ["no time was left"]}
        elif step.needs is not None and (failure := self._wait_for(step.needs, end)):
            found |= failure
        else:
            found |= self._run_process(number, step, end)
        found["seconds"] = time.monotonic() - begin
        print(f"{step.name}: {found['outcome']} after {found['seconds']:.0f} seconds\n", flush=True)
        return found

    def _wait_for(self, name, end):
        """Waits for a preparation; returns what went wrong with it, or None."""
        process = self._preparing[name]
        status = process.wait(end - time.monotonic())
        if status == 0:
            return None
        outcome = TIMED_OUT if status is None else FAILED
        return {"outcome": outcome, "last_lines": [f"{name} could not be made", *process.lines[-_KEPT:]]}

    def _run_process(self, number, step, end):
        result = self._work / f"step{number}.json"
        command = [*step.command, "--result", str(result)] if step.has_result else step.command
        process = Process(command, step.environment, "  ")
        try:
            status = process.wait(end - time.monotonic())
        finally:
            process.stop()
        found = {"last_lines": process.lines[-_KEPT:], "status": status}
        said = json.loads(result.read_text()) if result.is_file() else {}
        found |= said
        if status is None:
            return found | {"outcome": TIMED_OUT}
        # A step that checked nothing has shown nothing.
        proven = bool(said.get("checks")) and not said["failures"] if step.has_result else True
        return found | {"outcome": PASSED if status == 0 and proven else FAILED}


def describe_machine():
    """{"GPU": its name and memory, "driver", a package: its version, ...}, as far as they are known."""
    machine = {}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    if said.count(",") >= 2:
        name, memory, driver = (part.strip() for part in said.splitlines()[0].split(",")[:3])
        machine |= {"GPU": f"{name}, {memory}", "driver": driver}
    for package in _PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "not installed"
    return machine | {"python": sys.version.split()[0]}


def run(steps, preparations, folder, work, seconds=gpu_plan.SECONDS):
    """Runs steps, writes the report, and returns the exit status.

    Args:
        steps, preparations: See plan.py.
        folder: The report's folder; made if it is not there.
        work: A folder for temporary files.
        seconds: The time for all of it.
    """
    begin = time.monotonic()
    found = Suite(steps, preparations, work, seconds).run()
    passed = bool(found) and all(step["outcome"] == PASSED for step in found)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"passed": passed, "seconds": time.monotonic() - begin, "machine": describe_machine(), "steps": found}
    gpu_report.write(report, folder)
    print((folder / "report.md").read_text(encoding="utf-8"), flush=True)
    return 0 if passed else 1


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--report", type=Path, default=Path("build/gpu"), help="the report's folder (default: build/gpu)"
    )
    arguments = parser.parse_args()
    why = start.why_no_gpu()
    if why:
        print(f"No GPU starts here: {why}")
        return start.NO_GPU
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        return run(gpu_plan.steps(work), gpu_plan.preparations(work), arguments.report, work)


if __name__ == "__main__":
    sys.exit(main())

"""neo-tf against its peers: each in its own environment and process, in turn, in one run, as ratios.

    python benchmarks/compare.py --ours fp32=ONNX_DIR --ours int8=ONNX_DIR \\
        --peer optimum:fp32=PEERS/bin/python:EXPORT_DIR --peer openvino:int8=OV/bin/python:OPENVINO_DIR

docs/benchmarks.md says how the peers' environments and models are made. While one system works, the others are idle.
A peer is compared with our folder of the same precision where one is given, else with the first one.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neo_tf.cli.benchmark_report import ReportFiles
from neo_tf.cli.console import count_progress, results, summary_table
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.machine import describe_machine, memory_bandwidth, peak_memory
from neo_tf.evaluation.traffic import bytes_per_token
from neo_tf.onnx_folder import DECODER, OnnxFolder
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.sizes import readable_bytes

PRECISIONS = ("fp32", "bf16", "int8", "int4")
PEERS = ("transformers", "optimum", "openvino")


@dataclass(frozen=True)
class Task:
    """What every system does: `batch` prompts of `prompt` tokens, continued by `count` new ones.

    Where `after_first`, the time is that of a token after the first one; else that of the whole.
    """

    title: str
    prompt: int
    count: int
    batch: int = 1
    after_first: bool = False

    def time(self, answer):
        """Seconds that count."""
        if self.after_first:
            return (answer["seconds"] - answer["first"]) / (self.count - 1)
        return answer["seconds"]

    def show(self, seconds):
        """Tokens a second of a continuation; milliseconds of a prefill."""
        if self.count == 1:
            return f"{seconds * 1e3:.0f} ms"
        tokens = 1 if self.after_first else self.batch * self.count
        return f"{tokens / seconds:.1f}/s"


TASKS = {
    "decode": Task("decode 32+128", 32, 128),
    "prefill512": Task("prefill 512", 512, 1),
    "prefill1024": Task("prefill 1024", 1024, 1),
    "context1500": Task("at context 1500", 1500, 33, after_first=True),
    "batch8": Task("batch 8, 32+128", 32, 128, batch=8),
}


@dataclass
class System:
    """One system: how it is started, and what was measured."""

    kind: str
    precision: str
    python: str
    folder: str
    times: dict = field(default_factory=dict)  # {task: [seconds, one a round]}
    tokens: list = field(default_factory=list)  # of the last decode
    versions: dict = field(default_factory=dict)
    load_s: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def name(self):
        """As it is shown."""
        return f"{self.kind} {self.precision}"


class Worker:
    """A system in its own process."""

    def __init__(self, system, threads, batch):
        self.system = system
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (close closes it)
        script = Path(__file__).with_name("workers.py")
        environment = dict(os.environ)
        if system.kind != "neo-tf":
            environment.pop("PYTHONPATH", None)  # of this environment
        settings = (system.kind, system.folder, system.precision, threads, batch)
        self._start = time.perf_counter()
        self.process = subprocess.Popen(
            [system.python, str(script), *map(str, settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def load(self):
        """Waits until the model is there."""
        self.system.versions = self._answer()["versions"]
        self.system.load_s = time.perf_counter() - self._start

    def ask(self, **task):
        """The answer to a task: see workers.main."""
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def run(self, prompts, count, first):
        """{"seconds", "first", "tokens"} of one generation."""
        answer = self.ask(prompts=prompts, count=count, first=first)
        if [len(tokens) for tokens in answer["tokens"]] != [count] * len(prompts):
            raise NeoTFError(f"{self.system.name} did not give {count} tokens for each prompt")
        return answer

    def close(self):
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self._errors.close()

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self._errors.seek(0)
        raise NeoTFError(f"{self.system.name} ended early: {self._errors.read().strip()[-2000:]}")


def main():
    """Parses, runs, prints."""
    run_and_show(parse(), compare, show)


def run_and_show(options, compare, show):
    """Calls compare(options), writes its report to options.json where that is given, and shows it."""
    with ReportFiles.open(options.json) as files:
        report = compare(options)
        files.write(report)
    show(report)


def make_parser(description, peers, rounds):
    """A parser of what every comparison takes: systems, rounds, threads, and a file for the report."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ours",
        action="append",
        required=True,
        type=parse_ours,
        metavar="PRECISION=ONNX_DIR",
        help="a folder of neo-tf and the precision to run; give it several times for several folders",
    )
    parser.add_argument(
        "--peer",
        "-p",
        action="append",
        default=[],
        type=lambda text: parse_peer(text, peers),
        metavar="KIND:PRECISION=PYTHON:MODEL_DIR",
        help=f"a peer to compare with: KIND is {', '.join(peers)}; PRECISION is {', '.join(PRECISIONS)}; PYTHON is the "
        "python of the peer's environment",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help="the number of rounds; the medians are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="the number of threads of every system; by default each one chooses"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser


def parse():
    """Parses the command line."""
    parser = make_parser(__doc__, PEERS, rounds=5)
    parser.add_argument("--tasks", default=",".join(TASKS), help="the tasks to run (default: %(default)s)")
    options = parser.parse_args()
    options.tasks = options.tasks.split(",")
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def parse_ours(text):
    """The System of PRECISION=ONNX_DIR."""
    precision, _, folder = text.partition("=")
    return _system("neo-tf", precision, sys.executable, folder)


def parse_peer(text, kinds):
    """The System of KIND:PRECISION=PYTHON:MODEL_DIR."""
    name, _, place = text.partition("=")
    kind, _, precision = name.partition(":")
    if kind not in kinds:
        raise argparse.ArgumentTypeError(f"unknown kind {kind!r} in {text!r} (known: {', '.join(kinds)})")
    python, _, folder = place.partition(":")
    return _system(kind, precision, python, folder)


def _system(kind, precision, python, folder):
    if precision not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"unknown precision {precision!r} (known: {', '.join(PRECISIONS)})")
    if not Path(folder).is_dir() or not Path(python).is_file():
        raise argparse.ArgumentTypeError(f"no such folder {folder!r}, or no such python {python!r}")
    return System(kind, precision, python, folder)


def compare(options):
    """Runs all systems in turn and returns the figures, for JSON."""
    systems = [*options.ours, *options.peer]
    tasks = {name: TASKS[name] for name in options.tasks}
    config = json.loads((Path(options.ours[0].folder) / "config.json").read_text())
    prompts = np.random.default_rng(0).integers(0, config["vocab_size"], (8, 2048))
    bandwidth = []
    threads = options.threads or physical_cores()

    def run(worker, task, count):
        time.sleep(0.1)  # the system before lets go of the cores: threads spin for a moment after a step
        return worker.run(prompts[: task.batch, : task.prompt].tolist(), count, task.after_first)

    work = len(systems) * len(tasks) * (options.rounds + 1)
    largest = max(task.batch for task in tasks.values())
    with loaded(systems, options.threads, largest) as workers, count_progress("comparing", work) as progress:
        for worker in workers:  # every shape once: kernels are chosen, buffers made
            for task in tasks.values():
                run(worker, task, min(task.count, 4))
                progress(1)
        for number in range(options.rounds):
            for name, task in tasks.items():
                for worker in in_turn(workers, number):
                    answer = run(worker, task, task.count)
                    worker.system.times.setdefault(name, []).append(task.time(answer))
                    if name == "decode":
                        worker.system.tokens = answer["tokens"][0]
                    progress(1)
            bandwidth.append(memory_bandwidth(threads))
    speed = statistics.median(bandwidth)
    return {
        "machine": describe_machine(),
        "settings": {"rounds": options.rounds, "threads": threads},
        "bandwidth": {"bytes_per_s": speed, "samples": bandwidth},
        "systems": [_figures(system, options.ours, speed) for system in systems],
    }


def find_base(system, ours):
    """Our system that a peer is compared with: the one of the same precision, or else the first one."""
    return next((other for other in ours if other.precision == system.precision), ours[0])


def describe_system(system):
    """The figures of a system that every comparison reports."""
    return {name: getattr(system, name) for name in ("name", "folder", "versions", "load_s", "peak_memory_bytes")}


@contextlib.contextmanager
def loaded(systems, threads, batch):
    """Yields a Worker for each system, with its model loaded. At the end, notes their memory and closes them."""
    with contextlib.ExitStack() as stack:
        workers = []
        for system in systems:
            workers.append(Worker(system, threads, batch))
            stack.callback(workers[-1].close)
            workers[-1].load()
        yield workers
        for worker in workers:
            worker.system.peak_memory_bytes = peak_memory(worker.process.pid)


def in_turn(workers, number):
    """The workers in the order of a round: each round begins with another one."""
    first = number % len(workers)
    return [*workers[first:], *workers[:first]]


def _figures(system, ours, speed):
    """The report of a system: medians over the rounds, and ratios as medians of each round's own ratio."""
    base = find_base(system, ours)
    figures = describe_system(system)
    figures["seconds"] = {name: statistics.median(times) for name, times in system.times.items()}
    figures["samples"] = system.times
    if system in ours:
        read = bytes_per_token(OnnxFolder.read(system.folder).graph_path(system.precision, DECODER))
        figures["bytes_per_token"] = read
        if "decode" in system.times:  # the prompt's time is in it
            figures["share_of_floor"] = read / speed / (figures["seconds"]["decode"] / TASKS["decode"].count)
        return figures
    figures["against"] = base.name
    figures["ratio"] = {
        name: statistics.median(theirs / mine for theirs, mine in zip(times, base.times[name], strict=True))
        for name, times in system.times.items()
    }
    if system.precision == base.precision == "fp32":
        figures["same_tokens"] = system.tokens == base.tokens
    return figures


def show(report):
    """Prints the table: each system's figures, and for a peer, how many times as fast neo-tf is."""
    titles = {name: TASKS[name].title for name in report["systems"][0]["seconds"]}
    show_systems(report, titles, lambda system, name: TASKS[name].show(system["seconds"][name]))
    for system in report["systems"]:
        if "same_tokens" in system:
            results.print(f"{system['name']}: {'the same tokens' if system['same_tokens'] else 'OTHER TOKENS'} as ours")
        if "share_of_floor" in system:
            read = readable_bytes(system["bytes_per_token"])
            share = system["share_of_floor"]
            results.print(f"{system['name']}: {read} a token, {share:.0%} of the floor, its prompt's time included")
    results.print(f"memory bandwidth {readable_bytes(report['bandwidth']['bytes_per_s'])}/s")


def show_systems(report, titles, cell):
    """Prints a table with a row for each system, and below a peer's row the ratios of our figures to its own.

    Args:
        report: {"systems", "settings"}: see compare.
        titles: {figure: title of its column}.
        cell: A function from a system and a figure to the figure's text.
    """
    table = summary_table("system", *titles.values(), "memory", "load")
    for system in report["systems"]:
        cells = [cell(system, name) for name in titles]
        memory = readable_bytes(system["peak_memory_bytes"]) if system["peak_memory_bytes"] else "not known"
        table.add_row(system["name"], *cells, memory, f"{system['load_s']:.1f} s")
        if "ratio" in system:
            ratios = [f"{system['ratio'][name]:.2f}x" for name in titles]
            table.add_row(f"  {system['against']} to it", *ratios, "", "")
    results.print(table)
    results.print(f"medians of {report['settings']['rounds']} rounds; ratios are medians of each round's own")


if __name__ == "__main__":
    try:
        main()
    except NeoTFError as error:
        sys.exit(f"error: {error}")

"""The fleet's simulator against the real server on this machine: the same requests at the same moments."""

import asyncio
from pathlib import Path

import numpy as np
from fleet_machine import Machine
from fleet_policies import POLICIES
from fleet_simulator import Arrival, simulate
from fleet_sizing import capacity
from fleet_steps import mean_steps, measure_steps
from http_clients import ServerProcess, TextTask, closed_loop, open_loop, text_tasks

from neo_tf.cli.console import count_progress
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.serving import make_workload
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.tokenizer import Tokenizer

TOLERANCE = 0.15
_RANKS = (50, 90, 99)
# What must agree. The time between tokens is shown beside it.
CHECKED = ("tokens_per_s", *(f"first_token_p{rank}_ms" for rank in _RANKS))


def against_server(options):
    """Measures the steps, runs the server, measures the steps again, and simulates the requests with the mean steps.

    Args:
        options: The command's options: see fleet.py.

    Returns:
        The measured steps (see measure_steps) and "runs": for each load, its figures "measured" and "simulated".

    Raises:
        NeoTFError: The server did not answer every request.
    """
    folder = OnnxFolder.read(Path(options.folder))
    tokenizer = Tokenizer(Path(options.folder))

    def workload(number):
        """Other words of the same lengths for each number: the shared-prefix cache knows none of them."""
        return text_tasks(make_workload(options.requests, folder.config), tokenizer, number)

    def steps():
        return measure_steps(options.folder, options.slots, options.threads, options.precision, progress)

    with count_progress("measuring steps and the server", None) as progress:
        before = steps()
        lengths = [(len(task.prompt), task.new_tokens) for task in workload(0)]
        rate = capacity(Machine.read(before["steps"], "this one"), lengths)
        gaps = np.random.default_rng(1).exponential(1, options.requests)
        runs = []
        for number, load in enumerate(options.loads):
            arrivals = (np.cumsum(gaps) / (load * rate)).tolist()
            tasks = workload(number)
            runs.append((load, arrivals, tasks, _through_server(options, before, tasks, arrivals)))
            progress(1)
        mean = mean_steps(before["steps"], steps()["steps"])
    rows = []
    for load, arrivals, tasks, real in runs:
        asked = [Arrival(at, len(task.prompt), task.new_tokens) for at, task in zip(arrivals, tasks, strict=True)]
        outcomes = simulate(Machine.read(mean, "this one"), 1, asked, POLICIES["round robin"]())
        paper = [(outcome.wait, outcome.end, outcome.pace or 0) for outcome in outcomes]
        new = sum(task.new_tokens for task in tasks)
        found = {"measured": _figures(real, new), "simulated": _figures(paper, new)}
        rows.append({"load": load, "requests_per_s": load * rate, **found})
    return {**before, "steps": mean, "requests": options.requests, "runs": rows}


def _through_server(options, measured, tasks, arrivals):
    """For each request the seconds to its first token, to its end from the beginning of all, and between its tokens."""
    serve = ["--slots", options.slots, "--threads", measured["settings"]["threads"], "--max-queue", len(tasks)]
    serve += ["--precision", measured["settings"]["precision"]]
    with ServerProcess(options.folder, *serve) as server:
        short = [TextTask(" a", [], 2 * options.slots)] * options.slots
        asyncio.run(closed_loop(server.url, short, options.slots))  # buffers are made
        answers = asyncio.run(open_loop(server.url, tasks, arrivals))
    if any(answer.status != 200 for answer in answers):
        raise NeoTFError("the server did not answer every request")
    start = min(answer.sent - arrival for answer, arrival in zip(answers, arrivals, strict=True))
    return [
        (answer.first_token, answer.ended - start, (answer.times[-1] - answer.times[0]) / max(task.new_tokens - 1, 1))
        for answer, task in zip(answers, tasks, strict=True)
    ]


def _figures(rows, new):
    waits, ends, paces = zip(*rows, strict=True)
    found = {"tokens_per_s": new / max(ends)}
    found |= {f"first_token_p{rank}_ms": 1e3 * float(np.percentile(waits, rank)) for rank in _RANKS}
    return found | {"between_tokens_p50_ms": 1e3 * float(np.percentile(paces, 50))}

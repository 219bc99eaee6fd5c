"""neo-tf against OpenVINO GenAI's continuous batching: many requests at once, in turn, in one run, as ratios.

    python benchmarks/compare_serving.py --ours int8=ONNX_DIR \\
        --peer openvino-paged:int8=OV/bin/python:OPENVINO_DIR --requests 64 --slots 16

The requests are those of `neo-tf benchmark --requests`; docs/benchmarks.md says how the peer's environment and models
are made. Its paged attention computes every layer as a global one: past the local window it is another model.
"""

import statistics
import sys
import time

from compare import describe_system, find_base, in_turn, loaded, make_parser, run_and_show, show_systems

from neo_tf.cli.console import count_progress, results
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.machine import describe_machine
from neo_tf.evaluation.serving import ServingSettings, Task, describe_workload, make_workload, medians, summary
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.machine import physical_cores

PEERS = ("openvino-paged",)
ANOTHER_MODEL = "its paged attention computes every layer as a global one: past the local window it is another model"
# The columns of the table: {figure: (title, factor of the figure, unit)}.
_COLUMNS = {
    "tokens_per_s": ("tokens/s", 1, ""),
    "first_token_p50_ms": ("first token p50", 1e-3, " s"),
    "first_token_p99_ms": ("p99", 1e-3, " s"),
    "inter_token_p50_ms": ("between tokens p50", 1, " ms"),
    "inter_token_p99_ms": ("p99", 1, " ms"),
}


def main():
    """Parses, runs, prints."""
    run_and_show(parse(), compare, show)


def parse():
    """Parses the command line."""
    parser = make_parser(__doc__, PEERS, rounds=3)
    parser.add_argument(
        "--requests", type=int, default=64, help="the number of requests, which are all submitted at once (default: 64)"
    )
    parser.add_argument(
        "--slots", type=int, help="the number of requests that neo-tf runs at the same time (default: 16)"
    )
    return parser.parse_args()


def compare(options):
    """Runs all systems in turn and returns the figures, for JSON."""
    systems = [*options.ours, *options.peer]
    config = OnnxFolder.read(options.ours[0].folder).config
    asked = {"requests": options.requests, "slots": options.slots, "rounds": options.rounds}
    settings = ServingSettings.within(config.n_ctx, **asked)
    workload = make_workload(settings.requests, config)
    short = [Task(workload[0].prompt[:8], 2 * settings.slots)] * settings.slots
    samples = {system.name: [] for system in systems}

    def run(worker, tasks):
        time.sleep(0.1)  # the system before lets go of the cores: threads spin for a moment after a step
        times = worker.ask(prompts=[task.prompt for task in tasks], counts=[task.new_tokens for task in tasks])["times"]
        if [len(own) for own in times] != [task.new_tokens for task in tasks]:
            raise NeoTFError(f"{worker.system.name} did not give each request the tokens that it asked for")
        return times

    work = len(systems) * (settings.rounds + 1)
    with (
        loaded(systems, options.threads, settings.slots) as workers,
        count_progress("comparing", work) as progress,
    ):
        for worker in workers:  # buffers are made
            run(worker, short)
            progress(1)
        for number in range(settings.rounds):
            for worker in in_turn(workers, number):
                samples[worker.system.name].append(summary(run(worker, workload)))
                progress(1)
    return {
        "machine": describe_machine(),
        "settings": asked | {"slots": settings.slots, "threads": options.threads or physical_cores()},
        "workload": describe_workload(workload),
        "systems": [_figures(system, options.ours, samples) for system in systems],
    }


def _figures(system, ours, samples):
    """The report of a system: medians over the rounds, and medians of each round's ratio, above 1 for neo-tf."""
    own = samples[system.name]
    figures = describe_system(system) | medians(own) | {"samples": own}
    if system in ours:
        return figures
    base = find_base(system, ours).name
    pairs = list(zip(samples[base], own, strict=True))

    def ratio(name):
        if name == "tokens_per_s":  # more is better
            return statistics.median(mine[name] / its[name] for mine, its in pairs)
        return statistics.median(its[name] / mine[name] for mine, its in pairs)

    return figures | {
        "against": base,
        "ratio": {name: ratio(name) for name in _COLUMNS},
        "note": ANOTHER_MODEL,
    }


def show(report):
    """Prints the table: each system's figures, and for a peer, how many times as good neo-tf is."""
    work = report["workload"]
    settings = report["settings"]
    results.print(
        f"{work['requests']} requests, all submitted at once: {work['prompt_tokens']:,} tokens of prompts, "
        f"{work['new_tokens']:,} new ones; {settings['slots']} slots of neo-tf, {settings['threads']} threads"
    )

    def cell(system, name):
        _, factor, unit = _COLUMNS[name]
        return f"{system[name] * factor:,.1f}{unit}"

    show_systems(report, {name: title for name, (title, _, _) in _COLUMNS.items()}, cell)
    for system in report["systems"]:
        if "note" in system:
            results.print(f"{system['name']}: {system['note']}")


if __name__ == "__main__":
    try:
        main()
    except NeoTFError as error:
        sys.exit(f"error: {error}")

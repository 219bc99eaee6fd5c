"""neo-tf against OpenVINO GenAI's continuous batching: many requests at once, in turn, in one run, as ratios.

    python benchmarks/compare_serving.py --ours int8=ONNX_DIR \\
        --peer openvino-paged:int8=OV/bin/python:OPENVINO_DIR --requests 64 --slots 16

The requests are those of `neo-tf benchmark --requests`; docs/benchmarks.md says how the peer's environment and models
are made. Its paged attention computes every layer as a global one: past the local window it is another model.
"""

import contextlib
import statistics
import sys
import time

from compare import Worker, make_parser, run_and_show

from neo_tf.cli.console import count_progress, results, summary_table
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.machine import describe_machine, peak_memory
from neo_tf.evaluation.serving import ServingSettings, Task, describe_workload, make_workload, medians, summary
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.sizes import readable_bytes

PEERS = ("openvino-paged",)
ANOTHER_MODEL = "its paged attention computes every layer as a global one: past the local window it is another model"
# Of the table: a title, the figure, what it is multiplied by, its unit.
_COLUMNS = (
    ("tokens/s", "tokens_per_s", 1, ""),
    ("first token p50", "first_token_p50_ms", 1e-3, " s"),
    ("p99", "first_token_p99_ms", 1e-3, " s"),
    ("between tokens p50", "inter_token_p50_ms", 1, " ms"),
    ("p99", "inter_token_p99_ms", 1, " ms"),
)


def main():
    """Parses, runs, prints."""
    run_and_show(parse(), compare, show)


def parse():
    """The command line."""
    parser = make_parser(__doc__, PEERS, rounds=3)
    parser.add_argument("--requests", type=int, default=64, help="all submitted at once")
    parser.add_argument("--slots", type=int, help="of neo-tf; its default as in `neo-tf benchmark`")
    return parser.parse_args()


def compare(options):
    """Runs all systems in turn and returns the figures, for JSON."""
    systems, config = [*options.ours, *options.peer], OnnxFolder.read(options.ours[0].folder).config
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

    with (
        contextlib.ExitStack() as stack,
        count_progress("comparing", len(systems) * (settings.rounds + 1)) as progress,
    ):
        workers = []
        for system in systems:
            workers.append(Worker(system, options.threads, settings.slots))
            stack.callback(workers[-1].close)
            workers[-1].load()
        for worker in workers:  # buffers are made
            run(worker, short)
            progress(1)
        for number in range(settings.rounds):
            # Another one begins in each round.
            for worker in (*workers[number % len(workers) :], *workers[: number % len(workers)]):
                samples[worker.system.name].append(summary(run(worker, workload)))
                progress(1)
        for worker in workers:
            worker.system.peak_memory_bytes = peak_memory(worker.process.pid)
    return {
        "machine": describe_machine(),
        "settings": asked | {"slots": settings.slots, "threads": options.threads or physical_cores()},
        "workload": describe_workload(workload),
        "systems": [_figures(system, options.ours, samples) for system in systems],
    }


def _figures(system, ours, samples):
    """What is told of a system: medians over the rounds; ratios as medians of the rounds' own, above 1 for neo-tf."""
    figures = {name: getattr(system, name) for name in ("name", "folder", "versions", "load_s", "peak_memory_bytes")}
    own = samples[system.name]
    figures |= {**medians(own), "samples": own}
    if system in ours:
        return figures
    base = next((other for other in ours if other.precision == system.precision), ours[0]).name
    pairs = list(zip(samples[base], own, strict=True))

    def ratio(name):
        more = name == "tokens_per_s"  # is better
        return statistics.median(mine[name] / its[name] if more else its[name] / mine[name] for mine, its in pairs)

    return figures | {
        "against": base,
        "ratio": {name: ratio(name) for _, name, _, _ in _COLUMNS},
        "note": ANOTHER_MODEL,
    }


def show(report):
    """Prints the table: each system's figures, and for a peer, how many times as good neo-tf is."""
    work, settings = report["workload"], report["settings"]
    results.print(
        f"{work['requests']} requests, all submitted at once: {work['prompt_tokens']:,} tokens of prompts, "
        f"{work['new_tokens']:,} new ones; {settings['slots']} slots of neo-tf, {settings['threads']} threads"
    )
    table = summary_table("system", *(title for title, _, _, _ in _COLUMNS), "memory", "load")
    for system in report["systems"]:
        cells = [f"{system[name] * scale:,.1f}{unit}" for _, name, scale, unit in _COLUMNS]
        memory = readable_bytes(system["peak_memory_bytes"]) if system["peak_memory_bytes"] else "not known"
        table.add_row(system["name"], *cells, memory, f"{system['load_s']:.1f} s")
        if "ratio" in system:
            ratios = (f"{system['ratio'][name]:.2f}x" for _, name, _, _ in _COLUMNS)
            table.add_row(f"  {system['against']} to it", *ratios, "", "")
    results.print(table)
    results.print(f"medians of {settings['rounds']} rounds; ratios are medians of each round's own")
    for system in report["systems"]:
        if "note" in system:
            results.print(f"{system['name']}: {system['note']}")


if __name__ == "__main__":
    try:
        main()
    except NeoTFError as error:
        sys.exit(f"error: {error}")

"""A fleet on paper: how many replicas serve a number of requests a second, and which policy helps.

    python benchmarks/fleet.py measure ONNX_DIR --slots 16 --json steps.json
    python benchmarks/fleet.py check ONNX_DIR --slots 16 --requests 128
    python benchmarks/fleet.py size steps.json --rates 10,1000,100000
    python benchmarks/fleet.py policies steps.json --replicas 40 --load 0.8 --prefixes 100

`measure` times the engine's steps. `check` sends the same requests to the real server and to the simulator, and ends
with 1 where tokens/s or a first token's percentile differ by more than 15 %. `size` and `policies` need neither a model
nor the machine.
docs/fleet.md says what is measured, what is simulated and what is left out.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from fleet_check import CHECKED, TOLERANCE, against_server
from fleet_machine import Machine, floor_machine
from fleet_policies import POLICIES
from fleet_simulator import simulate
from fleet_sizing import SETTLING, Workload, capacity, figures, replicas_for
from fleet_steps import measure_steps

from neo_tf.cli.console import count_progress, results, summary_table
from neo_tf.errors import NeoTFError

_CELL = 1000  # requests/s of the largest fleet that is simulated in one piece
_RANKS = (50, 90, 99)


def main():
    """Parses and runs."""
    options = parse()
    return options.run(options)


def parse():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    measures = commands.add_parser("measure", help="time the engine's steps")
    measures.set_defaults(run=measure)
    checks = commands.add_parser("check", help="compare the simulator with the real server")
    checks.set_defaults(run=check)
    for command in (measures, checks):
        command.add_argument("folder", help="an ONNX folder with a tokenizer")
        command.add_argument("--slots", type=int, default=16, help="default: %(default)s")
        command.add_argument("--threads", type=int, help="one for each core where not given")
        command.add_argument("--precision", help="the precision to run")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    checks.add_argument("--requests", type=int, default=128, help="of each load (default: %(default)s)")
    checks.add_argument("--loads", type=_numbers, default=(0.5, 0.8, 2.0), metavar="X,X", help="requests a second, as "
                        "multiples of what the machine can answer by the simulator (default: 0.5,0.8,2)")  # fmt: skip
    sizes = commands.add_parser("size", help="find how many replicas serve a number of requests a second")
    sizes.set_defaults(run=size)
    sizes.add_argument("steps", type=Path, nargs="+", help="files that `measure` wrote")
    sizes.add_argument("--rates", type=_numbers, default=(10, 1000, 100_000), metavar="N,N", help="requests a second")
    sizes.add_argument("--policy", choices=POLICIES, default="least requests", help="default: %(default)s")
    sizes.add_argument("--first-token", type=float, default=2.0, metavar="SECONDS", help="the goal: 99 %% of the "
                       "requests wait less for their first token (default: %(default)s)")  # fmt: skip
    sizes.add_argument("--floor", action="append", default=[], metavar="NAME:GB/S:TFLOP/S", help="a machine that was "
                       "not measured: as if it did nothing but move bytes and compute at these rates")  # fmt: skip
    policies = commands.add_parser("policies", help="compare the policies")
    policies.set_defaults(run=compare_policies)
    policies.add_argument("steps", type=Path, help="a file that `measure` wrote")
    policies.add_argument("--replicas", type=int, default=40, help="default: %(default)s")
    policies.add_argument("--load", type=float, default=0.8, help="the requests a second, as a share of the capacity "
                          "without shared prefixes (default: %(default)s)")  # fmt: skip
    policies.add_argument("--seed", type=int, default=0, help="of the requests (default: %(default)s)")
    policies.add_argument("--prefixes", type=int, default=100, help="the number of prefixes (default: %(default)s)")
    policies.add_argument("--prefix-tokens", type=int, default=512, help="default: %(default)s")
    policies.add_argument("--prefix-memory", type=float, default=1, help="the memory of the shared-prefix cache, as a "
                          "multiple of its default (default: %(default)s)")  # fmt: skip
    for command in (sizes, policies):
        command.add_argument("--seconds", type=float, default=60, help="the least time to simulate (default: 60)")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser.parse_args()


def _numbers(text):
    return tuple(map(float, text.split(",")))


def measure(options):
    """Times the engine's steps and shows them."""
    with count_progress("measuring steps", None) as progress:
        found = measure_steps(options.folder, options.slots, options.threads, options.precision, progress)
    _write(options.json, found)
    _show_steps(found)
    return 0


def _show_steps(found):
    steps = found["steps"]
    machine = found["machine"]
    settings = found["settings"]
    results.print(
        f"{machine['cpu']}, {settings['threads']} threads, {settings['precision']}, {steps['slots']} slots; ms"
    )
    for name, rows, columns in (
        ("prefill", "tokens of a chunk", "after"),
        ("decode", "sequences", "context"),
    ):
        grid = steps[name]
        table = summary_table(f"{name}: {rows}", *(f"{columns} {value}" for value in grid["columns"]))
        for row, seconds in zip(grid["rows"], grid["seconds"], strict=True):
            table.add_row(str(row), *(f"{1e3 * value:.1f}" for value in seconds))
        results.print(table)


def check(options):
    """The same requests through the real server and on paper; 1 where a figure of CHECKED differs too much."""
    report = against_server(options)
    _write(options.json, report)
    return _show_check(report)


def _show_check(report):
    settings = report["settings"]
    results.print(f"{report['machine']['cpu']}, {settings['threads']} threads, {report['requests']} requests a load")
    table = summary_table("load", "figure", "measured", "simulated", "difference")
    worst = 0.0
    for run in report["runs"]:
        for name, measured in run["measured"].items():
            simulated = run["simulated"][name]
            difference = simulated / measured - 1
            if name in CHECKED:
                worst = max(worst, abs(difference))
            title = f"{run['load']:g} ({run['requests_per_s']:.2f}/s)"
            table.add_row(title, name, f"{measured:,.1f}", f"{simulated:,.1f}", f"{difference:+.1%}")
    results.print(table)
    results.print(f"tokens/s and first tokens differ by {worst:.1%} at most; {TOLERANCE:.0%} is allowed")
    return int(worst > TOLERANCE)


# ---- on paper


def size(options):
    """Finds the numbers of replicas."""
    found = []
    machines = []
    for path in options.steps:
        measured = json.loads(path.read_text())
        machines.append((Machine.read(measured["steps"], _name(measured)), "measured"))
    for text in options.floor:
        name, bandwidth, compute = text.split(":")
        slots = machines[0][0].slots
        floor = floor_machine(name, measured["model"], slots, float(bandwidth) * 1e9, float(compute) * 1e12)
        machines.append((floor, "a floor, not measured"))
    workload = Workload()
    table = summary_table(
        "machine", "requests/s", "replicas", "slots in use", "first token p50", "p99", "between tokens"
    )
    for machine, kind in machines:
        known = {}  # {requests a second: the number of replicas, and its figures}
        for rate in options.rates:
            part = min(rate, _CELL)
            if part not in known:
                policy = POLICIES[options.policy]
                known[part] = replicas_for(machine, workload, part, policy, options.first_token, options.seconds)
            count, row = known[part]
            whole = round(count * rate / part)
            found.append({"machine": machine.name, "kind": kind, "requests_per_s": rate, "replicas": whole, **row})
            table.add_row(
                f"{machine.name} ({kind})", f"{rate:,.0f}", f"{whole:,}", f"{row['busy']:.0%}",
                f"{row['first_token_p50_ms']:,.0f} ms", f"{row['first_token_p99_ms']:,.0f} ms",
                f"{row['between_tokens_p50_ms']:.1f} ms",
            )  # fmt: skip
    results.print(table)
    results.print(
        f"the least replicas with which 99 % of first tokens come within {options.first_token:g} s, by "
        f"{options.policy}; {workload.describe()}; above {_CELL:,} requests/s: fleets of {_CELL:,}, each with a "
        "dispatcher of its own"
    )
    _write(options.json, {"goal_s": options.first_token, "policy": options.policy, "fleets": found})
    return 0


def _name(measured):
    settings = measured["settings"]
    return f"{Path(measured['model']['folder']).name} {settings['precision']}, {settings['threads']} threads"


def compare_policies(options):
    """The same requests by every policy, without shared prefixes and with them."""
    measured = json.loads(options.steps.read_text())
    machine = Machine.read(measured["steps"], _name(measured))
    machine = replace(machine, blocks=round(machine.blocks * options.prefix_memory))
    plain = Workload()
    shared = Workload(prefixes=options.prefixes, prefix_tokens=options.prefix_tokens)
    found = []
    for title, workload in (("no shared prefixes", plain), (f"{options.prefixes} shared prefixes", shared)):
        alone = replace(machine, blocks=0)
        rate = options.load * options.replicas * capacity(alone, workload.lengths(2000))
        arrivals = workload.arrivals(rate, options.seconds, options.seed)
        table = summary_table(title, "first token p50", "p90", "p99", "between tokens", "prompt tokens reused")
        for name, policy in POLICIES.items():
            row = figures(simulate(machine, options.replicas, arrivals, policy()), arrivals[-1].time * SETTLING)
            found.append({"workload": title, "policy": name, "requests_per_s": rate, **row})
            waits = [f"{row[f'first_token_p{rank}_ms']:,.0f} ms" for rank in _RANKS]
            table.add_row(name, *waits, f"{row['between_tokens_p50_ms']:.1f} ms", f"{row['reused']:.0%}")
        results.print(table)
        results.print(f"{options.replicas} replicas of {machine.name}, {rate:,.1f} requests/s; {workload.describe()}")
    _write(options.json, {"replicas": options.replicas, "load": options.load, "rows": found})
    return 0


def _write(path, figures):
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NeoTFError as error:
        sys.exit(f"error: {error}")

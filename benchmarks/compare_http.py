"""What HTTP costs: the engine alone and `neo-tf serve` answer the same requests in turn, in one run, as ratios.

    python benchmarks/compare_http.py ONNX_DIR --requests 64 --clients 32 --json http.json

The engine, the server and the clients are three processes. The engine gets token ids and makes no texts; the server
gets texts and streams texts. Where the machine has few cores, the clients take time from the server: --server-cores
and --client-cores keep them apart (the engine then runs on the server's cores, too). The ratio of the processor times
says what the ratio of the tokens a second would be if all cores were busy with nothing else: other programs disturb it
less. It needs --threads 1, since more threads spin.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from compare import System, Worker, run_and_show
from http_clients import ServerProcess, TextTask, closed_loop, open_loop, pin, processor_seconds, send, text_tasks

from neo_tf.cli.console import count_progress, results, summary_table
from neo_tf.errors import NeoTFError
from neo_tf.evaluation.machine import describe_machine, versions
from neo_tf.evaluation.serving import describe_workload, make_workload, medians, summary
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.runtime.tokenizer import Tokenizer

SINGLE = 20  # requests one after the other, for the time of the first token
SINGLE_TOKENS = (64, 8)  # their prompts, and their new tokens


def main():
    """Parses, runs, prints."""
    run_and_show(parse(), compare, show)


def parse():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="an ONNX folder with a tokenizer")
    parser.add_argument("--precision", help="the precision to run")
    parser.add_argument("--requests", type=int, default=64, help="the number of requests (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="the number of clients, and of slots (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="the number of rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="the threads of the engine; one for each core where not given")
    parser.add_argument("--overload", type=float, default=0, metavar="SECONDS", help="also send twice as many requests "
                        "a second as the server can answer, for this long")  # fmt: skip
    parser.add_argument("--max-queue", type=int, default=8, help="the queue while overloaded (default: %(default)s)")
    parser.add_argument("--server-cores", type=_cores, default=(), metavar="N,N", help="the cores of engine and server")
    parser.add_argument("--client-cores", type=_cores, default=(), metavar="N,N", help="the cores of the clients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args()


def _cores(text):
    return tuple(map(int, text.split(",")))


def compare(options):
    """Measures both in turn and returns the figures, for JSON."""
    folder = OnnxFolder.read(Path(options.folder))
    tokenizer = Tokenizer(Path(options.folder))
    threads = options.threads or len(options.server_cores) or physical_cores()
    workloads = [
        text_tasks(make_workload(options.requests, folder.config), tokenizer, number)
        for number in range(options.rounds)
    ]
    pin(0, options.client_cores)
    system = System("neo-tf", options.precision or "", sys.executable, options.folder)
    worker = Worker(system, threads, options.clients)
    pin(worker.process.pid, options.server_cores)
    serve = ["--slots", options.clients, "--threads", threads, "--prefix-cache-memory", 0]
    if options.precision:
        serve += ["--precision", options.precision]
    report = {
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {**vars(options), "threads": threads, "json": None},
        "workload": describe_workload(workloads[0]),
    }
    try:
        worker.load()
        with ServerProcess(options.folder, *serve, cores=options.server_cores) as server:
            report |= _throughput(worker, server, workloads, options.clients)
            report |= {"single": _single(worker, server, tokenizer)}
    finally:
        worker.close()
    if options.overload:
        seconds = report["http"]["seconds"]
        rate = 2 * options.requests / seconds
        with ServerProcess(
            options.folder, *serve, "--max-queue", options.max_queue, cores=options.server_cores
        ) as server:
            report["overload"] = _overload(server, folder.config, tokenizer, rate, options)
    return report


def _throughput(worker, server, workloads, clients):
    """All requests through both, the order changing each round."""
    samples = {"engine": [], "http": []}
    overheads, client_shares = [], []
    first = workloads[0][0]
    short = [TextTask(first.text[:30], first.prompt[:8], 2 * clients)] * clients

    def engine(tasks):
        return worker.ask(prompts=[task.prompt for task in tasks], counts=[task.new_tokens for task in tasks])["times"]

    def http(tasks):
        names = ("neo_tf_first_token_seconds_sum", "neo_tf_first_token_seconds_count")
        before = [server.metric(name) for name in names]
        busy = time.process_time()
        answers = asyncio.run(closed_loop(server.url, tasks, clients))
        busy = time.process_time() - busy
        start = min(answer.sent for answer in answers)
        total, count = [server.metric(name) - value for name, value in zip(names, before, strict=True)]
        waits = [answer.first_token for answer in answers]
        overheads.append(1e3 * (statistics.mean(waits) - total / count))
        times = [[at - start for at in answer.times] for answer in answers]
        client_shares.append(busy / max(own[-1] for own in times))
        return times

    ways = {"engine": engine, "http": http}
    processes = {"engine": worker.process.pid, "http": server.process.pid}
    with count_progress("comparing", 2 * len(workloads) + 2) as progress:
        for way in ways.values():  # buffers are made
            way(short)
            progress(1)
        overheads.clear()
        client_shares.clear()
        for number, tasks in enumerate(workloads):
            for name in sorted(ways, reverse=bool(number % 2)):
                time.sleep(0.2)  # the process before lets go of the cores: threads spin for a moment after a step
                busy = processor_seconds(processes[name])
                found = summary(ways[name](tasks))
                busy = processor_seconds(processes[name]) - busy
                tokens = sum(task.new_tokens for task in tasks)
                found["tokens_per_s"] = tokens / found["seconds"]
                found["processor_ms_per_token"] = 1e3 * busy / tokens
                samples[name].append(found)
                progress(1)
    pairs = list(zip(samples["engine"], samples["http"], strict=True))
    ratios = [http["tokens_per_s"] / engine["tokens_per_s"] for engine, http in pairs]
    busy = [engine["processor_ms_per_token"] / http["processor_ms_per_token"] for engine, http in pairs]
    return {
        **{name: medians(rows) for name, rows in samples.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processor_ratio": statistics.median(busy),
        "processor_ratios": busy,
        "first_token_overhead_under_load_ms": statistics.median(overheads),
        "client_share_of_a_core": statistics.median(client_shares),
        "samples": samples,
    }


def _single(worker, server, tokenizer):
    """Requests one after the other: the seconds until the first token, through both."""
    rows = {"engine": [], "http": []}
    random = np.random.default_rng(5)
    for number in range(SINGLE + 2):
        length, new = SINGLE_TOKENS
        task = text_tasks(make_single(length, new), tokenizer, int(random.integers(1 << 30)))[0]
        for name in sorted(rows, reverse=bool(number % 2)):
            time.sleep(0.1)
            if name == "engine":
                rows[name].append(worker.ask(prompts=[task.prompt], counts=[new])["times"][0][0] * 1e3)
            else:
                rows[name].append(asyncio.run(send(server.url, task.body)).first_token * 1e3)
    rows = {name: values[2:] for name, values in rows.items()}
    overhead = [http - engine for engine, http in zip(rows["engine"], rows["http"], strict=True)]
    found = {f"{name}_first_token_ms": statistics.median(values) for name, values in rows.items()}
    return {**found, "overhead_ms": statistics.median(overhead), "samples": rows}


def make_single(length, new):
    """A workload of one request."""
    from neo_tf.evaluation.serving import Task

    return [Task([0] * length, new)]


def _overload(server, config, tokenizer, rate, options):
    """Requests that come at random moments, at twice the rate that the server can answer."""
    count = int(rate * options.overload)
    tasks = text_tasks(make_workload(count, config), tokenizer, 77)
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / rate, count)).tolist()
    short = [TextTask(tasks[0].text[:30], [], 2 * options.clients)] * options.clients
    asyncio.run(closed_loop(server.url, short, options.clients))  # buffers are made
    answers = asyncio.run(open_loop(server.url, tasks, arrivals))
    statuses = {}
    for answer in answers:
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    start = min(answer.sent for answer in answers)
    taken = [(answer, task) for answer, task in zip(answers, tasks, strict=True) if answer.status == 200]
    refused = [answer.ended - answer.sent for answer in answers if answer.status == 429]
    # The first and the last moments are not overloaded: the slots fill and empty.
    between = np.concatenate(
        [np.diff([at for at in answer.times if 0.2 * arrivals[-1] < at - start < arrivals[-1]]) for answer, _ in taken]
    )
    return {
        "requests_per_s": rate,
        "max_queue": options.max_queue,
        "statuses": statuses,
        "inter_token_p50_ms": float(np.percentile(between, 50)) * 1e3,
        "inter_token_p99_ms": float(np.percentile(between, 99)) * 1e3,
        "first_token_p50_ms": statistics.median(answer.first_token for answer, _ in taken) * 1e3,
        "refused_p50_ms": statistics.median(refused) * 1e3 if refused else None,
        "refused_p99_ms": float(np.percentile(refused, 99)) * 1e3 if refused else None,
    }


def show(report):
    """Prints the figures."""
    machine = report["machine"]
    settings = report["settings"]
    work = report["workload"]
    cores = settings["server_cores"]
    where = (
        f"engine and server on cores {cores}, clients on {settings['client_cores']}" if cores else "all cores shared"
    )
    results.print(f"{machine['cpu']}, {machine['cores']} cores; {settings['threads']} threads; {where}")
    results.print(
        f"{work['requests']} requests of {settings['clients']} clients: {work['prompt_tokens']:,} tokens of prompts, "
        f"{work['new_tokens']:,} new ones; {settings['clients']} slots"
    )
    table = summary_table("", "tokens/s", "first token p50", "p99", "between tokens p50", "p99")
    rows = [("engine", report["engine"]), ("http", report["http"])]
    for name, row in rows:
        waits = [f"{row[f'{kind}_p{rank}_ms']:,.1f} ms" for kind in ("first_token", "inter_token") for rank in (50, 99)]
        table.add_row(name, f"{row['tokens_per_s']:,.1f}", *waits)
    results.print(table)
    ratios = ", ".join(f"{ratio:.3f}" for ratio in report["ratios"])
    results.print(f"tokens/s through HTTP / the engine's own: {report['ratio']:.3f} (each round: {ratios})")
    ratios = ", ".join(f"{ratio:.3f}" for ratio in report["processor_ratios"])
    results.print(
        f"processor time of a token, engine / server: {report['processor_ratio']:.3f} (each round: {ratios}); "
        f"{report['engine']['processor_ms_per_token']:.2f} and {report['http']['processor_ms_per_token']:.2f} ms"
    )
    single = report["single"]
    results.print(
        f"first token of a single request: {single['http_first_token_ms']:.1f} ms through HTTP, "
        f"{single['engine_first_token_ms']:.1f} ms in the engine; {single['overhead_ms']:.1f} ms more (median of pairs)"
    )
    results.print(
        f"first token under load: {report['first_token_overhead_under_load_ms']:.1f} ms more than in the engine's own "
        f"clock (mean); the clients took {report['client_share_of_a_core']:.0%} of a core"
    )
    if "overload" in report:
        over = report["overload"]
        statuses = ", ".join(f"{count} got {status}" for status, count in sorted(over["statuses"].items()))
        results.print(
            f"twice the capacity, {over['requests_per_s']:.2f} requests/s, a queue of {over['max_queue']}: {statuses}; "
            f"between tokens p50 {over['inter_token_p50_ms']:.1f} ms, p99 {over['inter_token_p99_ms']:.1f} ms; "
            f"a 429 came after {over['refused_p50_ms'] or 0:.1f} ms (p99 {over['refused_p99_ms'] or 0:.1f} ms)"
        )
    results.print(f"medians of {settings['rounds']} rounds")


if __name__ == "__main__":
    try:
        main()
    except NeoTFError as error:
        sys.exit(f"error: {error}")

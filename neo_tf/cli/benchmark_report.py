"""What `neo-tf benchmark` shows of its figures: tables, and the files that it writes."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neo_tf.atomic import new_file
from neo_tf.cli.benchmark_plot import check_plot, draw_figures, name_ways
from neo_tf.cli.console import results, summary_table
from neo_tf.errors import RequestError
from neo_tf.sizes import readable_bytes

# A column of the serving table: its title, its figure, and the scale and unit that the figure's milliseconds get.
_WAITS = (
    ("first token p50", "first_token_p50_ms", 1e-3, "s"),
    ("p99", "first_token_p99_ms", 1e-3, "s"),
    ("between tokens p50", "inter_token_p50_ms", 1, "ms"),
    ("p99", "inter_token_p99_ms", 1, "ms"),
)


@dataclass(frozen=True)
class ReportFiles:
    """The files that a benchmark writes: they are checked before it begins, and appear when it is done.

    Args:
        json_file: The partial file for the figures; None writes none.
        plot_file: The partial file for the plot; None draws none.
        plot_suffix: The plot's format: ".png" or ".svg".
    """

    json_file: Path | None
    plot_file: Path | None
    plot_suffix: str

    @classmethod
    @contextlib.contextmanager
    def open(cls, json_file: Path | None, plot_file: Path | None = None) -> Iterator["ReportFiles"]:
        """Opens both files, and puts them in place at the end unless there was an error.

        Raises:
            RequestError: The names do not fit.
            MissingExtraError: Nothing can draw a plot.
            OutputError: A file cannot be written.
        """
        if plot_file:
            check_plot(plot_file)
            if json_file == plot_file:
                raise RequestError(f"{plot_file}: the plot would replace the JSON file")
        suffix = plot_file.suffix if plot_file else ""
        with contextlib.ExitStack() as files:
            partial_json = files.enter_context(new_file(json_file)) if json_file else None
            partial_plot = files.enter_context(new_file(plot_file)) if plot_file else None
            yield cls(partial_json, partial_plot, suffix)

    def write(self, figures: dict[str, Any]) -> None:
        """Writes the figures into the files."""
        if self.json_file:
            self.json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if self.plot_file:
            draw_figures(figures, self.plot_file, self.plot_suffix)


def print_figures(figures: dict[str, Any]) -> None:
    """Prints the figures of evaluation/speed.py or evaluation/serving.py as tables."""
    _print_head(figures)
    if "workload" in figures:
        _print_serving(figures)
    else:
        _print_speed(figures)


def _print_speed(figures: dict[str, Any]) -> None:
    table = summary_table("speed", "time", "tokens/s", "measured")
    decode = figures["decode"]
    fresh = figures["fresh_process"]
    table.add_row("first token, fresh process", f"{fresh['first_token_s']:.2f} s", "", "imports and loading too")
    for name in ("imports", "load", "generate"):
        table.add_row(f"  {name}", f"{fresh[f'{name}_s']:.2f} s")
    what = f"decode {decode['prompt_tokens']} + {decode['new_tokens']} tokens"
    table.add_row(what, *_time(decode, "ms_per_token"), "through the engine")
    table.add_row("  the steps alone", f"{decode['step_ms']:.2f} ms", "", "inside the engine")
    for row in figures["prefill"]:
        table.add_row(f"prefill of {row['tokens']}", *_time(row, "ms"), "the graph's step")
    for row in figures["context"]:
        table.add_row(f"a token at context {row['context']}", *_time(row, "ms_per_token"), "the graph's step")
    for row in figures["batch"]:
        table.add_row(f"a step of a batch of {row['batch']}", *_time(row, "ms_per_step"), "the graph's step")
    results.print(table)
    _print_memory(figures)


def _print_memory(figures: dict[str, Any]) -> None:
    model = figures["model"]
    fresh = figures["fresh_process"]
    table = summary_table("memory", "", "")
    table.add_row("weights file", readable_bytes(model["weights_bytes"]))
    table.add_row("KV cache", readable_bytes(model["cache_bytes_per_sequence"]), "a sequence")
    table.add_row("peak of a process", _bytes(fresh["peak_memory_bytes"]), "one sequence, the fresh process")
    table.add_row("weights read for a token", _bytes(model["bytes_per_token"]))
    speed = figures["bandwidth"]["bytes_per_s"]
    floor = figures["floor"]
    bandwidth = f"{readable_bytes(speed)}/s" if speed else "not known"
    table.add_row("memory bandwidth", bandwidth, "read by as many threads")
    if floor["share"]:
        table.add_row(
            "share of the bandwidth in use", f"{floor['share']:.0%}", f"the floor is {floor['ms_per_token']:.2f} ms"
        )
    results.print(table)


def _print_serving(figures: dict[str, Any]) -> None:
    work = figures["workload"]
    slots = figures["settings"]["slots"]
    results.print(
        f"{work['requests']} requests, all submitted at once: {work['prompt_tokens']:,} tokens of prompts, "
        f"{work['new_tokens']:,} new ones"
    )
    table = summary_table("", "tokens/s", "in all", *(title for title, _, _, _ in _WAITS))
    for way, title in name_ways(figures):
        row = figures[way]
        waits = (f"{row[name] * scale:,.2f} {unit}" for _, name, scale, unit in _WAITS)
        table.add_row(title, f"{row['tokens_per_s']:,.1f}", f"{row['seconds']:.1f} s", *waits)
    results.print(table)
    results.print(f"together {figures['ratio']:.2f} times as fast; first tokens wait from the submission of all")
    table = summary_table("engine", "a step", "its own part", "")
    for row in figures["engine"]:
        title = f"batch {row['batch']}"
        table.add_row(title, f"{row['ms_per_step']:.2f} ms", f"{row['own_ms']:.3f} ms", f"{row['share']:.1%}")
    results.print(table)
    cache = readable_bytes(figures["model"]["cache_bytes_per_sequence"])
    results.print(f"peak of memory with {slots} slots {_bytes(figures['peak_memory_bytes'])}; KV cache {cache} a slot")


def _print_head(figures: dict[str, Any]) -> None:
    """Prints what was measured, and where."""
    model = figures["model"]
    machine = figures["machine"]
    settings = figures["settings"]
    results.print(f"{model['folder']}: {model['precision']}, {model['parameters'] / 1e6:,.1f} million parameters")
    memory = f", {readable_bytes(machine['memory_bytes'])}" if machine["memory_bytes"] else ""
    results.print(f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['os']}")
    results.print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    results.print(f"{settings['threads']} threads on {settings['device']}, medians of {settings['rounds']} rounds")


def _time(row: dict[str, float], name: str) -> tuple[str, str]:
    """The cells of a row's time and of its tokens/s."""
    return f"{row[name]:.2f} ms", f"{row['tokens_per_s']:,.1f}"


def _bytes(size: int | None) -> str:
    return readable_bytes(size) if size else "not known"

"""What `neo-tf benchmark` shows of its figures: a table, and a plot."""

from pathlib import Path

from neo_tf.cli.console import results, summary_table
from neo_tf.errors import MissingExtraError, RequestError
from neo_tf.sizes import readable_bytes

PLOT_SUFFIXES = (".png", ".svg")
_BLUE, _GREY = "#2a6fbb", "#8a8a8a"


def check_plot(path):
    """Raises RequestError where a plot's suffix is unknown, MissingExtraError where nothing can draw it."""
    if Path(path).suffix not in PLOT_SUFFIXES:
        raise RequestError(f"{path}: a plot's name must end in {' or '.join(PLOT_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"--plot needs matplotlib ({error}): install it with `pip install 'neo-tf[plot]'`"
        ) from None


def print_report(figures):
    """Prints the figures of evaluation/speed.py as a table."""
    _print_head(figures)
    model = figures["model"]
    table = summary_table("speed", "time", "tokens/s", "measured")
    decode, fresh = figures["decode"], figures["fresh_process"]
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

    table = summary_table("memory", "", "")
    table.add_row("weights file", readable_bytes(model["weights_bytes"]))
    table.add_row("KV cache", readable_bytes(model["cache_bytes_per_sequence"]), "a sequence")
    table.add_row("peak of a process", _bytes(fresh["peak_memory_bytes"]), "one sequence, the fresh process")
    table.add_row("weights read for a token", _bytes(model["bytes_per_token"]))
    speed, floor = figures["bandwidth"]["bytes_per_s"], figures["floor"]
    table.add_row("memory bandwidth", f"{_bytes(speed)}/s" if speed else "not known", "read by as many threads")
    if floor["share"]:
        table.add_row("share of it reached", f"{floor['share']:.0%}", f"the floor is {floor['ms_per_token']:.2f} ms")
    results.print(table)


def print_serving(figures):
    """Prints the figures of evaluation/serving.py as tables."""
    _print_head(figures)
    work, slots = figures["workload"], figures["settings"]["slots"]
    results.print(
        f"{work['requests']} requests, all submitted at once: {work['prompt_tokens']:,} tokens of prompts, "
        f"{work['new_tokens']:,} new ones"
    )
    table = summary_table("", "tokens/s", "in all", *(title for title, _, _ in _WAITS))
    for way, title in _ways(slots):
        row = figures[way]
        waits = (f"{row[name] * scale:,.2f} {unit}" for _, name, (scale, unit) in _WAITS)
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


def plot_serving(figures, path, suffix):
    """Draws throughput and waiting, alone and together; see plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{_title(figures)}, {figures['workload']['requests']} requests", fontsize=11)
    ways = _ways(figures["settings"]["slots"])
    panels = (
        ("new tokens/s", [("", "tokens_per_s")], 1),
        ("until the first token, s", [("p50", "first_token_p50_ms"), ("p99", "first_token_p99_ms")], 1e-3),
        ("between tokens, ms", [("p50", "inter_token_p50_ms"), ("p99", "inter_token_p99_ms")], 1),
    )
    for axes, (title, bars, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        for index, (way, label) in enumerate(ways):
            places = [place + 0.4 * index for place in range(len(bars))]
            heights = [figures[way][name] * scale for _, name in bars]
            drawn = axes.bar(places, heights, 0.36, color=(_GREY, _BLUE)[index], label=label)
            axes.bar_label(drawn, fmt="{:.3g}", fontsize=8)
        axes.set(
            title=title, xticks=[place + 0.2 for place in range(len(bars))], xticklabels=[name for name, _ in bars]
        )
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format=suffix.removeprefix("."), dpi=150)


def plot(figures, path, suffix):
    """Draws latency against context and throughput against batch.

    Args:
        figures: see print_report.
        path: the file to write.
        suffix: ".png" or ".svg"; the path's own may be another.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(_title(figures), fontsize=11)
    left, right = figure.subplots(1, 2)
    _panel(left, figures["context"], ("context", "tokens in context"), ("ms_per_token", "ms a token"))
    if figures["floor"]["ms_per_token"]:
        left.axhline(figures["floor"]["ms_per_token"], color=_GREY, linewidth=1, linestyle="--")
        left.annotate("weights at memory bandwidth", (0, figures["floor"]["ms_per_token"]), (4, 4), **_ABOVE)
    _panel(right, figures["batch"], ("batch", "sequences together"), ("tokens_per_s", "tokens/s in all"))
    right.set_xticks([row["batch"] for row in figures["batch"]])
    figure.savefig(path, format=suffix.removeprefix("."), dpi=150)


_ABOVE = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 8, "color": _GREY}


def _print_head(figures):
    model, machine, settings = figures["model"], figures["machine"], figures["settings"]
    results.print(f"{model['folder']}: {model['precision']}, {model['parameters'] / 1e6:,.1f} million parameters")
    memory = f", {readable_bytes(machine['memory_bytes'])}" if machine["memory_bytes"] else ""
    results.print(f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['os']}")
    results.print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    results.print(f"{settings['threads']} threads on {settings['device']}, medians of {settings['rounds']} rounds")


# Of the table: a title, the figure, what its milliseconds are shown as.
_SECONDS, _MILLISECONDS = (1e-3, "s"), (1, "ms")
_WAITS = (
    ("first token p50", "first_token_p50_ms", _SECONDS),
    ("p99", "first_token_p99_ms", _SECONDS),
    ("between tokens p50", "inter_token_p50_ms", _MILLISECONDS),
    ("p99", "inter_token_p99_ms", _MILLISECONDS),
)


def _ways(slots):
    return ("alone", "one after the other"), ("together", f"{slots} at a time")


def _title(figures):
    model, machine = figures["model"], figures["machine"]
    title = f"{Path(model['folder']).name}: {model['parameters'] / 1e6:,.0f} million parameters, {model['precision']}"
    return f"{title}\n{machine['cpu']}, {figures['settings']['threads']} threads"


def _panel(axes, rows, across, up):
    points = [(row[across[0]], row[up[0]]) for row in rows]
    axes.plot(*zip(*points, strict=True), marker="o", color=_BLUE)
    for x, y in points:
        axes.annotate(f"{y:.3g}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel=across[1], ylabel=up[1], ylim=(0, 1.15 * max(y for _, y in points)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _time(row, name):
    return f"{row[name]:.2f} ms", f"{row['tokens_per_s']:,.1f}"


def _bytes(size):
    return readable_bytes(size) if size else "not known"

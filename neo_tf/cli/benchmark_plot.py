"""The plots of `neo-tf benchmark`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".png", ".svg")
_BLUE = "#2a6fbb"
_GREY = "#8a8a8a"
_ABOVE: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "fontsize": 8,
    "color": _GREY,
}


def check_plot(path: Path) -> None:
    """Checks that a plot can be drawn into a file.

    Raises:
        RequestError: The name's suffix is unknown.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in PLOT_SUFFIXES:
        raise RequestError(f"{path}: a plot's name must end in {' or '.join(PLOT_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("--plot needs matplotlib", error, "plot") from None


def draw_figures(figures: dict[str, Any], path: Path, suffix: str) -> None:
    """Draws the figures of evaluation/speed.py or evaluation/serving.py.

    Args:
        figures: See benchmark and benchmark_serving.
        path: The file to write.
        suffix: ".png" or ".svg"; the path's own suffix may be another one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    if "workload" in figures:
        figure.suptitle(f"{_title(figures)}, {figures['workload']['requests']} requests", fontsize=11)
        _draw_serving(figures, figure.subplots(1, 3))
    else:
        figure.suptitle(_title(figures), fontsize=11)
        _draw_speed(figures, *figure.subplots(1, 2))
    figure.savefig(path, format=suffix.removeprefix("."), dpi=150)


def name_ways(figures: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The two ways in which requests were served, each with its name for a reader."""
    return ("alone", "one after the other"), ("together", f"{figures['settings']['slots']} at a time")


def _draw_speed(figures: dict[str, Any], left: "Axes", right: "Axes") -> None:
    """Draws latency against context, and throughput against batch size."""
    contexts = [(row["context"], row["ms_per_token"]) for row in figures["context"]]
    _draw_line(left, contexts, "tokens in context", "ms a token")
    if figures["floor"]["ms_per_token"]:
        left.axhline(figures["floor"]["ms_per_token"], color=_GREY, linewidth=1, linestyle="--")
        left.annotate("weights at memory bandwidth", (0, figures["floor"]["ms_per_token"]), (4, 4), **_ABOVE)
    batches = [(row["batch"], row["tokens_per_s"]) for row in figures["batch"]]
    _draw_line(right, batches, "sequences together", "tokens/s in all")
    right.set_xticks([batch for batch, _ in batches])


def _draw_serving(figures: dict[str, Any], places: Sequence["Axes"]) -> None:
    """Draws throughput and waiting times, alone and together."""
    panels: tuple[tuple[str, list[tuple[str, str]], float], ...] = (
        ("new tokens/s", [("", "tokens_per_s")], 1),
        ("until the first token, s", [("p50", "first_token_p50_ms"), ("p99", "first_token_p99_ms")], 1e-3),
        ("between tokens, ms", [("p50", "inter_token_p50_ms"), ("p99", "inter_token_p99_ms")], 1),
    )
    for axes, (title, bars, scale) in zip(places, panels, strict=True):
        for index, (way, label) in enumerate(name_ways(figures)):
            across = [place + 0.4 * index for place in range(len(bars))]
            heights = [figures[way][name] * scale for _, name in bars]
            drawn = axes.bar(across, heights, 0.36, color=(_GREY, _BLUE)[index], label=label)
            axes.bar_label(drawn, fmt="{:.3g}", fontsize=8)
        middles = [place + 0.2 for place in range(len(bars))]
        axes.set(title=title, xticks=middles, xticklabels=[name for name, _ in bars])
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _title(figures: dict[str, Any]) -> str:
    model, machine = figures["model"], figures["machine"]
    title = f"{Path(model['folder']).name}: {model['parameters'] / 1e6:,.0f} million parameters, {model['precision']}"
    return f"{title}\n{machine['cpu']}, {figures['settings']['threads']} threads"


def _draw_line(axes: "Axes", points: Sequence[tuple[float, float]], across: str, up: str) -> None:
    """Draws a line through points, and writes each point's height above it."""
    axes.plot(*zip(*points, strict=True), marker="o", color=_BLUE)
    for x, y in points:
        axes.annotate(f"{y:.3g}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel=across, ylabel=up, ylim=(0, 1.15 * max(y for _, y in points)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)

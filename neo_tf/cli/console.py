"""What the command line prints with: consoles, progress bars, tables."""

import contextlib
import sys

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn
from rich.table import Table

_WIDTH = None if sys.stdout and sys.stdout.isatty() else 160  # into a file or a pipe: nothing is cut off
results = Console(width=_WIDTH, highlight=False, soft_wrap=True, markup=False)  # what was asked for: standard output
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


@contextlib.contextmanager
def byte_progress(what, total):
    """Yields progress(bytes, name) that moves a bar of `total` bytes."""
    with _bar(DownloadColumn(), SpeedColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size, name="": bar.advance(task, size)


def export_progress(size):
    """A bar of a checkpoint that is exported on the way."""
    return byte_progress("exporting once", size)


@contextlib.contextmanager
def count_progress(what, total):
    """Yields progress(count) that moves a bar of `total` things."""
    with _bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def token_progress(what, total, done=0):
    """Yields a Progress that moves a bar of `total` things; None is unknown. What it is told beside is shown.

    Things that were done before it began count for the bar, but not for the time that is left.
    """
    with _bar(MofNCompleteColumn(), TextColumn("{task.fields[rate]}")) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")
        yield lambda amount, rate="": bar.update(task, advance=amount, rate=rate)


def summary_table(*columns, header=True):
    """A plain table."""
    table = Table(box=box.SIMPLE, show_header=header)
    for column in columns:
        table.add_column(column, no_wrap=bool(header))
    return table


def _bar(*columns):
    parts = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    return Progress(*parts, console=console, transient=True, disable=not console.is_terminal)

"""What the command line prints with: consoles, progress bars, tables."""

import contextlib
import io
import sys
from collections.abc import Iterator

from rich import box, progress
from rich.console import Console
from rich.table import Table

from neo_tf.progress import Progress

_WIDTH = None if sys.stdout and sys.stdout.isatty() else 160  # into a file or a pipe: nothing is cut off
# Results go to standard output, and everything else to standard error.
results = Console(width=_WIDTH, highlight=False, soft_wrap=True, markup=False)
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def never_fail_to_encode() -> None:
    """Lets standard output and standard error write \\uXXXX for a character that their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def byte_progress(title: str, total: float) -> contextlib.AbstractContextManager[Progress]:
    """A progress bar of `total` bytes."""
    return _progress_bar(title, total, progress.DownloadColumn(), progress.TransferSpeedColumn())


def count_progress(title: str, total: float) -> contextlib.AbstractContextManager[Progress]:
    """A progress bar of `total` things, such as samples or tokens."""
    return _progress_bar(title, total, progress.MofNCompleteColumn())


def token_progress(title: str, total: float | None, done: int = 0) -> contextlib.AbstractContextManager[Progress]:
    """A progress bar of `total` prompts that shows the callback's `what`, which is the speed.

    Args:
        title: The text before the bar.
        total: The number of prompts; None where it is not known.
        done: The prompts that were done before. They move the bar, but do not count for the time that is left.
    """
    speed = progress.TextColumn("{task.fields[what]}")
    return _progress_bar(title, total, progress.MofNCompleteColumn(), speed, done=done)


def export_progress(total: int) -> contextlib.AbstractContextManager[Progress]:
    """The progress bar of a checkpoint of `total` bytes that a command exports before it begins."""
    return byte_progress("exporting once", total)


@contextlib.contextmanager
def _progress_bar(
    title: str, total: float | None, *columns: progress.ProgressColumn, done: int = 0
) -> Iterator[Progress]:
    """Shows a bar on a terminal, and yields the callback that moves it."""
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=total, completed=done, what="")

        def move(amount: float, what: str = "") -> None:
            bar.update(task, advance=amount, what=what)

        yield move


def summary_table(*columns: str, header: bool = True) -> Table:
    """A plain table. Without a header, its columns have no titles."""
    table = Table(box=box.SIMPLE, show_header=header)
    for column in columns:
        table.add_column(column, no_wrap=header)
    return table

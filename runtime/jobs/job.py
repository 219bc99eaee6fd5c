"""Batch jobs: many prompts, a result for each, few of them in memory at once."""

import time
from typing import Protocol

from neo_tf.errors import EngineError, NeoTFError, one_line
from neo_tf.progress import Progress, no_progress

from .open_line import Outcome
from .prompts import JobLines, Line
from .results import JobResults

# Where results are wanted in order, a line is begun at most this many windows beyond the oldest one.
_WINDOWS_AHEAD = 8


class LineRunner(Protocol):
    """What runs the lines of a job: an engine of this process, or workers on other machines.

    Attributes:
        window: The number of lines that it holds at once, about.
        has_room: Whether it takes another line now.
        tokens: The number of new tokens so far.
    """

    @property
    def window(self) -> int: ...  # noqa: D102

    @property
    def has_room(self) -> bool: ...  # noqa: D102

    @property
    def tokens(self) -> int: ...  # noqa: D102

    def start(self, line: Line) -> Outcome | None:
        """Takes a line. Returns the Outcome of a line that is known not to be served already."""

    def step(self) -> list[Outcome]:
        """Waits a little for something to happen.

        Returns:
            The lines that have ended.

        Raises:
            NeoTFError: No line can be run any more.
        """

    def cancel(self) -> None:
        """Ends the lines that still run."""


class Job:
    """Runs the prompts of a file. Each gets the text that it would get alone.

    Args:
        runner: What runs them.
        results: Where the results go.
        skip_errors: Writes a result {"index", "error"} for a prompt that cannot be served, and goes on.
        progress: Told after each step of the prompts that are done since the last one; what it is told beside is the
            number of new tokens so far and the speed.

    Example:
        >>> runner = EngineRunner(generator, {"max_new_tokens": 50}, seed=0)
        >>> with open("prompts.jsonl", "rb") as file:
        ...     Job(runner, JobStream()).run(Lines(file, "prompts.jsonl", json=True))
    """

    def __init__(
        self, runner: LineRunner, results: JobResults, skip_errors: bool = False, progress: Progress = no_progress
    ) -> None:
        self._runner = runner
        self._results = results
        self._skip_errors = skip_errors
        self._progress = progress
        self._open: set[int] = set()  # indices of lines
        self._failed: int | None = None  # the index of the line that ends the job
        self._failure: NeoTFError | None = None
        self._done = 0  # lines
        self._reported = 0  # lines

    def run(self, lines: JobLines) -> None:
        """Runs lines to their end. Where a line cannot be served, those that run are finished first.

        Raises:
            NeoTFError: A line cannot be served, and where it stands; or the results cannot be written.
        """
        self._started = time.perf_counter()
        try:
            count = self._run(lines)
        except BaseException:
            self._runner.cancel()
            raise
        if self._failure:
            raise self._failure
        self._results.finish(count)

    def _run(self, lines: JobLines) -> int:
        """Returns how many lines there were."""
        count = 0
        more = True
        while more or self._open:
            while more and self._has_room(count) and not (self._open and lines.waits):
                line = next(lines, None)
                if line is None:
                    more = False
                    break
                count += 1
                if not self._results.holds(line):
                    self._start(line)
                more = self._failure is None
            if self._open:
                self._step()
                more = more and self._failure is None
        return count

    def _has_room(self, count: int) -> bool:
        if self._results.ordered and self._open and count - min(self._open) >= _WINDOWS_AHEAD * self._runner.window:
            return False
        return self._runner.has_room

    def _start(self, line: Line) -> None:
        outcome = self._runner.start(line)
        if outcome is None:
            self._open.add(line.index)
        else:
            self._end(outcome)

    def _step(self) -> None:
        for outcome in self._runner.step():
            self._open.remove(outcome.line.index)
            self._end(outcome)
        self._report()

    def _report(self) -> None:
        tokens = self._runner.tokens
        speed = tokens / (time.perf_counter() - self._started)
        self._progress(self._done - self._reported, f"{tokens} tokens, {speed:.0f} tokens/s")
        self._reported = self._done

    def _end(self, outcome: Outcome) -> None:
        """Writes what came of a line."""
        self._done += 1
        if outcome.error is None:
            self._results.add(outcome.line, outcome.result)
            return
        message = f"{outcome.line.where}: {one_line(outcome.error)}"
        if self._skip_errors:
            self._results.add(outcome.line, outcome.result | {"error": message})
        elif self._failed is None or outcome.line.index < self._failed:
            kind = type(outcome.error) if isinstance(outcome.error, NeoTFError) else EngineError
            self._failed = outcome.line.index
            self._failure = kind(message)

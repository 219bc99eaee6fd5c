"""metrics.jsonl: a line of JSON for each step of a run."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from neo_tf.atomic import new_file
from neo_tf.errors import OutputError

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Writes the loss and the learning rate of each step into RUN/metrics.jsonl.

    Lines of steps that are made again, after the checkpoint that a run goes on from, are replaced.

    Args:
        run: The run's folder; it is made where it is missing.
        step: The first step that will be written.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / METRICS_FILE
        try:
            run.mkdir(parents=True, exist_ok=True)
            before = _lines_before(self.path, step)
            if before:
                with new_file(self.path) as file:
                    file.write_text("".join(before))
            self._file = open(self.path, "a" if before else "w", encoding="utf-8")  # noqa: SIM115  (close does it)
        except OSError as error:
            raise _output_error(self.path, error) from None

    def write(self, step: int, loss: float, lr: float) -> None:
        """Writes a step's line, {"step": …, "loss": …, "lr": …}; what a failed write left is removed by the next run.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, "loss": loss, "lr": lr}) + "\n")
        except OSError as error:
            raise _output_error(self.path, error) from None

    def flush(self) -> None:
        """Lets others see the lines; called before a checkpoint is written.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise _output_error(self.path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            if error is None:
                raise _output_error(self.path, failure) from None


def _lines_before(path: Path, step: int) -> list[str]:
    """The lines of the steps before a step. A line that was cut off in the middle is left out."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")

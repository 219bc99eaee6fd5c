"""metrics.jsonl: a line of JSON for each step of a run."""

import contextlib
import json
from collections.abc import Iterator
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
        with _told(self.path):
            run.mkdir(parents=True, exist_ok=True)
            before = _lines_before(self.path, step)
            if before:
                with new_file(self.path) as file:
                    file.write_text("".join(before))
            self._file = open(self.path, "a" if before else "w", encoding="utf-8")  # noqa: SIM115  (__exit__ closes)

    def write(self, step: int, loss: float, lr: float) -> None:
        """Writes a step's line, {"step": …, "loss": …, "lr": …}; what a failed write left is removed by the next run.

        Raises:
            OutputError: The file cannot be written.
        """
        with _told(self.path):
            self._file.write(json.dumps({"step": step, "loss": loss, "lr": lr}) + "\n")

    def flush(self) -> None:
        """Lets others see the lines; called before a checkpoint is written.

        Raises:
            OutputError: The file cannot be written.
        """
        with _told(self.path):
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _told(self.path) if error is None else contextlib.suppress(OSError):
            self._file.close()


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


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes the system's errors about a file OutputErrors that name it."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None

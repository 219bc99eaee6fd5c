"""A run: training over the original's tfrecords, with checkpoints and metrics in one folder."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from neo_tf.errors import ConfigError, TrainingError
from neo_tf.training.data.files import find_files
from neo_tf.training.data.records import data_errors
from neo_tf.training.data.sequential import training_batches
from neo_tf.training.hyperparameters import Hyperparameters
from neo_tf.training.metrics import Metrics
from neo_tf.training.trainer import Trainer

if TYPE_CHECKING:
    from neo_tf.training.saving import Saver
    from neo_tf.training.start import Start


@dataclass(frozen=True)
class StepReport:
    """What a step was.

    Args:
        step: The number of steps before it.
        loss: The loss before its update.
        lr: The learning rate, as the original logs it.
        seconds: The time it took.
        tokens: The tokens of its batch.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class RunOptions:
    """How a run goes, beside its hyperparameters.

    Args:
        last_step: The step that it ends at; None for the config's train_steps.
        save_every: The number of steps between two checkpoints.
        jit_compile: Whether XLA compiles the step.
        seed: The seed of dropout's draws where the run is new.
    """

    last_step: int | None = None
    save_every: int = 5000
    jit_compile: bool = False
    seed: int = 0


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Args:
        step: The number of steps that the run has made.
        signal: The signal that ended it before the last step; None where none came.
    """

    step: int
    signal: int | None


def train(
    start: Start,
    data: Sequence[Path | str],
    saver: Saver,
    options: RunOptions | None = None,
    watch: Callable[[StepReport], None] = lambda report: None,
) -> RunEnd:
    """Trains until the last step, or until SIGTERM or Ctrl-C, and saves then.

    A checkpoint is written at the beginning, every save_every steps, and at the end; the metrics of every step go into
    RUN/metrics.jsonl.

    Args:
        start: What the training begins with.
        data: Globs, files or folders of tfrecords.
        saver: The run.
        options: How it goes; the defaults are RunOptions'.
        watch: Called after each step.

    Returns:
        How it ended.

    Raises:
        ConfigError: The config cannot be trained with.
        DataError: The data cannot be used.
        TrainingError: The loss is not a number. The checkpoint before stays.
        CheckpointError, OutputError: See Trainer.resume and Saver.save.
    """
    options = options or RunOptions()
    hyperparameters = _hyperparameters(start)
    last = hyperparameters.train_steps if options.last_step is None else options.last_step
    first = 0 if start.state is None else start.state.step
    config = start.checkpoint.config
    batches = training_batches(
        data,
        config.n_ctx,
        hyperparameters.train_batch_size,
        first_step=first,
        seed=start.params.get("seed", 1),
        shuffle_input_filenames=start.params.get("shuffle_input_filenames", True),
        n_vocab=config.n_vocab,
    )
    trainer = Trainer(config, hyperparameters, options.jit_compile)
    if start.state is not None:
        trainer.resume(start.state)
    else:
        trainer.load(start.checkpoint)
        trainer.model.seed_generator.state.assign([options.seed, 0])

    def save() -> None:
        saver.save(trainer.state(start.checkpoint, start.params))

    tokens = hyperparameters.train_batch_size * config.n_ctx
    with _signals() as signals, data_errors(find_files(data)), Metrics(saver.run, first) as metrics:
        save()
        batch = iter(batches)
        for step in range(first, last):
            began = time.perf_counter()
            lr = trainer.learning_rate(step)
            loss = trainer.step(*next(batch))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"step {step}: the loss is {loss}. Training stops; the last checkpoint is {saver.latest()}"
                )
            metrics.write(step, loss, lr)
            watch(StepReport(step, loss, lr, time.perf_counter() - began, tokens))
            over = step + 1 == last or bool(signals)
            if over or (step + 1) % options.save_every == 0:
                metrics.flush()
                save()
            if over:
                break
    done = trainer.steps_done
    return RunEnd(done, signals[0] if signals and done < last else None)


def _hyperparameters(start: Start) -> Hyperparameters:
    path = start.checkpoint.path
    kind = start.params.get("input_fn")
    if kind not in (None, "sequential_input"):
        raise ConfigError(f"{path}: input_fn {kind!r}: data are read in the order of sequential_input alone")
    try:
        return Hyperparameters.from_original(start.params)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Lets SIGTERM and Ctrl-C end the run after the step that is being made; a second one ends it at once.

    Yields:
        The signals that came.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for wanted in (signal.SIGTERM, signal.SIGINT):
            before[wanted] = signal.signal(wanted, handle)
    except ValueError:  # not the main thread, where no signal arrives
        before.clear()
    try:
        yield came
    finally:
        restore()

"""`neo-tf train`: training as the original trains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from neo_tf.cli.console import console, token_progress
from neo_tf.cli.shared_options import TokenizerPath
from neo_tf.errors import OutputError, RequestError
from neo_tf.keras_backend import import_tensorflow

_SECONDS_BETWEEN_LINES = 30  # where there is no terminal to show a bar on


class SaveFormat(StrEnum):
    """The formats that a training is saved in."""

    keras = "keras"
    mesh_tf = "mesh-tf"


def train(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="What to train: a JSON config of the original's, or a size (125M, 350M, 760M, 1.3B, 2.7B, 6.7B, "
            "13B), for random weights; or a checkpoint in any format, which is fine-tuned.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="GLOB",
            help="The tfrecords: a glob in quotes, a file, or a folder. It can be given several times.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="RUN", help="The run's folder: its checkpoints, and metrics.jsonl with each step.")
    ],
    continue_: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Go on from the newest checkpoint in RUN. If RUN has none, go on from the step and the optimizer "
            "slots in SRC.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="The step to end at. By default the config's train_steps.", min=1),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON file whose keys replace those of the checkpoint's config: hyperparameters."
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", metavar="X", help="The learning rate. By default the config's lr.", min=0)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequences in a batch. By default the config's train_batch_size.", min=1),
    ] = None,
    save_format: Annotated[
        SaveFormat,
        typer.Option(
            metavar="FORMAT",
            help="keras writes folders RUN/checkpoint-N, which every command reads; mesh-tf writes RUN/model.ckpt-N.*, "
            "from which the original's code goes on.",
        ),
    ] = SaveFormat.keras,
    save_every: Annotated[int, typer.Option(metavar="N", help="Steps between two checkpoints.", min=1)] = 5000,
    keep: Annotated[int, typer.Option(metavar="N", help="Checkpoints that are kept; 0 keeps all.", min=0)] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="The seed of random weights and of dropout.", min=0)] = 0,
    jit_compile: Annotated[
        bool, typer.Option("--jit-compile", help="Compile the step with XLA, which takes longer to begin.")
    ] = False,
    tokenizer: TokenizerPath = None,
) -> None:
    """Train a model, or fine-tune one, as the original trains.

    SIGTERM and Ctrl-C end the training after the step that is being made, with a checkpoint; --continue goes on then.
    """
    import_tensorflow()
    from neo_tf.training.run import RunOptions, train
    from neo_tf.training.saving import Saver
    from neo_tf.training.start import going_on, new_start

    saver = Saver(output, save_format.value, keep)
    changes = {"lr": lr, "train_batch_size": batch_size}
    given = {key: value for key, value in changes.items() if value is not None}
    if continue_:
        start = going_on(src, saver, given, seed=seed, tokenizer=tokenizer, config=config)
    else:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise OutputError(f"{output}: exists and is not empty (--continue goes on with a run)")
        start = new_start(src, given, seed=seed, tokenizer=tokenizer, config=config, steps=steps)
    first = 0 if start.state is None else start.state.step
    last = start.params.get("train_steps") if steps is None else steps
    if isinstance(last, int) and last <= first:
        raise RequestError(f"the training is at step {first} already: --steps names a later one, not {last}")
    options = RunOptions(last_step=steps, save_every=save_every, jit_compile=jit_compile, seed=seed)
    with _watching(last, first) as watch:
        end = train(start, data, saver, options, watch)
    console.print(f"trained to step {end.step}: {saver.latest()}")
    if end.signal is not None:
        console.print(f"a signal ended the training before step {last}; with --continue it goes on")
        raise typer.Exit(128 + end.signal)


@contextmanager
def _watching(last: Any, first: int) -> Iterator[Callable[[Any], None]]:
    """Shows loss, learning rate and speed: a bar on a terminal, or a line now and then."""
    shown = time.monotonic()
    speed = 0.0
    with token_progress("training", last, first) as move:

        def watch(report: Any) -> None:
            nonlocal shown, speed
            now = report.tokens / report.seconds
            # The first step also compiles: its speed says nothing of the others.
            speed = now if report.step <= first + 1 else 0.9 * speed + 0.1 * now
            text = f"loss {report.loss:.4f}  lr {report.lr:.3g}  {speed:,.0f} tokens/s"
            move(1, text)
            if not console.is_terminal and time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                left = (last - report.step - 1) * report.tokens / speed
                console.print(f"step {report.step + 1} of {last}: {text}, {left / 60:,.0f} min left")

        yield watch

"""Saver: the checkpoints of a run, written whole or not at all, of which the newest are kept."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from neo_tf.atomic import new_file, new_folder
from neo_tf.checkpoints.tensor_bundle import step_of
from neo_tf.errors import OutputError, RequestError
from neo_tf.progress import Progress, no_progress
from neo_tf.training.state import TrainingState, write_keras_state, write_mesh_tf_state

KEEP = 10  # the number of checkpoints that the original keeps
_FORMATS = ("keras", "mesh-tf")
_KERAS_FOLDER = re.compile(r"checkpoint-(\d+)")
_REMOVED = ".removed"
_STATE = "checkpoint"  # the file in which TensorFlow lists the checkpoints of a folder


class Saver:
    """Writes and finds the checkpoints of a run.

    In the format "keras" a checkpoint is a folder RUN/checkpoint-N. In "mesh-tf" RUN is a folder as the original's
    model_path: model.ckpt-N.*, the config, and the file `checkpoint`.

    Args:
        run: The run's folder. It is made with the first checkpoint.
        to: The format, "keras" or "mesh-tf".
        keep: The number of checkpoints that are kept; with 0 all are.

    Raises:
        RequestError: The format is unknown.
    """

    def __init__(self, run: Path | str, to: str = "keras", keep: int = KEEP) -> None:
        if to not in _FORMATS:
            raise RequestError(f"a training cannot be saved in the format {to!r} (known: {', '.join(_FORMATS)})")
        self.run = Path(run)
        self.format = to
        self.keep = keep

    def checkpoints(self) -> dict[int, Path]:
        """The run's checkpoints, {step: folder or prefix}, the oldest first."""
        if not self.run.is_dir():
            return {}
        found: dict[int, Path] = {}
        for path in self.run.iterdir():
            if self.format == "keras" and (match := _KERAS_FOLDER.fullmatch(path.name)):
                found[int(match[1])] = path
            elif self.format == "mesh-tf" and path.suffix == ".index" and path.name.startswith("model.ckpt-"):
                found[step_of(path.stem)] = path.with_suffix("")
        return dict(sorted(found.items()))

    def latest(self) -> Path | None:
        """The checkpoint with the highest step."""
        return next(reversed(self.checkpoints().values()), None)

    def save(self, state: TrainingState, progress: Progress = no_progress) -> Path:
        """Writes a checkpoint, and then removes the oldest beyond those that are kept.

        A step that has a checkpoint already is not written again. A process that is killed meanwhile leaves the
        checkpoints from before as they were.

        Args:
            state: What is written.
            progress: Called as progress(bytes, name) after each tensor.

        Returns:
            The checkpoint's folder, or its `model.ckpt-N` prefix.

        Raises:
            CheckpointError: The weights hold NaN or Inf. Nothing is written.
            OutputError: The checkpoint cannot be written, and is not there.
        """
        there = self.checkpoints()
        if state.step in there:
            return there[state.step]
        state = replace(state, checkpoint=state.checkpoint.refusing_nan())
        path = self._save_keras(state, progress) if self.format == "keras" else self._save_mesh_tf(state, progress)
        self._remove_oldest()
        return path

    def _save_keras(self, state: TrainingState, progress: Progress) -> Path:
        path = self.run / f"checkpoint-{state.step}"
        with new_folder(path, needs=state.nbytes) as folder:
            write_keras_state(state, folder, progress)
        return path

    def _save_mesh_tf(self, state: TrainingState, progress: Progress) -> Path:
        prefix = self.run / f"model.ckpt-{state.step}"
        staged = self.run / f".{prefix.name}"
        shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
        with new_folder(staged, needs=state.nbytes) as folder:
            write_mesh_tf_state(state, folder, progress)
        try:
            self._remove_shards(prefix.name)  # without an index: of a process that was killed here
            # The index comes last: without it the data are no checkpoint.
            for file in sorted(staged.iterdir(), key=lambda file: (file.suffix == ".index", file.name)):
                _move(file, self.run / file.name)
            staged.rmdir()
        except OSError as error:
            raise OutputError(f"{prefix}: cannot be written: {error.strerror or error}") from None
        self._list(prefix.name)
        return prefix

    def _remove_oldest(self) -> None:
        for hidden in self.run.glob(f".checkpoint-*{_REMOVED}"):
            shutil.rmtree(hidden, ignore_errors=True)  # of a process that was killed here
        if not self.keep:
            return
        if self.format == "keras":
            for path in list(self.checkpoints().values())[: -self.keep]:
                hidden = path.with_name(f".{path.name}{_REMOVED}")
                path.rename(hidden)  # at once, so that half of a checkpoint is never found under its name
                shutil.rmtree(hidden)
            return
        # As TensorFlow does it: a checkpoint that is not listed was put there by somebody, and stays.
        for name in self._listed()[: -self.keep]:
            (self.run / f"{name}.index").unlink()
            self._remove_shards(name)
        self._list()

    def _remove_shards(self, name: str) -> None:
        for shard in self.run.glob(f"{name}.data-*-of-*"):
            shard.unlink()

    def _listed(self) -> list[str]:
        """The names in the file `checkpoint` whose checkpoints are there, the oldest first."""
        state = self.run / _STATE
        if not state.is_file():
            return []
        found = re.findall(r'^all_model_checkpoint_paths:\s*"(.+)"', state.read_text(errors="replace"), re.MULTILINE)
        there = {path.name for path in self.checkpoints().values()}
        return sorted({Path(path).name for path in found} & there, key=step_of)

    def _list(self, *new: str) -> None:
        """Writes the file `checkpoint`, with new names added to it."""
        names = sorted({*self._listed(), *new}, key=step_of)
        lines = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{name}"' for name in names)]
        with new_file(self.run / _STATE) as file:
            file.write_text("\n".join(lines) + "\n")


def _move(file: Path, target: Path) -> None:
    """Moves a file or a folder to where an older one may lie. The list of checkpoints is written anew instead."""
    if file.name == _STATE:
        file.unlink()
        return
    if target.is_dir():
        shutil.rmtree(target)
    file.replace(target)

"""TrainingState: all that a training goes on from, read from a run of ours or of the original's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.keras_weights import is_keras, read_keras, write_keras
from neo_tf.checkpoints.mesh_tf import GLOBAL_STEP, find_config, read_mesh_tf, read_slots, write_mesh_tf
from neo_tf.checkpoints.safetensors_file import read_safetensors, write_safetensors
from neo_tf.checkpoints.tensor_bundle import find_prefix
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.file_names import CONFIG_FILE
from neo_tf.json_files import read_json, write_json
from neo_tf.progress import Progress, no_progress
from neo_tf.variables import ROOT

# Beside the weights of a Keras folder: the optimizer's slots, and weights in float32 where the model is bfloat16.
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"
_DROPOUT_SEED = "dropout_seed"


@dataclass(frozen=True)
class TrainingState:
    """A model in the middle of its training.

    Args:
        checkpoint: The model. In a bfloat16 training its weights are bfloat16.
        params: The config as it was given, which holds the hyperparameters.
        step: The number of steps that were made.
        slots: The optimizer's slots, under the original's names, which begin with that of a variable.
        slices: The weights in float32 that the checkpoint's bfloat16 weights were rounded from. The original does not
            store them, so that it loses their low bits in a restart.
        dropout_seed: The state of the generator of dropout's draws; None where it is not known.
    """

    checkpoint: Checkpoint
    params: Mapping[str, Any]
    step: int
    slots: Mapping[str, LazyTensor]
    slices: Mapping[str, LazyTensor] = field(default_factory=dict)
    dropout_seed: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors together."""
        others = [*self.slots.values(), *self.slices.values()]
        return self.checkpoint.nbytes + sum(tensor.nbytes for tensor in others)


def read_state(
    path: Path | str, tokenizer: Path | str | None = None, config: Path | str | None = None
) -> TrainingState:
    """Opens a checkpoint with its optimizer's state: a Keras folder that a Saver wrote, or one of the original's.

    Args:
        path: A Keras folder; the original's `model.ckpt-N` prefix, or a folder with one.
        tokenizer: As in open_checkpoint. Training goes on without one; a note says where it is missing.
        config: As in open_checkpoint.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or no optimizer's slots lie in it.
        ConfigError: Its config is missing or cannot be used.
    """
    prefix = find_prefix(path)
    if prefix is not None:
        config = config or find_config(prefix.parent)
        checkpoint = read_mesh_tf(path, tokenizer, config, needs_tokenizer=False)
        slots = read_slots(prefix)
        slices: dict[str, LazyTensor] = {}
        seed = None
    elif is_keras(path):
        folder = Path(path)
        config = config or folder / CONFIG_FILE
        checkpoint = read_keras(folder, tokenizer, config)
        slots, slices = _read_optimizer(folder, checkpoint)
        seed = _read_dropout_seed(folder)
    else:
        raise CheckpointError(f"{path}: neither a checkpoint of a run nor one of the original's")
    if not slots:
        raise CheckpointError(f"{path}: holds no optimizer slots, so that its training cannot go on")
    step = checkpoint.config.training.get(GLOBAL_STEP)
    if not isinstance(step, int) or step < 0:
        raise CheckpointError(f"{path}: {GLOBAL_STEP} is {step!r}, not the number of a step")
    return TrainingState(checkpoint, read_json(config), step, slots, slices, seed)


def write_keras_state(state: TrainingState, folder: Path, progress: Progress = no_progress) -> None:
    """Writes a Keras folder with the optimizer's state: any command that takes a checkpoint takes it.

    Args:
        state: The state.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor. The bytes add up to state.nbytes.

    Raises:
        OSError: A file cannot be written.
    """
    write_keras(state.checkpoint, folder, progress)
    write_safetensors({**state.slots, **state.slices}, folder / OPTIMIZER_FILE, progress)
    write_json(folder / STATE_FILE, {_DROPOUT_SEED: state.dropout_seed})


def write_mesh_tf_state(state: TrainingState, folder: Path, progress: Progress = no_progress) -> None:
    """Writes the original's files with the optimizer's slots; the original goes on from them.

    As in the original, a bfloat16 training loses the low bits of its weights.

    Args:
        state: The state.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor.

    Raises:
        ConfigError: The original has no key for an option that the model uses.
        OSError: A file cannot be written.
    """
    write_mesh_tf(state.checkpoint, folder, progress, state.slots)


def _read_optimizer(folder: Path, checkpoint: Checkpoint) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The slots and the float32 weights of a Keras folder."""
    if not (folder / OPTIMIZER_FILE).is_file():
        return {}, {}
    stored = read_safetensors(folder / OPTIMIZER_FILE)
    slices = {name: tensor for name, tensor in stored.items() if name in checkpoint.tensors}
    slots = {name: tensor for name, tensor in stored.items() if name not in slices}
    stray = [name for name in slots if not name.startswith(f"{ROOT}/")]
    if stray:
        raise CheckpointError(f"{folder / OPTIMIZER_FILE}: {stray[0]} is no slot of an optimizer")
    return slots, slices


def _read_dropout_seed(folder: Path) -> tuple[int, ...] | None:
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    seed = values.get(_DROPOUT_SEED) if isinstance(values, dict) else None
    if not isinstance(seed, list) or len(seed) != 2 or not all(isinstance(number, int) for number in seed):
        raise ConfigError(f"{file}: {_DROPOUT_SEED} must be two integers, not {seed!r}")
    return tuple(seed)

"""Trainer: a model, its optimizer, and one compiled step, as the hyperparameters ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES
from neo_tf.checkpoints.mesh_tf import GLOBAL_STEP
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.training.adafactor import Adafactor
from neo_tf.training.adam import Adam
from neo_tf.training.loss import CrossEntropyWithZLoss
from neo_tf.training.schedule import WarmupAndDecay
from neo_tf.training.state import TrainingState
from neo_tf.training.trainable_model import TrainableGPTNeo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from keras import KerasTensor

    from neo_tf.config import GPTNeoConfig
    from neo_tf.training.hyperparameters import Hyperparameters
    from neo_tf.training.optimizer import SlotOptimizer


def make_optimizer(hyperparameters: Hyperparameters, **kwargs: Any) -> SlotOptimizer:
    """The original's optimizer.

    Args:
        hyperparameters: The hyperparameters.
        kwargs: Further arguments of keras.optimizers.Optimizer.
    """
    h = hyperparameters
    master_dtype = "bfloat16" if h.bfloat16 else "float32"
    if h.optimizer == "adafactor":
        return Adafactor(
            float(h.lr),
            decay_rate=h.weight_decay,
            beta_1=h.beta1,
            epsilon_1=h.ada_epsilon1,
            epsilon_2=h.ada_epsilon2,
            global_clipnorm=h.gradient_clipping,
            master_dtype=master_dtype,
            **kwargs,
        )
    return Adam(
        WarmupAndDecay.of(h),
        beta_1=h.beta1,
        beta_2=h.beta2,
        epsilon=h.epsilon,
        weight_decay=h.weight_decay,
        global_clipnorm=h.gradient_clipping,
        master_dtype=master_dtype,
        **kwargs,
    )


class Trainer:
    """Trains a model step by step. The model is compiled: model.fit goes on from where the trainer is, and back.

    Args:
        config: The model's config.
        hyperparameters: The hyperparameters.
        jit_compile: Whether XLA compiles the step. It takes longer to begin.

    Attributes:
        model: The model, with the initial weights of Keras's generator; load a state before training.
        optimizer: Its optimizer, whose `iterations` is the number of steps that were made.

    Example:
        >>> trainer = Trainer(config, Hyperparameters.from_file("config.json"))
        >>> loss = trainer.step(x, y)
    """

    def __init__(self, config: GPTNeoConfig, hyperparameters: Hyperparameters, jit_compile: bool = False) -> None:
        self.hyperparameters = hyperparameters
        self.model = TrainableGPTNeo(
            config,
            dtype="mixed_bfloat16" if hyperparameters.bfloat16 else "float32",
            n_microbatches=hyperparameters.microbatches(config.n_ctx),
            recompute_grad=hyperparameters.recompute_grad,
        )
        self.optimizer = make_optimizer(hyperparameters)
        self.optimizer.build(self.model.trainable_variables)
        self.model.compile(
            optimizer=self.optimizer, loss=CrossEntropyWithZLoss(hyperparameters.z_loss), jit_compile=jit_compile
        )
        self.schedule = WarmupAndDecay.of(hyperparameters)
        self._step = tf.function(self._update, jit_compile=jit_compile)

    @property
    def steps_done(self) -> int:
        """The number of steps that were made, which is the original's global_step."""
        return int(self.optimizer.iterations)

    def step(self, x: np.ndarray | KerasTensor, y: np.ndarray | KerasTensor) -> float:
        """Makes one step.

        Args:
            x: Token ids, int [batch, n_ctx].
            y: Their labels, int [batch, n_ctx].

        Returns:
            The batch's loss before the update.

        Raises:
            ConfigError: The batch cannot be divided into the microbatches.
        """
        if len(x) % self.model.n_microbatches:
            raise ConfigError(f"a batch of {len(x)} rows is not divisible by {self.model.n_microbatches} microbatches")
        return float(self._step(tf.cast(x, tf.int32), tf.cast(y, tf.int32)))

    def learning_rate(self, step: int) -> float:
        """The learning rate that the original logs at a step. Adafactor does not use it."""
        return float(self.schedule(step))

    def load(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint's weights. The optimizer stays as it is.

        Raises:
            CheckpointError: A tensor cannot be read.
        """
        for name, weight in self.model.canonical_weights.items():
            weight.assign(checkpoint.read(name).astype(np.float32, copy=False))

    def resume(self, state: TrainingState) -> None:
        """Takes weights, slots and step of a training, which then goes on as if it had not been interrupted.

        Raises:
            CheckpointError: The slots are not those of this optimizer, or a tensor cannot be read.
        """
        path = state.checkpoint.path
        slots = self.optimizer.slots
        _check_slots(path, {name: tuple(slot.shape) for name, slot in slots.items()}, state.slots)
        self.load(state.checkpoint)
        weights = self.model.canonical_weights
        for name, tensor in state.slices.items():
            weights[name].assign(tensor.read())
        for name, slot in slots.items():
            slot.assign(state.slots[name].read())
        self.optimizer.iterations.assign(state.step)
        if state.dropout_seed is not None:
            self.model.seed_generator.state.assign(state.dropout_seed)

    def state(self, start: Checkpoint, params: Mapping[str, Any]) -> TrainingState:
        """The training as it is now, to be written. Its tensors are read when they are written, so do that at once.

        Args:
            start: The checkpoint that the training began with: its tokenizer and other files are kept.
            params: The config as it was given.
        """
        step = self.steps_done
        config = self.model.config.replace(training=self.model.config.training | {GLOBAL_STEP: step})
        weights = {name: _lazy(weight) for name, weight in self.model.canonical_weights.items()}
        slots = {name: _lazy(slot) for name, slot in self.optimizer.slots.items()}
        slices = {}
        if self.hyperparameters.bfloat16:
            slices = weights
            weights = {name: _rounded(tensor) for name, tensor in weights.items()}
        checkpoint = Checkpoint(start.path, "keras", config, weights, start.files)
        seed = tuple(int(number) for number in np.asarray(self.model.seed_generator.state))
        return TrainingState(checkpoint, params, step, slots, slices, seed)

    def _update(self, x: KerasTensor, y: KerasTensor) -> KerasTensor:
        loss, gradients = self.model.loss_and_gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_weights, strict=True))
        return loss


def _check_slots(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor]) -> None:
    """Raises a CheckpointError where a checkpoint's slots are not those of the optimizer."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        kinds = []
        if missing:
            kinds.append(f"{len(missing)} are missing, such as {missing[0]}")
        if unknown:
            kinds.append(f"{len(unknown)} are another optimizer's, such as {unknown[0]}")
        raise CheckpointError(f"{path}: the optimizer's slots do not fit the config: {'; '.join(kinds)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(f"{path}: {name} has shape {list(found[name].shape)}, not {list(shape)}")


def _lazy(variable: Any) -> LazyTensor:
    return LazyTensor(tuple(variable.shape), DTYPES["float32"], lambda: np.asarray(variable))


def _rounded(tensor: LazyTensor) -> LazyTensor:
    """A tensor, rounded to bfloat16."""
    dtype = DTYPES["bfloat16"]
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().astype(dtype))

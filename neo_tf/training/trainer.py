"""Trainer: a model, its optimizer, and one compiled step, as the hyperparameters ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from neo_tf.errors import ConfigError
from neo_tf.training.adafactor import Adafactor
from neo_tf.training.adam import Adam
from neo_tf.training.loss import CrossEntropyWithZLoss
from neo_tf.training.schedule import WarmupAndDecay
from neo_tf.training.trainable_model import TrainableGPTNeo

if TYPE_CHECKING:
    import numpy as np
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

    def _update(self, x: KerasTensor, y: KerasTensor) -> KerasTensor:
        loss, gradients = self.model.loss_and_gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_weights, strict=True))
        return loss

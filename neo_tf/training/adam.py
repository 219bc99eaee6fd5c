"""The original's Adam, with decoupled weight decay: its optimizers.py, AdamWeightDecayOptimizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from neo_tf.training.optimizer import SlotOptimizer, as_dense

# Variables in whose names one of these is found are not decayed. ln_f is: its name has neither.
_NOT_DECAYED = re.compile("norm|bias")


def is_decayed(name: str) -> bool:
    """Whether weight decay acts on a variable, by its name below the model, such as h0/attn/q."""
    return _NOT_DECAYED.search(name) is None


@keras.saving.register_keras_serializable("neo_tf")
class Adam(SlotOptimizer):
    """Adam as the original has it: no bias correction, epsilon outside the root, weight decay by name.

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) g^2
        w <- w - lr (m / (sqrt(v) + epsilon) + weight_decay w)

    Args:
        learning_rate: A number or a schedule.
        beta_1: The decay of m.
        beta_2: The decay of v.
        epsilon: Added to the root of v.
        weight_decay: The weight decay, which the learning rate multiplies; for variables whose names hold neither
            "norm" nor "bias".
        global_clipnorm: See SlotOptimizer; master_dtype too.
        master_dtype: See SlotOptimizer.
        name: The optimizer's name in Keras.
        kwargs: Further arguments of keras.optimizers.Optimizer.

    Example:
        >>> model.compile(Adam(2e-4, weight_decay=0.1, global_clipnorm=1.0), loss=model.loss_fn)
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 2e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.95,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        global_clipnorm: float | None = None,
        master_dtype: str = "float32",
        name: str = "adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, global_clipnorm, master_dtype, name, weight_decay=weight_decay, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def slot_shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The two moments."""
        return {"/adam_m": tuple(shape), "/adam_v": tuple(shape)}

    def _apply_weight_decay(self, variables: Any) -> None:
        """Does nothing: Keras's own decay would come before the update and round once more."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its slots."""
        slots = self._slots_of(variable)
        gradient = ops.cast(as_dense(gradient), "float32")
        m = self.beta_1 * slots["/adam_m"] + (1.0 - self.beta_1) * gradient
        v = self.beta_2 * slots["/adam_v"] + (1.0 - self.beta_2) * ops.square(gradient)
        update = m / (ops.sqrt(v) + self.epsilon)
        if self.weight_decay and is_decayed(self._name_of(variable)):
            update = update + self.weight_decay * self._master(variable)
        self.assign(slots["/adam_m"], m)
        self.assign(slots["/adam_v"], v)
        self.assign_sub(variable, ops.cast(learning_rate, "float32") * update)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}

"""The original's learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keras import ops, optimizers, saving

if TYPE_CHECKING:
    from keras import KerasTensor

    from neo_tf.training.hyperparameters import Hyperparameters

_FLOOR = 0.1  # the share of the learning rate that it decays to


@saving.register_keras_serializable("neo_tf")
class WarmupAndDecay(optimizers.schedules.LearningRateSchedule):
    """The learning rate at a step, in float32: it decays to a tenth, and rises from 0 in the beginning.

    Both happen at once: during the warm-up, step s has the decayed rate times s / warmup_steps. So step 0 has the rate
    0, and there is no jump at the end of the warm-up.

    Args:
        lr: The learning rate before warm-up and decay.
        decay: "linear", "cosine", or None for none.
        decay_end: The step from which on the rate is a tenth of lr.
        warmup_steps: The number of steps of the warm-up.

    Call:
        step: The number of updates before this one.
        Returns a float32 scalar.

    Example:
        >>> float(WarmupAndDecay(0.005, "cosine", decay_end=16, warmup_steps=5)(16))
        0.0005
    """

    def __init__(self, lr: float, decay: str | None = None, decay_end: int = 1, warmup_steps: int = 0) -> None:
        super().__init__()
        self.lr = lr
        self.decay = decay
        self.decay_end = decay_end
        self.warmup_steps = warmup_steps

    @classmethod
    def of(cls, hyperparameters: Hyperparameters) -> WarmupAndDecay:
        """The schedule that the hyperparameters ask for."""
        assert hyperparameters.lr_decay_end is not None
        return cls(
            hyperparameters.lr,
            hyperparameters.lr_decay,
            hyperparameters.lr_decay_end,
            hyperparameters.warmup_steps,
        )

    def __call__(self, step: int | KerasTensor) -> KerasTensor:
        """See the class."""
        now = ops.cast(step, "float32")
        rate = self._decayed(now)
        if self.warmup_steps:
            rate = ops.where(now < self.warmup_steps, rate * (now / self.warmup_steps), rate)
        return rate

    def _decayed(self, now: KerasTensor) -> KerasTensor:
        # The order of the operations is that of TensorFlow's polynomial_decay and cosine_decay in a graph, where a
        # division by a constant has become a product: the rounding counts.
        done = ops.minimum(now, float(self.decay_end)) * (1.0 / self.decay_end)
        if self.decay == "linear":
            floor = self.lr * _FLOOR
            return (self.lr - floor) * (1.0 - done) + floor
        if self.decay == "cosine":
            falling = 0.5 * (1.0 + ops.cos(math.pi * done))
            return self.lr * ((1.0 - _FLOOR) * falling + _FLOOR)
        return ops.full((), self.lr, "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "lr": self.lr,
            "decay": self.decay,
            "decay_end": self.decay_end,
            "warmup_steps": self.warmup_steps,
        }

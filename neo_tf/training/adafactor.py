"""The original's Adafactor: mesh_tensorflow's optimize.py with the arguments that the original gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from neo_tf.training.optimizer import SlotOptimizer, as_dense

if TYPE_CHECKING:
    from keras import KerasTensor

_FACTORED_FROM = 128  # the second largest axis of a variable whose second moment is factored
_LARGEST_UPDATE = 1.0  # the root mean square of an update before it is scaled


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The largest and the second largest axis of a variable, or None where its second moment is not factored.

    Of axes of equal size the earlier one counts as the larger.
    """
    if len(shape) < 2:
        return None
    largest, second = sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2]
    return (largest, second) if shape[second] >= _FACTORED_FROM else None


@keras.saving.register_keras_serializable("neo_tf")
class Adafactor(SlotOptimizer):
    """Adafactor as the original has it: the decay of the second moment is constant.

    With s = max(rms(w), epsilon_2) lr, and axes A (the largest) and B (the second largest) where v is factored:

        v  <- d v + (1 - d) (g^2 + epsilon_1)              u = g / sqrt(v)
        vr <- d vr + (1 - d) mean_A(g^2 + epsilon_1)
        vc <- d vc + (1 - d) mean_B(g^2 + epsilon_1)       u = g / sqrt(vr / mean_B(vr)) / sqrt(vc)
        u  <- s u / max(1, rms(u))
        m  <- beta_1 m + (1 - beta_1) u                    u = m, unless beta_1 is 0
        w  <- w - u

    Args:
        learning_rate: The learning rate. In the original it is constant.
        decay_rate: The decay d. The original takes its config's weight_decay for it.
        beta_1: The decay of m; with 0 there is no m.
        epsilon_1: Added to the squares of the gradients.
        epsilon_2: The least size of a variable.
        global_clipnorm: See SlotOptimizer; master_dtype too.
        master_dtype: See SlotOptimizer.
        name: The optimizer's name in Keras.
        kwargs: Further arguments of keras.optimizers.Optimizer.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        decay_rate: float = 0.1,
        beta_1: float = 0.0,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        global_clipnorm: float | None = None,
        master_dtype: str = "float32",
        name: str = "adafactor",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, global_clipnorm, master_dtype, name, **kwargs)
        self.decay_rate = decay_rate
        self.beta_1 = beta_1
        self.epsilon_1 = epsilon_1
        self.epsilon_2 = epsilon_2

    def slot_shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The second moment, whole or factored, and the momentum where there is one."""
        axes = factored_axes(shape)
        if axes is None:
            shapes = {"_slot_v": tuple(shape)}
        else:
            shapes = {
                "_slot_vr": tuple(size for axis, size in enumerate(shape) if axis != axes[0]),
                "_slot_vc": tuple(size for axis, size in enumerate(shape) if axis != axes[1]),
            }
        if self.beta_1:
            shapes["_slot_m"] = tuple(shape)
        return shapes

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable and its slots."""
        slots = self._slots_of(variable)
        gradient = ops.cast(as_dense(gradient), "float32")
        size = ops.maximum(_rms(self._master(variable)), self.epsilon_2)
        update = self._normalised(gradient, slots)
        update = update / ops.maximum(1.0, _rms(update) / _LARGEST_UPDATE)
        update = update * (size * ops.cast(learning_rate, "float32"))
        if self.beta_1:
            update = self.beta_1 * slots["_slot_m"] + (1.0 - self.beta_1) * update
            self.assign(slots["_slot_m"], update)
        self.assign_sub(variable, update)

    def _normalised(self, gradient: KerasTensor, slots: dict[str, keras.Variable]) -> KerasTensor:
        """The gradient divided by the root of its second moment, which is brought up to date."""
        squares = ops.square(gradient) + self.epsilon_1
        axes = factored_axes(gradient.shape)
        if axes is None:
            v = self._moved(slots["_slot_v"], squares)
            return gradient * ops.rsqrt(v)
        largest, second = axes
        vr = self._moved(slots["_slot_vr"], ops.mean(squares, axis=largest))
        vc = self._moved(slots["_slot_vc"], ops.mean(squares, axis=second))
        # vr lacks the axis A, so that an axis after it has moved one place forward.
        place = second - 1 if second > largest else second
        rows = ops.rsqrt(vr / ops.mean(vr, axis=place, keepdims=True))
        return gradient * ops.expand_dims(rows, largest) * ops.expand_dims(ops.rsqrt(vc), second)

    def _moved(self, slot: keras.Variable, squares: KerasTensor) -> KerasTensor:
        value = self.decay_rate * slot + (1.0 - self.decay_rate) * squares
        self.assign(slot, value)
        return value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {
            "decay_rate": self.decay_rate,
            "beta_1": self.beta_1,
            "epsilon_1": self.epsilon_1,
            "epsilon_2": self.epsilon_2,
        }


def _rms(x: KerasTensor) -> KerasTensor:
    """The root of the mean square."""
    return ops.sqrt(ops.mean(ops.square(x)))

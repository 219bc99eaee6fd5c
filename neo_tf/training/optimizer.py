"""What the original's optimizers have in common: clipping, and slots in float32 under the original's names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import ops

if TYPE_CHECKING:
    from keras import KerasTensor


class SlotOptimizer(keras.optimizers.Optimizer):
    """An optimizer whose state is a few float32 slots for each variable; it works in model.fit as Keras's own do.

    The learning rate is that of `iterations` before the update, the gradients are clipped by their global norm, once,
    after those of several replicas or accumulated batches were added.

    Args:
        learning_rate: A number or a schedule of `iterations`.
        global_clipnorm: The largest global norm of the gradients; 0 makes them zero, None leaves them as they are.
        master_dtype: "bfloat16" where the original keeps the weights in bfloat16: the update is made in float32, but
            the size of a weight, which decay and Adafactor ask for, is that of its rounded value.
        name: The optimizer's name in Keras.
        kwargs: Further arguments of keras.optimizers.Optimizer.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        global_clipnorm: float | None = None,
        master_dtype: str = "float32",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, global_clipnorm=global_clipnorm, name=name, **kwargs)
        self.master_dtype = master_dtype
        self._slots: list[dict[str, keras.Variable]] = []

    @abstractmethod
    def slot_shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The slots of a variable of this shape: {what the original adds to the variable's name: the slot's shape}."""

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots; Keras calls it."""
        if self.built:
            return
        super().build(variables)
        self._slots = [
            {
                ending: self.add_variable(
                    shape, dtype="float32", name=f"{variable.path}{ending}".strip("/").replace("/", "_")
                )
                for ending, shape in self.slot_shapes(variable.shape).items()
            }
            for variable in variables
        ]

    @property
    def slots(self) -> dict[str, keras.Variable]:
        """All slots, {the original's name: variable}; for models whose name is gpt2."""
        return {
            variable.path + ending: slot
            for variable, slots in zip(self._trainable_variables, self._slots, strict=True)
            for ending, slot in slots.items()
        }

    def _slots_of(self, variable: Any) -> dict[str, keras.Variable]:
        return self._slots[self._get_variable_index(variable)]

    def _name_of(self, variable: Any) -> str:
        """A variable's name below its model: the model's own name says nothing about the variable."""
        path = self._trainable_variables[self._get_variable_index(variable)].path
        return path.partition("/")[2]

    def _master(self, variable: Any) -> KerasTensor:
        """A variable's float32 value as the original's master copy has it."""
        value = ops.convert_to_tensor(variable)
        if self.master_dtype == "float32":
            return value
        return ops.cast(ops.cast(value, self.master_dtype), "float32")

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        """Does nothing: Keras calls it in each replica, before the gradients are added."""
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Adds the replicas' gradients, as Keras does, and then clips them."""
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        if self.global_clipnorm is None:
            return pairs
        clipped = clip_by_global_norm([gradient for gradient, _ in pairs], self.global_clipnorm)
        return [(gradient, variable) for gradient, (_, variable) in zip(clipped, pairs, strict=True)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"master_dtype": self.master_dtype}


def clip_by_global_norm(gradients: Sequence[KerasTensor | None], largest: float) -> list[KerasTensor | None]:
    """Scales all gradients by one number, so that their global norm is at most `largest`: c / max(norm, c).

    Args:
        gradients: Tensors of any shapes. None stands for a variable that the loss does not depend on.
        largest: The largest norm, c. 0 makes the gradients zero.

    Returns:
        float32 tensors.
    """
    dense = [gradient if gradient is None else ops.cast(as_dense(gradient), "float32") for gradient in gradients]
    squares = [ops.sum(ops.square(gradient)) for gradient in dense if gradient is not None]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    scale = largest / ops.maximum(norm, largest)
    return [gradient if gradient is None else gradient * scale for gradient in dense]


def as_dense(gradient: Any) -> KerasTensor:
    """A gradient as a tensor: that of an embedding comes as rows and their numbers, some of them several times."""
    return tf.convert_to_tensor(gradient)  # keras.ops would take the rows for the values of a whole tensor

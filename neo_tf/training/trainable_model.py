"""GPTNeo with what the original's training adds: microbatches, and layers that are computed again for the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import ops

from neo_tf.layers import embed, unembed
from neo_tf.model import Block, GPTNeo, block
from neo_tf.scope import Scope

if TYPE_CHECKING:
    from keras import KerasTensor


@keras.saving.register_keras_serializable("neo_tf")
class TrainableGPTNeo(GPTNeo):
    """A GPTNeo that is trained as the original trains; in model.fit too.

    Args:
        args: The arguments of GPTNeo.
        n_microbatches: The number of parts of equal size that a batch is divided into. Their losses and gradients are
            added, so that the update is that of the whole batch, in less memory.
        recompute_grad: Whether the backward pass computes each layer's activations again, and does not keep them.
        kwargs: The arguments of GPTNeo.

    Example:
        >>> model = TrainableGPTNeo.from_checkpoint("models/gpt-neo-125M")
        >>> model.n_microbatches = 4
        >>> model.compile(Adam(2e-4, global_clipnorm=1.0), loss=model.loss_fn)
        >>> model.fit(token_ids[:, :-1], token_ids[:, 1:])
    """

    def __init__(self, *args: Any, n_microbatches: int = 1, recompute_grad: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_microbatches = n_microbatches
        self.recompute_grad = recompute_grad

    def call(self, token_ids: KerasTensor, training: bool = False) -> KerasTensor:
        """Computes the logits: int [batch, seq] -> float32 [batch, seq, n_vocab]."""
        if not (training and self.recompute_grad):
            return super().call(token_ids, training)
        h = embed(token_ids, self.scope, self.config, training, self.seed_generator)
        for layer in self.blocks:
            h = self._recomputed(layer, h)
        return unembed(h, self.scope, self.config)

    def _recomputed(self, layer: Block, h: KerasTensor) -> KerasTensor:
        """A layer of the forward pass, of which the backward pass keeps the input alone: [batch, seq, embd]."""
        scope = self.scope[""] if self.config.share_parameters else layer.scope

        def run(h: KerasTensor, seed: KerasTensor) -> Any:
            # The backward pass calls this outside of the scope in which Keras casts variables.
            own = _cast(scope, self.compute_dtype)
            y, loss = block(h, own, layer.layer, self.config, True, _Drawn(seed))
            return y if loss is None else (y, loss)

        # The seed is drawn once, so that both passes drop the same elements.
        result = tf.recompute_grad(run)(h, self.seed_generator.next())
        if isinstance(result, tuple | list):
            result, loss = result
            self.add_loss(loss)
        return result

    def loss_and_gradients(self, x: KerasTensor, y: KerasTensor) -> tuple[KerasTensor, list[KerasTensor | None]]:
        """The loss of a batch, and its gradients by the trainable variables.

        Microbatch j of n holds the rows j, j + n, j + 2n, ...

        Args:
            x: int [batch, seq].
            y: The labels, int [batch, seq].

        Returns:
            (float32 scalar, one tensor of each trainable variable's shape).
        """
        count = self.n_microbatches
        if count == 1:
            return self._loss_and_gradients(x, y)
        # [batch, seq] -> [rows of a microbatch, microbatches, seq]
        x, y = (ops.reshape(ids, (-1, count, ops.shape(ids)[1])) for ids in (x, y))

        def add(number: KerasTensor, loss: KerasTensor, total: list[KerasTensor]) -> Any:
            part, gradients = self._loss_and_gradients(x[:, number], y[:, number], 1.0 / count)
            return number + 1, loss + part, [one + other for one, other in zip(total, gradients, strict=True)]

        zeros = [tf.zeros(weight.shape, weight.dtype) for weight in self.trainable_weights]
        start = (tf.constant(0), tf.constant(0.0), zeros)
        _, loss, gradients = tf.while_loop(lambda number, *_: number < count, add, start, parallel_iterations=1)
        return loss, gradients

    def _loss_and_gradients(
        self, x: KerasTensor, y: KerasTensor, share: float = 1.0
    ) -> tuple[KerasTensor, list[KerasTensor]]:
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), training=True) * share
        weights = [weight.value for weight in self.trainable_weights]
        zero = tf.UnconnectedGradients.ZERO
        return loss, [tf.convert_to_tensor(one) for one in tape.gradient(loss, weights, unconnected_gradients=zero)]

    def train_step(self, data: Any) -> dict[str, Any]:
        """A step of model.fit; Keras calls it."""
        if self.n_microbatches == 1:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("sample weights cannot be used together with microbatches")
        loss, gradients = self.loss_and_gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        (tracker,) = (metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=ops.shape(x)[0])
        return {"loss": tracker.result()}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments in a form that Keras can store."""
        return super().get_config() | {"n_microbatches": self.n_microbatches, "recompute_grad": self.recompute_grad}


class _Drawn(keras.random.SeedGenerator):
    """Seeds that follow from one seed, which was drawn before.

    Args:
        first: int [2].
    """

    def __init__(self, first: KerasTensor) -> None:
        self._first = first
        self._count = 0

    def next(self, ordered: bool = True) -> KerasTensor:
        """The next seed, int [2]."""
        seed = self._first + ops.convert_to_tensor([self._count, 0], dtype=self._first.dtype)
        self._count += 1
        return seed


def _cast(scope: Scope, dtype: str) -> Scope:
    """The values of a scope's variables in another type."""
    return Scope(
        {name: _cast(item, dtype) if isinstance(item, Scope) else ops.cast(item, dtype) for name, item in scope.items()}
    )

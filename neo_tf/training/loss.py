"""The original's training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import losses, ops, saving

if TYPE_CHECKING:
    from keras import KerasTensor


@saving.register_keras_serializable("neo_tf")
class CrossEntropyWithZLoss(losses.Loss):
    """The original's loss: cross-entropy plus z_loss * log(Z)^2, the mean over all tokens.

    It is mesh_tensorflow's softmax_cross_entropy_with_logits. Call it with int labels [batch, seq] and float32 logits
    [batch, seq, n_vocab]. A label outside the vocabulary has no cross-entropy: of its loss, z_loss alone is left.

    Args:
        z_loss: The weight of log(Z)^2, where Z is the sum of a token's exponentiated logits.
        name: The loss's name in Keras.
        kwargs: Further arguments of keras.losses.Loss.
    """

    def __init__(self, z_loss: float = 1e-4, name: str = "cross_entropy_with_z_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.z_loss = z_loss

    def call(self, labels: KerasTensor, logits: KerasTensor) -> KerasTensor:
        """The loss of every token: int [batch, seq] and float32 [batch, seq, n_vocab] -> float32 [batch, seq]."""
        log_z = ops.logsumexp(logits, axis=-1)
        labels = ops.cast(labels, "int32")
        known = ops.logical_and(labels >= 0, labels < ops.shape(logits)[-1])
        chosen = ops.take_along_axis(logits, ops.where(known, labels, 0)[..., None], axis=-1)[..., 0]
        return ops.where(known, log_z - chosen, 0.0) + self.z_loss * ops.square(log_z)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"z_loss": self.z_loss}

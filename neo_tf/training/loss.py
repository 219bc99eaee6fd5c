"""The original's training loss."""

from keras import losses, ops, saving


@saving.register_keras_serializable("neo_tf")
class CrossEntropyWithZLoss(losses.Loss):
    """The original's loss: cross-entropy plus z_loss * log(Z)^2, the mean over all tokens.

    As mesh_tensorflow's softmax_cross_entropy_with_logits. Call it with int labels [batch, seq] and float32 logits
    [batch, seq, n_vocab].
    """

    def __init__(self, z_loss=1e-4, name="cross_entropy_with_z_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.z_loss = z_loss

    def call(self, labels, logits):
        """The loss of every token: [batch, seq]."""
        log_z = ops.logsumexp(logits, axis=-1)
        chosen = ops.take_along_axis(logits, ops.cast(labels, "int32")[..., None], axis=-1)[..., 0]
        return log_z - chosen + self.z_loss * ops.square(log_z)

    def get_config(self):
        """What the constructor needs."""
        return super().get_config() | {"z_loss": self.z_loss}

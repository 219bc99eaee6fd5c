"""The original's activation names (its models/activations.py), in Keras."""

from keras import ops

from neo_tf.config import ACTIVATIONS


def _gelu(x):
    return ops.gelu(x, approximate=True)


_FUNCTIONS = {
    "gelu": _gelu,
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "softplus": ops.softplus,
    "elu": ops.elu,
    "selu": ops.selu,
}
assert set(_FUNCTIONS) == set(ACTIVATIONS)


def activation(x, name):
    """Applies the original's activation `name` to a tensor of any shape.

    `gelu` is the tanh form, as mesh_tensorflow computes it.
    """
    return _FUNCTIONS[name](x)

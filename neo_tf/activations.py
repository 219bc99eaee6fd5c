"""The original's activation names (its models/activations.py), in Keras. export/activations.py is the ONNX twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from keras import ops

from neo_tf.config_values import ACTIVATIONS, OTHER_ACTIVATIONS

if TYPE_CHECKING:
    from keras import KerasTensor


def _triangle_relax(x: KerasTensor) -> KerasTensor:
    return ops.sin(x) - ops.sin(3 * x) / 9 + ops.sin(5 * x) / 25 - ops.sin(7 * x) / 49


def _square_relax(x: KerasTensor) -> KerasTensor:
    return ops.cos(x) - ops.cos(3 * x) / 3 + ops.cos(5 * x) / 5 - ops.cos(7 * x) / 7


def _elish(x: KerasTensor) -> KerasTensor:
    # The original divides by 1 + exp(x) where the published function has exp(-x).
    negative = ops.minimum(x, 0)
    below = (ops.exp(negative) - 1) * ops.sigmoid(negative)
    return ops.where(x > 0, x * ops.sigmoid(-x), below)


_FUNCTIONS: dict[str, Callable[[KerasTensor], KerasTensor]] = {
    "gelu": lambda x: ops.gelu(x, approximate=True),
    "gelu_erf": lambda x: ops.gelu(x, approximate=False),
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "selu": ops.selu,
    "elu": ops.elu,
    "abs": ops.abs,
    "sin": ops.sin,
    "cos": ops.cos,
    "sign": ops.sign,
    "silu": ops.silu,
    "softplus": ops.softplus,
    "lrelu001": lambda x: ops.leaky_relu(x, 0.01),
    "lrelu020": lambda x: ops.leaky_relu(x, 0.2),
    "id": lambda x: x,
    "triangle_relax": _triangle_relax,
    "square_relax": _square_relax,
    "softsign": ops.softsign,
    "softmax": lambda x: ops.softmax(x, axis=-1),
    "logsoftmax": lambda x: ops.log_softmax(x, axis=-1),
    "bipolarsigmoid": lambda x: ops.sigmoid(x) * 2 - 1,
    "elish": _elish,
    "maxsig": lambda x: ops.maximum(x, ops.sigmoid(x)),
    "cosid": lambda x: ops.cos(x) - x,
    "minsin": lambda x: ops.minimum(x, ops.sin(x)),
    "maxtanh": lambda x: ops.maximum(x, ops.tanh(x)),
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),
    "tanhexp": lambda x: x * ops.tanh(ops.exp(x)),
    "lisht": lambda x: x * ops.tanh(x),
    "softplusmone": lambda x: ops.softplus(x) - 1,
}
assert set(_FUNCTIONS) == {*ACTIVATIONS, *OTHER_ACTIVATIONS}


def activation(x: KerasTensor, name: str) -> KerasTensor:
    """Applies the original's activation `name` to a tensor of any shape; gelu is the tanh form."""
    return _FUNCTIONS[name](x)

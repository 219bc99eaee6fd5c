"""The ONNX twin of neo_tf/activations.py."""

from neo_tf.config_values import ACTIVATIONS

# Names that one ONNX operator computes.
_OPERATORS = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "selu": ("Selu", {}),
    "elu": ("Elu", {}),
    "abs": ("Abs", {}),
    "sin": ("Sin", {}),
    "cos": ("Cos", {}),
    "sign": ("Sign", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "gelu": ("Gelu", {"approximate": "tanh"}),
    "lrelu001": ("LeakyRelu", {"alpha": 0.01}),
    "lrelu020": ("LeakyRelu", {"alpha": 0.2}),
    "softmax": ("Softmax", {"axis": -1}),
    "logsoftmax": ("LogSoftmax", {"axis": -1}),
}


def _harmonics(operator, terms):
    """sum of operator(n * x) * factor: the relaxations of waves."""

    def build(x, op, number):
        total = None
        for count, factor in terms:
            wave = op(operator, x if count == 1 else op("Mul", x, number(count)))
            wave = wave if factor == 1 else op("Mul", wave, number(factor))
            total = wave if total is None else op("Add", total, wave)
        return total

    return build


def _elish(x, op, number):
    # The original divides by 1 + exp(x) where the published function has exp(-x).
    negative = op("Min", x, number(0))
    below = op("Mul", op("Sub", op("Exp", negative), number(1)), op("Sigmoid", negative))
    above = op("Mul", x, op("Sigmoid", op("Neg", x)))
    return op("Where", op("Greater", x, number(0)), above, below)


_COMPOSED = {
    "id": lambda x, op, number: x,
    "silu": lambda x, op, number: op("Mul", x, op("Sigmoid", x)),
    "triangle_relax": _harmonics("Sin", ((1, 1), (3, -1 / 9), (5, 1 / 25), (7, -1 / 49))),
    "square_relax": _harmonics("Cos", ((1, 1), (3, -1 / 3), (5, 1 / 5), (7, -1 / 7))),
    "bipolarsigmoid": lambda x, op, number: op("Sub", op("Mul", op("Sigmoid", x), number(2)), number(1)),
    "elish": _elish,
    "maxsig": lambda x, op, number: op("Max", x, op("Sigmoid", x)),
    "cosid": lambda x, op, number: op("Sub", op("Cos", x), x),
    "minsin": lambda x, op, number: op("Min", x, op("Sin", x)),
    "maxtanh": lambda x, op, number: op("Max", x, op("Tanh", x)),
    "mish": lambda x, op, number: op("Mul", x, op("Tanh", op("Softplus", x))),
    "tanhexp": lambda x, op, number: op("Mul", x, op("Tanh", op("Exp", x))),
    "lisht": lambda x, op, number: op("Mul", x, op("Tanh", x)),
    "softplusmone": lambda x, op, number: op("Sub", op("Softplus", x), number(1)),
}
assert {*_OPERATORS, *_COMPOSED} == set(ACTIVATIONS)


# Operators whose CUDA kernels take bfloat16.
_IN_BFLOAT16 = ("gelu", "relu", "id")


def activation(x, scope, name):
    """Applies the original's activation `name`; gelu is the tanh form."""
    scope = scope[name]
    widened = scope.graph.precision.dtype.name == "bfloat16" and name not in _IN_BFLOAT16
    if widened:
        return scope.native(_activation(scope.float32(x), scope, name, scope.graph.float32_number))
    return _activation(x, scope, name, scope.graph.number)


def _activation(x, scope, name, number):
    if name in _OPERATORS:
        operator, attributes = _OPERATORS[name]
        return scope.op(operator, x, **attributes)
    return _COMPOSED[name](x, scope.op, number)

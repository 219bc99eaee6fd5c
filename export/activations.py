"""The ONNX twin of neo_tf/activations.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neo_tf.config_values import ACTIVATIONS, OTHER_ACTIVATIONS

from .builder import Scope

# What a composed activation is built with: x, the scope's op, and a function that makes a number's constant.
_Build = Callable[[str, Callable[..., str], Callable[[float], str]], str]

# The activations that one ONNX operator computes, as {name: (operator, attributes)}.
_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "gelu_erf": ("Gelu", {"approximate": "none"}),
    "lrelu001": ("LeakyRelu", {"alpha": 0.01}),
    "lrelu020": ("LeakyRelu", {"alpha": 0.2}),
    "softmax": ("Softmax", {"axis": -1}),
    "logsoftmax": ("LogSoftmax", {"axis": -1}),
}


def _harmonics(operator: str, terms: tuple[tuple[int, float], ...]) -> _Build:
    """The relaxation of a wave: operator(x) plus the sum of operator(n * x) * factor over the terms (n, factor)."""

    def build(x: str, op: Callable[..., str], number: Callable[[float], str]) -> str:
        total = op(operator, x)
        for count, factor in terms:
            wave = op(operator, op("Mul", x, number(count)))
            total = op("Add", total, op("Mul", wave, number(factor)))
        return total

    return build


def _elish(x: str, op: Callable[..., str], number: Callable[[float], str]) -> str:
    # The original divides by 1 + exp(x) where the published function has exp(-x).
    negative = op("Min", x, number(0))
    below = op("Mul", op("Sub", op("Exp", negative), number(1)), op("Sigmoid", negative))
    above = op("Mul", x, op("Sigmoid", op("Neg", x)))
    return op("Where", op("Greater", x, number(0)), above, below)


_COMPOSED: dict[str, _Build] = {
    "id": lambda x, op, number: x,
    "silu": lambda x, op, number: op("Mul", x, op("Sigmoid", x)),
    "triangle_relax": _harmonics("Sin", ((3, -1 / 9), (5, 1 / 25), (7, -1 / 49))),
    "square_relax": _harmonics("Cos", ((3, -1 / 3), (5, 1 / 5), (7, -1 / 7))),
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
assert {*_OPERATORS, *_COMPOSED} == {*ACTIVATIONS, *OTHER_ACTIVATIONS}


# Operators whose CUDA kernels take bfloat16.
_IN_BFLOAT16 = ("gelu", "relu", "id")


def activation(x: str, scope: Scope, name: str) -> str:
    """Applies the original's activation `name` to a tensor of any shape; gelu is the tanh form."""
    scope = scope[name]
    widened = scope.graph.precision.dtype.name == "bfloat16" and name not in _IN_BFLOAT16
    if widened:
        return scope.native(_activation(scope.float32(x), scope, name, scope.graph.float32_number))
    return _activation(x, scope, name, scope.graph.number)


def _activation(x: str, scope: Scope, name: str, number: Callable[[float], str]) -> str:
    if name in _OPERATORS:
        operator, attributes = _OPERATORS[name]
        return scope.op(operator, x, **attributes)
    return _COMPOSED[name](x, scope.op, number)

"""Products with the layers' matrices and the token embedding, in each of the kernels that a precision asks for."""

import numpy as np

from .builder import MICROSOFT, typed
from .precision import block_size
from .quantise import quantise, quantise_columns
from .standard_ops import standard_matmul

_STEP = 1 / 127  # of activations that were scaled to [-1, 1]


def matmul(x, scope, names, name, bias=None):
    """x @ some variables side by side + a bias or none, in the graph's precision: [..., in] -> [..., out]."""
    precision, place = scope.graph.precision, scope if name == "kernel" else scope[name]
    if precision.layers is None:
        return _add(place, place.op("MatMul", x, scope.packed(names, name)), bias)
    shapes = [scope.tensor(part).shape for part in names]
    inputs, outputs = shapes[0][0], sum(shape[1] for shape in shapes)
    if precision.standard:
        return _add(place, standard_matmul(x, scope, place, names, name, inputs, outputs), bias)
    if precision.dynamic:
        return _add(place, dynamic_matmul(x, scope, place, names, name, inputs, outputs), bias)
    weight = blocks(scope, names, name, outputs, inputs, precision.layers, lambda *w: np.concatenate(w, axis=1).T)
    return block_matmul(x, place, weight, outputs, inputs, precision.layers, bias)


def block_matmul(x, place, weight, outputs, inputs, bits, bias=None):
    """x @ a block-quantised weight, (integers, scales) by name, + a bias or none: [..., inputs] -> [..., outputs]."""
    fused = (None, None, bias) if bias and place.graph.precision.target == "cpu" else ()
    product = place.op(
        *("MatMulNBits", x, *weight, *fused),
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block_size(inputs, bits, place.graph.precision.target),
        accuracy_level=4,  # products in int8: float32 ones take ten times as long on a CPU
    )
    return product if fused else _add(place, product, bias)


def _add(place, product, bias):
    return place.op("Add", product, bias) if bias else product


def blocks(scope, names, name, outputs, inputs, bits, function, rows=None):
    """Initializers (integers, scales) of function(variables), float32 [outputs, inputs], quantised in blocks.

    rows: of them as they are stored, those beyond the outputs zeros; see padded_outputs.
    """
    precision, rows = scope.graph.precision, rows or outputs
    dtype, block = precision.dtype, block_size(inputs, bits, precision.target)
    count = -(-inputs // block)
    shapes = (rows, count, block * bits // 8), (rows, count)

    def compute(*variables):
        return quantise(padded(function(*variables), rows), bits, block, dtype, scope.moments(name))

    return scope.derived_pair(typed(f"{name}/int{bits}", dtype), (np.uint8, dtype), shapes, compute, *names)


def padded_outputs(outputs, precision):
    """Rows of a stored head: CUDA's kernels are fast for multiples of 8 alone."""
    return outputs if precision.target == "cpu" else -(-outputs // 8) * 8


def padded(weight, rows):
    """A weight [outputs, inputs] with rows of zeros below, up to so many."""
    return np.pad(weight, ((0, rows - len(weight)), (0, 0))) if rows > len(weight) else weight


def dynamic_matmul(x, scope, place, names, name, inputs, outputs):
    """x @ int8 columns, x rounded to int8 too, each row of it by its own largest value: [..., in] -> [..., out].

    DynamicQuantizeMatMul takes one scale for all rows: a sequence's logits would change with its company and with the
    tokens after it. Rows that are scaled to [-1, 1] first need none, and cost a tenth of the product.
    """
    weight, scales = scope.derived_pair(
        *(f"{name}/columns", (np.int8, np.float32), ((inputs, outputs), (outputs,))),
        lambda *parts: quantise_columns(np.concatenate(parts, axis=1)),
        *names,
    )
    op, constant = place.op, place.graph.constant
    step, zero = constant(_STEP, np.float32), constant(128, np.uint8)
    largest = op("ReduceMax", op("Abs", x), constant([-1]), keepdims=1)
    rounded = op("QuantizeLinear", op("Div", x, largest), step, zero)
    product = op("MatMulIntegerToFloat", rounded, weight, step, scales, zero, domain=MICROSOFT)
    return op("Mul", product, largest)

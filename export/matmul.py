"""Products with the layers' matrices and the token embedding, in the kernels of each precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .builder import MICROSOFT, Scope, typed
from .precision import Precision
from .quantise import quantise, quantise_columns
from .standard_ops import standard_matmul

_TILE = 128  # the rows of a product's tile on CUDA
_STEP = 1 / 127  # the step of activations that were scaled to [-1, 1]


def matmul(x: str, scope: Scope, names: Sequence[str], name: str, bias: str | None = None) -> str:
    """Multiplies x with variables side by side, in the graph's precision: [..., inputs] -> [..., outputs].

    Args:
        x: [..., inputs].
        scope: The scope of the variables.
        names: The variables' names; each variable is [inputs, some outputs].
        name: The name of the whole matrix within the scope.
        bias: [outputs], added to the product, or None.
    """
    precision = scope.graph.precision
    place = scope if name == "kernel" else scope[name]
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


def block_matmul(
    x: str, place: Scope, weight: tuple[str, str], outputs: int, inputs: int, bits: int, bias: str | None = None
) -> str:
    """Multiplies x with a matrix that is quantised in blocks: [..., inputs] -> [..., outputs].

    Args:
        x: [..., inputs].
        place: The scope that the nodes are named in.
        weight: The matrix as (integers, scales); see blocks.
        outputs, inputs: The matrix's size.
        bits: 8 or 4.
        bias: [outputs], added to the product, or None.
    """
    precision = place.graph.precision
    fused = bias is not None and precision.target == "cpu"
    operands: list[str | None] = [x, *weight]
    if fused:
        operands += [None, None, bias]  # neither zero points nor an order of the inputs
    product = place.op(
        "MatMulNBits",
        *operands,
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=precision.block_size(inputs, bits),
        accuracy_level=4,  # products in int8: float32 ones take ten times as long on a CPU
    )
    return product if fused else _add(place, product, bias)


def _add(place: Scope, product: str, bias: str | None) -> str:
    return place.op("Add", product, bias) if bias else product


def blocks(
    scope: Scope,
    names: Sequence[str],
    name: str,
    outputs: int,
    inputs: int,
    bits: int,
    function: Callable[..., np.ndarray],
    rows: int | None = None,
) -> tuple[str, str]:
    """Returns a matrix as initializers (integers, scales), quantised in blocks of inputs.

    The integers are uint8 [rows, blocks, block * bits / 8], the scales [rows, blocks] in the graph's own type.

    Args:
        scope: The scope of the variables.
        names: The variables' names.
        name: The name of the matrix within the scope.
        outputs, inputs: The matrix's size.
        bits: 8 or 4.
        function: Takes the variables as float32 arrays, and returns the matrix, float32 [outputs, inputs].
        rows: The number of rows that are stored, those past the outputs being zeros (see padded_outputs); by default
            the number of outputs.
    """
    precision = scope.graph.precision
    dtype = precision.dtype
    block = precision.block_size(inputs, bits)
    stored = rows or outputs
    count = -(-inputs // block)
    shapes = (stored, count, block * bits // 8), (stored, count)

    def compute(*variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return quantise(padded(function(*variables), stored), bits, block, dtype, scope.moments(name))

    return scope.derived_pair(typed(f"{name}/int{bits}", dtype), (np.uint8, dtype), shapes, compute, *names)


def padded_outputs(outputs: int, precision: Precision) -> int:
    """The number of rows of a stored head: on CUDA a multiple of 128 (50257 -> 50304).

    The kernels for quantised weights take multiples of 8; those for many rows, which docs/precisions.md describes, take
    multiples of 64; and cuBLAS computes whole tiles anyway.
    """
    return outputs if precision.target == "cpu" else -(-outputs // _TILE) * _TILE


def padded(weight: np.ndarray, rows: int) -> np.ndarray:
    """Puts rows of zeros below a weight: [outputs, inputs] -> [rows, inputs]."""
    return np.pad(weight, ((0, rows - len(weight)), (0, 0))) if rows > len(weight) else weight


def dynamic_matmul(
    x: str, scope: Scope, place: Scope, names: Sequence[str], name: str, inputs: int, outputs: int
) -> str:
    """Multiplies x with int8 columns; each row of x is rounded to int8 too, by its own largest value.

    DynamicQuantizeMatMul takes one scale for all rows: a sequence's logits would then depend on the other sequences of
    the batch and on the tokens after it. Rows that are scaled to [-1, 1] first need no such scale, and this costs a
    tenth of the product's time.

    Args:
        x: [..., inputs].
        scope: The scope of the variables.
        place: The scope that the nodes are named in.
        names: The variables' names; side by side they are the matrix.
        name: The name of the matrix within `scope`.
        inputs, outputs: The matrix's size.

    Returns:
        [..., outputs].
    """
    weight, scales = scope.derived_pair(
        f"{name}/columns",
        (np.int8, np.float32),
        ((inputs, outputs), (outputs,)),
        lambda *parts: quantise_columns(np.concatenate(parts, axis=1)),
        *names,
    )
    op = place.op
    constant = place.graph.constant
    step = constant(_STEP, np.float32)
    zero = constant(128, np.uint8)
    largest = op("ReduceMax", op("Abs", x), constant([-1]), keepdims=1)
    rounded = op("QuantizeLinear", op("Div", x, largest), step, zero)
    product = op("MatMulIntegerToFloat", rounded, weight, step, scales, zero, domain=MICROSOFT)
    return op("Mul", product, largest)

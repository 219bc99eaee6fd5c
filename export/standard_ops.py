"""What ONNX Runtime's own operators do in the other graphs, in operators of the ONNX standard: for other runtimes.

Block-quantised weights are signed integers here, so that DequantizeLinear needs no zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from .builder import Scope
from .quantise import quantise

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig


def standard_rotary(x: str, scope: Scope, config: GPTNeoConfig, tables: Sequence[str]) -> str:
    """See layers.apply_rotary_emb: [batch, seq, heads * head] -> the same shape."""
    op, constant = scope.op, scope.graph.constant
    # [n_ctx, head / 2] -> [batch, seq, 1, head / 2]
    cos, sin = (op("Unsqueeze", op("Gather", table, "position_ids"), constant([2])) for table in tables)
    # [batch, seq, heads * head] -> [batch, seq, heads, head] -> two times [batch, seq, heads, head / 2]
    heads = op("Reshape", x, constant([0, 0, config.n_head, config.head_size]))
    first, second = scope.op_several("Split", heads, outputs=2, axis=-1, num_outputs=2)
    turned = op("Sub", op("Mul", first, cos), op("Mul", second, sin))
    second = op("Add", op("Mul", second, cos), op("Mul", first, sin))
    whole = op("Concat", turned, second, axis=-1)
    return op("Reshape", whole, constant([0, 0, config.n_head * config.head_size]))


def standard_matmul(
    x: str, scope: Scope, place: Scope, names: Sequence[str], name: str, inputs: int, outputs: int
) -> str:
    """Multiplies x with quantised variables side by side; see matmul.matmul.

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
    precision = scope.graph.precision
    bits = precision.layers
    assert bits is not None
    # [inputs, outputs], in blocks of inputs: ONNX Runtime makes a MatMulNBits of these two nodes by itself.
    integers, scales = _blocks(
        scope, names, name, (outputs, inputs), bits, lambda *w: np.concatenate(w, axis=1).T, transpose=True
    )
    weight = _dequantised(place, integers, scales, axis=0, block=precision.block_size(inputs, bits))
    return place.op("MatMul", x, weight)


def standard_look_up(input_ids: str, scope: Scope, config: GPTNeoConfig) -> str:
    """See layers.look_up: rows of the quantised embedding, int64 [batch, seq] -> [batch, seq, embd]."""
    (integers, scales), block = _embedding(scope, "wte", config)
    inner = scope["wte"]
    integers = inner.op("Gather", integers, input_ids)
    scales = inner.op("Gather", scales, input_ids)
    return _dequantised(inner, integers, scales, axis=2, block=block)


def standard_head(h: str, scope: Scope, name: str, config: GPTNeoConfig) -> str:
    """The head's product with the embedding `name`, see layers.unembed: [batch, seq, embd] -> [batch, seq, n_vocab]."""
    head, constant = scope["head"], scope.graph.constant
    (integers, scales), block = _embedding(scope, name, config)
    embedding = _dequantised(head, integers, scales, axis=1, block=block)
    shape = head.op("Concat", head.op("Shape", h, start=0, end=2), constant([config.n_vocab]), axis=0)
    # [batch, seq, embd] -> [batch * seq, embd] x [n_vocab, embd]^T -> [batch * seq, n_vocab]
    rows = head.op("Reshape", h, constant([-1, config.n_embd]))
    return head.op("Reshape", head.op("Gemm", rows, embedding, transB=1), shape)


def _embedding(scope: Scope, name: str, config: GPTNeoConfig) -> tuple[tuple[str, str], int]:
    """An embedding [n_vocab, embd] as (integers, scales) in blocks along its rows, and the size of a block."""
    precision = scope.graph.precision
    bits = precision.ends
    assert bits is not None
    shape = (config.n_vocab, config.n_embd)
    pair = _blocks(scope, [name], name, shape, bits, lambda weight: weight, transpose=False)
    return pair, precision.block_size(config.n_embd, bits)


def _dequantised(place: Scope, integers: str, scales: str, axis: int, block: int) -> str:
    return place.op("DequantizeLinear", integers, scales, axis=axis, block_size=block)


def _blocks(
    scope: Scope,
    names: Sequence[str],
    name: str,
    shape: tuple[int, int],
    bits: int,
    function: Callable[..., np.ndarray],
    transpose: bool,
) -> tuple[str, str]:
    """Returns a matrix as initializers (integers, scales), quantised in blocks of inputs.

    Args:
        scope: The scope of the variables.
        names: The variables' names.
        name: The name of the matrix within the scope.
        shape: (outputs, inputs).
        bits: 8 or 4.
        function: Takes the variables as float32 arrays, and returns the matrix, float32 [outputs, inputs].
        transpose: Whether both are stored as [inputs, outputs].
    """
    outputs, inputs = shape
    block = scope.graph.precision.block_size(inputs, bits)
    count = -(-inputs // block)
    sizes = ((inputs, outputs), (count, outputs)) if transpose else ((outputs, inputs), (outputs, count))

    def compute(*variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.ascontiguousarray(function(*variables))
        packed, scales = quantise(weight, bits, block, moments=scope.moments(name))
        if bits == 4:
            packed = np.stack([packed & 15, packed >> 4], axis=-1)
        # As integers around 0, [outputs, inputs], without what filled the last block.
        integers = packed.reshape(outputs, -1)[:, :inputs].astype(np.int16) - 2 ** (bits - 1)
        if transpose:
            integers, scales = integers.T, scales.T
        if bits == 8:
            return integers.astype(np.int8), scales
        return _packed_int4(integers), scales

    base = f"{name}/signed{bits}"
    if bits == 8:
        return scope.derived_pair(base, (np.int8, np.float32), sizes, compute, *names)
    # The two halves of a byte are not of one row where a row's length is odd: the file has one row of bytes.
    stored = (-(-outputs * inputs // 2),)
    integers, scales = scope.derived_pair(base, (np.uint8, np.float32), (stored, sizes[1]), compute, *names)
    return scope.graph.add_view(f"{integers}/values", ml_dtypes.int4, sizes[0], integers), scales


def _packed_int4(integers: np.ndarray) -> np.ndarray:
    """Integers of any shape -> uint8 [half as many], the first of two in the low half, as ONNX stores int4."""
    halves = np.append(integers.reshape(-1), [0] * (integers.size % 2)).astype(np.uint8) & 15
    return halves[0::2] | (halves[1::2] << 4)

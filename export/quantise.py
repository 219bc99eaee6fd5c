"""Rounds weights to integers with a common scale for each block, to the nearest step or by GPTQ."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

_ROWS = 4096  # the number of rows that are quantised at a time, which bounds the memory
# The scales that are tried for a block of 4 bits, as fractions of the scale that reaches the block's largest value.
_TRIALS = np.linspace(0.80, 1.04, 13, dtype=np.float32)
# This fraction of the mean second moment is added to each: inputs that the text did not have may still come.
_DAMPING = 0.01


def quantise(
    weight: np.ndarray, bits: int, block: int, dtype: DTypeLike = np.float32, moments: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds each block of inputs to integers with a common scale.

    value = (integer - 2 ** (bits - 1)) * scale, as MatMulNBits and GatherBlockQuantized read it. Without moments, each
    weight goes to its nearest step; with moments, it goes to the step that best compensates for the rounding errors of
    the inputs before it.

    Args:
        weight: float32 [outputs, inputs].
        bits: 8 or 4.
        block: The number of inputs that share a scale; see Precision.block_size.
        dtype: The dtype of the scales.
        moments: X^T X, [inputs, inputs], of the X [tokens, inputs] that the weight is multiplied with, or None.

    Returns:
        (uint8 [outputs, blocks, block * bits / 8], scales [outputs, blocks]).
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    packed = np.empty((outputs, blocks, block * bits // 8), np.uint8)
    scales = np.empty((outputs, blocks), dtype)
    feedback = None if moments is None else _feedback(moments, blocks * block)
    for start in range(0, outputs, _ROWS):
        rows = np.zeros((min(_ROWS, outputs - start), blocks * block), np.float32)
        rows[:, :inputs] = weight[start : start + _ROWS]
        rows = rows.reshape(len(rows), blocks, block)
        if feedback is None:
            scale = _scales(rows, bits, dtype)
            integers = _round(rows, scale, 2 ** (bits - 1))
        else:
            integers, scale = _round_with_feedback(rows, feedback, bits, dtype)
        if bits == 4:  # two to a byte, the first in the low half
            integers = integers[..., 0::2] | (integers[..., 1::2] << 4)
        packed[start : start + _ROWS] = integers
        scales[start : start + _ROWS] = scale
    return packed, scales


def quantise_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds each output feature's column to int8 with a common scale, as MatMulIntegerToFloat reads it.

    Args:
        weight: float32 [inputs, outputs].

    Returns:
        (int8 [inputs, outputs], float32 scales [outputs]).
    """
    scales = np.abs(weight).max(axis=0) / np.float32(127)
    integers = _round(weight.T, scales, 128).astype(np.int16) - 128
    return np.ascontiguousarray(integers.T.astype(np.int8)), scales


def _feedback(moments: np.ndarray, size: int) -> np.ndarray:
    """How much an input's weights compensate for the errors of the inputs before: float32 [size, size].

    The result is upper triangular, with ones on the diagonal.

    With moments = U U^T, U upper triangular, the errors E [outputs, inputs] of the weights cost |E U|^2. Column j of
    E U holds E_j U_jj + sum over i < j of E_i U_ij: it is least where weight j is rounded after it was moved by the
    sum over i < j of E_i U_ij / U_jj. This is GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), which
    gives the same integers without an inverse.

    Args:
        moments: [inputs, inputs].
        size: The number of inputs in whole blocks; those past the matrix's own inputs are always zero.
    """
    inputs = len(moments)
    damped = np.zeros((size, size))
    damped[:inputs, :inputs] = moments
    damped[np.diag_indices(size)] += _DAMPING * damped.trace() / inputs or 1.0
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.divide(upper, upper.diagonal(), dtype=np.float32, casting="same_kind")


def _round_with_feedback(
    values: np.ndarray, feedback: np.ndarray, bits: int, dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, blocks, block] -> (uint8 of the same shape, scales [rows, blocks]), one input after another."""
    rows, blocks, block = values.shape
    middle = 2 ** (bits - 1)
    values = np.ascontiguousarray(values.reshape(rows, -1).T)  # [inputs, rows]
    errors = np.empty_like(values)
    integers = np.empty(values.shape, np.uint8)
    scales = np.empty((blocks, rows), dtype)
    for number in range(blocks):
        first, end = number * block, (number + 1) * block
        # [earlier, block]^T x [earlier, rows] -> [block, rows]
        targets = values[first:end] + feedback[:first, first:end].T @ errors[:first]
        scales[number] = _scales(np.ascontiguousarray(targets.T), bits, dtype)
        scale = scales[number].astype(np.float32)
        for index in range(first, end):
            target = targets[index - first] + feedback[first:index, index] @ errors[first:index]
            integers[index] = _round(target[:, None], scale, middle)[:, 0]
            errors[index] = values[index] - (integers[index].astype(np.float32) - middle) * scale
    return integers.T.reshape(rows, blocks, block), scales.T


def _scales(values: np.ndarray, bits: int, dtype: DTypeLike) -> np.ndarray:
    """The scales of blocks: [..., block] -> [...]. 4 bits take the trial scale with the least squared error."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        return (np.abs(values).max(axis=-1) / (middle - 1)).astype(dtype)
    # The value with the largest magnitude goes to -middle, as there is one step more on that side.
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best = np.zeros(largest.shape, dtype)
    least = np.full(largest.shape, np.inf, np.float32)
    for trial in _TRIALS:
        scale = (largest / -middle * trial).astype(dtype)
        steps = _round(values, scale, middle).astype(np.float32) - middle
        error = np.square(steps * scale.astype(np.float32)[..., None] - values).sum(axis=-1)
        better = error < least
        best[better] = scale[better]
        least[better] = error[better]
    return best


def _round(values: np.ndarray, scale: np.ndarray, middle: int) -> np.ndarray:
    """[..., block] with scales [...] -> uint8 [..., block], the nearest steps around `middle`."""
    scale = scale.astype(np.float32)[..., None]
    steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    return np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)

"""Rounding: weights to integers with a common scale for each block, to the nearest or by GPTQ."""

import numpy as np

_ROWS = 4096  # quantised at a time: bounds the memory
# The scales that are tried for a block of 4 bits, as parts of the one that reaches its largest value.
_TRIALS = np.linspace(0.80, 1.04, 13, dtype=np.float32)
_DAMPING = 0.01  # of the mean second moment, added to each: what a text left out may still come


def quantise(weight, bits, block, dtype=np.float32, moments=None):
    """Rounds each block of inputs to integers with a common scale.

    value = (integer - 2 ** (bits - 1)) * scale, as MatMulNBits and GatherBlockQuantized read it. Each weight goes to
    its nearest step, or with moments to the one that best makes up for what the inputs before it were rounded by.

    Args:
        weight: float32 [outputs, inputs].
        bits: 8 or 4.
        block: inputs that share a scale: see block_size.
        dtype: of the scales.
        moments: X^T X of the X [tokens, inputs] that the weight is multiplied with, [inputs, inputs]; or None.

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
        if moments is None:
            scale = _scales(rows, bits, dtype)
            integers = _round(rows, scale, 2 ** (bits - 1))
        else:
            integers, scale = _round_with_feedback(rows, feedback, bits, dtype)
        if bits == 4:  # two to a byte, the first in the low half
            integers = integers[..., 0::2] | (integers[..., 1::2] << 4)
        packed[start : start + _ROWS], scales[start : start + _ROWS] = integers, scale
    return packed, scales


def quantise_columns(weight):
    """Rounds each output feature's column to int8 with a common scale, as MatMulIntegerToFloat reads it.

    Args:
        weight: float32 [inputs, outputs].

    Returns:
        (int8 [inputs, outputs], float32 scales [outputs]).
    """
    scales = np.abs(weight).max(axis=0) / np.float32(127)
    integers = _round(weight.T, scales, 128).astype(np.int16) - 128
    return np.ascontiguousarray(integers.T.astype(np.int8)), scales


def _feedback(moments, size):
    """What an input's weights take over of the others' errors: float32 [size, size], 1 on the diagonal, 0 below.

    With moments = U U^T, U upper triangular, the errors E [outputs, inputs] of the weights cost |E U|^2. Column j of
    E U holds E_j U_jj + sum over i < j of E_i U_ij: it is least where weight j is rounded after it was moved by the
    sum over i < j of E_i U_ij / U_jj. This is GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), which
    gives the same integers without an inverse.
    """
    inputs = len(moments)
    damped = np.zeros((size, size))  # filled up with inputs that are never there
    damped[:inputs, :inputs] = moments
    damped[np.diag_indices(size)] += _DAMPING * damped.trace() / inputs or 1.0
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.divide(upper, upper.diagonal(), dtype=np.float32, casting="same_kind")


def _round_with_feedback(values, feedback, bits, dtype):
    """float32 [rows, blocks, block] -> (uint8 of the same shape, scales [rows, blocks]), one input after another."""
    rows, blocks, block = values.shape
    middle = 2 ** (bits - 1)
    values = np.ascontiguousarray(values.reshape(rows, -1).T)  # [inputs, rows]
    errors, integers = np.empty_like(values), np.empty(values.shape, np.uint8)
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


def _scales(values, bits, dtype):
    """Scales of blocks: [..., block] -> [...]. 4 bits take the one, among a few, with the least squared error."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        return (np.abs(values).max(axis=-1) / (middle - 1)).astype(dtype)
    # The value of largest size goes to -middle, which has one step more than the other side.
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best, least = np.zeros(largest.shape, dtype), np.full(largest.shape, np.inf, np.float32)
    for trial in _TRIALS:
        scale = (largest / -middle * trial).astype(dtype)
        steps = _round(values, scale, middle).astype(np.float32) - middle
        error = np.square(steps * scale.astype(np.float32)[..., None] - values).sum(axis=-1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _round(values, scale, middle):
    scale = scale.astype(np.float32)[..., None]
    steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    return np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)

"""Precisions of an exported folder: one weight in, one block-quantised weight out."""

from dataclasses import dataclass

import numpy as np

BLOCK = 32  # inputs of an output feature that share a scale
_ROWS = 4096  # quantised at a time: bounds the memory
# The scales that are tried for a block of 4 bits, as parts of the one that reaches its largest value.
_TRIALS = np.linspace(0.80, 1.04, 13, dtype=np.float32)


@dataclass(frozen=True)
class Precision:
    """Bits of the weights: of the layers' matrices, and of the token embedding and the head; None is float32."""

    layers: int | None
    ends: int | None


PRECISIONS = {"fp32": Precision(None, None), "int8": Precision(8, 8), "int4": Precision(4, 8)}


def quantise(weight, bits):
    """Rounds each block of BLOCK inputs to integers with a common scale.

    value = (integer - 2 ** (bits - 1)) * scale, as MatMulNBits and GatherBlockQuantized read it. 8 bits take the
    nearest integer; 4 bits the scale, among a few, with the least squared error.

    Args:
        weight: float32 [outputs, inputs].
        bits: 8 or 4.

    Returns:
        (uint8 [outputs, blocks, BLOCK * bits / 8], float32 scales [outputs, blocks]).
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // BLOCK)
    packed = np.empty((outputs, blocks, BLOCK * bits // 8), np.uint8)
    scales = np.empty((outputs, blocks), np.float32)
    for start in range(0, outputs, _ROWS):
        rows = np.zeros((min(_ROWS, outputs - start), blocks * BLOCK), np.float32)
        rows[:, :inputs] = weight[start : start + _ROWS]
        integers, scale = _quantise_blocks(rows.reshape(len(rows), blocks, BLOCK), bits)
        if bits == 4:  # two to a byte, the first in the low half
            integers = integers[..., 0::2] | (integers[..., 1::2] << 4)
        packed[start : start + _ROWS], scales[start : start + _ROWS] = integers, scale
    return packed, scales


def _quantise_blocks(values, bits):
    """float32 [rows, blocks, BLOCK] -> (uint8 of the same shape, float32 [rows, blocks])."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        scale = np.abs(values).max(axis=-1) / (middle - 1)
        return _round(values, scale, middle), scale
    # The value of largest size goes to -middle, which has one step more than the other side.
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best, best_scale = np.full(largest.shape, np.inf, np.float32), None
    for trial in _TRIALS:
        scale = largest / -middle * trial
        integers = _round(values, scale, middle)
        error = np.square((integers.astype(np.float32) - middle) * scale[..., None] - values).sum(axis=-1)
        if best_scale is None:
            chosen, best_scale, best = integers, scale.copy(), error
        else:
            better = error < best
            chosen[better], best_scale[better], best[better] = integers[better], scale[better], error[better]
    return chosen, best_scale


def _round(values, scale, middle):
    steps = np.divide(values, scale[..., None], out=np.zeros_like(values), where=scale[..., None] != 0)
    return np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)

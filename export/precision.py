"""Precisions of an exported graph: one tensor in, one cast or block-quantised tensor out."""

from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from neo_tf.errors import CheckpointError, RequestError

_ROWS = 4096  # quantised at a time: bounds the memory
# The scales that are tried for a block of 4 bits, as parts of the one that reaches its largest value.
_TRIALS = np.linspace(0.80, 1.04, 13, dtype=np.float32)
# Inputs of an output feature that share a scale: fewer are more exact, more are faster. See docs/precisions.md. 8 bits
# are exact enough with 256, which CUDA's fast kernels do not take.
_BLOCKS, _BLOCKS_OF_INT8 = (128, 32), (256, 128, 32)
_DAMPING = 0.01  # of the mean second moment, added to each: what a text left out may still come


@dataclass(frozen=True)
class Precision:
    """What the numbers of a graph are.

    Args:
        name: "fp32", "fp16", "bf16", "int8" or "int4".
        target: "cpu" or "cuda".
        dtype: of activations, KV cache and whatever is not quantised; a numpy dtype.
        layers: bits of the layers' matrices; None is dtype.
        ends: bits of the token embedding and the head; None is dtype.
        dynamic: the layers' products in int8 throughout, activations too: faster for many tokens at a time.
        standard: in operators of the ONNX standard alone.
        calibration: a Calibration; the layers' matrices are rounded for what it saw them multiplied with.
    """

    name: str
    target: str
    dtype: np.dtype
    layers: int | None = None
    ends: int | None = None
    dynamic: bool = False
    standard: bool = False
    calibration: object = field(default=None, compare=False, repr=False)

    @property
    def for_prompts(self):
        """The precision of prefill.onnx, or None where decoder.onnx prefills as fast itself."""
        return replace(self, dynamic=True) if self.name == "int8" and self.target == "cpu" else None


_FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_BITS = {"int8": (8, 8), "int4": (4, 8)}
# What runs where; the first is the default. On CPUs fp16 and bf16 gain nothing; on CUDA attention has no fp32 kernel.
TARGETS = {
    "fp32": ("cpu",),
    "fp16": ("cuda",),
    "bf16": ("cuda",),
    "int8": ("cpu", "cuda"),
    "int4": ("cpu", "cuda"),
}


def precision_for(name, target=None):
    """The Precision of a name and a target ("cpu", "cuda", or None: the name's own).

    Raises:
        RequestError: an unknown name, or one that the target does not run.
    """
    if name not in TARGETS:
        raise RequestError(f"unknown precision {name!r} (known: {', '.join(TARGETS)})")
    target = target or TARGETS[name][0]
    if target not in TARGETS[name]:
        others = [other for other, targets in TARGETS.items() if target in targets]
        if not others:
            raise RequestError(f"unknown target {target!r} (known: cpu, cuda)")
        raise RequestError(f"{name} has no fast kernels on target {target}, which runs {', '.join(others)}")
    if name in _FLOATS:
        return Precision(name, target, np.dtype(_FLOATS[name]))
    layers, ends = _BITS[name]
    return Precision(name, target, np.dtype(np.float32 if target == "cpu" else np.float16), layers, ends)


def cast(value, dtype, name):
    """float32 -> dtype, to the nearest.

    Raises:
        CheckpointError: a finite value that dtype has no room for.
    """
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        rounded = value.astype(dtype)
    lost = np.isinf(rounded) & np.isfinite(value)
    if lost.any():
        largest = np.abs(value[lost]).max()
        raise CheckpointError(f"{name}: {largest:g} is too large for {dtype.name}: export in bf16 or fp32")
    return rounded


def block_size(inputs, bits, target="cpu"):
    """Inputs that share a scale, of a matrix with so many."""
    sizes = _BLOCKS_OF_INT8 if bits == 8 and target == "cpu" else _BLOCKS
    return next((size for size in sizes if inputs % size == 0), sizes[-1])


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

"""Precisions of an exported graph: one tensor in, one cast or block-quantised tensor out."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from neo_tf.errors import CheckpointError, RequestError

_ROWS = 4096  # quantised at a time: bounds the memory
# The scales that are tried for a block of 4 bits, as parts of the one that reaches its largest value.
_TRIALS = np.linspace(0.80, 1.04, 13, dtype=np.float32)
# Inputs of an output feature that share a scale: fewer are more exact, more are faster. See docs/precisions.md.
_BLOCKS = {8: 128, 4: 128}
_SMALL_BLOCK = 32


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
    """

    name: str
    target: str
    dtype: np.dtype
    layers: int | None = None
    ends: int | None = None
    dynamic: bool = False
    standard: bool = False

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


def block_size(inputs, bits):
    """Inputs that share a scale: of a matrix with so many, in so many bits."""
    return _BLOCKS[bits] if inputs % _BLOCKS[bits] == 0 else _SMALL_BLOCK


def quantise(weight, bits, dtype=np.float32):
    """Rounds each block of inputs to integers with a common scale.

    value = (integer - 2 ** (bits - 1)) * scale, as MatMulNBits and GatherBlockQuantized read it. 8 bits take the
    nearest integer; 4 bits the scale, among a few, with the least squared error.

    Args:
        weight: float32 [outputs, inputs].
        bits: 8 or 4.
        dtype: of the scales.

    Returns:
        (uint8 [outputs, blocks, block * bits / 8], scales [outputs, blocks]); block is block_size(inputs, bits).
    """
    outputs, inputs = weight.shape
    block = block_size(inputs, bits)
    blocks = -(-inputs // block)
    packed = np.empty((outputs, blocks, block * bits // 8), np.uint8)
    scales = np.empty((outputs, blocks), dtype)
    for start in range(0, outputs, _ROWS):
        rows = np.zeros((min(_ROWS, outputs - start), blocks * block), np.float32)
        rows[:, :inputs] = weight[start : start + _ROWS]
        integers, scale = _quantise_blocks(rows.reshape(len(rows), blocks, block), bits, dtype)
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


def _quantise_blocks(values, bits, dtype):
    """float32 [rows, blocks, block] -> (uint8 of the same shape, scales [rows, blocks])."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        scale = (np.abs(values).max(axis=-1) / (middle - 1)).astype(dtype)
        return _round(values, scale, middle), scale
    # The value of largest size goes to -middle, which has one step more than the other side.
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    best, best_scale = np.full(largest.shape, np.inf, np.float32), None
    for trial in _TRIALS:
        scale = (largest / -middle * trial).astype(dtype).astype(np.float32)
        integers = _round(values, scale, middle)
        error = np.square((integers.astype(np.float32) - middle) * scale[..., None] - values).sum(axis=-1)
        if best_scale is None:
            chosen, best_scale, best = integers, scale.copy(), error
        else:
            better = error < best
            chosen[better], best_scale[better], best[better] = integers[better], scale[better], error[better]
    return chosen, best_scale


def _round(values, scale, middle):
    scale = scale.astype(np.float32)[..., None]
    steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
    return np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)

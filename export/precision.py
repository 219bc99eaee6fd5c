"""Precisions of an exported graph: one tensor in, one cast or block-quantised tensor out."""

from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from neo_tf.errors import CheckpointError, RequestError

# Inputs of an output feature that share a scale: fewer are more exact, more are faster. See docs/precisions.md. 8 bits
# are exact enough with 256, which CUDA's fast kernels do not take.
_BLOCKS, _BLOCKS_OF_INT8 = (128, 32), (256, 128, 32)


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

"""The precisions of an exported graph: the types of its numbers, and which matrices are rounded to integers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import ml_dtypes
import numpy as np

from neo_tf.errors import CheckpointError, RequestError
from neo_tf.onnx_folder import PRECISION_TARGETS, TARGETS

# The number of inputs of an output feature that share a scale: smaller blocks are more exact, larger ones are faster.
# See docs/precisions.md. CUDA's kernels for many rows take blocks of 32 alone.
_BLOCKS = {("cpu", 8): (256, 128, 32), ("cpu", 4): (128, 32), ("cuda", 8): (32,), ("cuda", 4): (32,)}


class MomentsSource(Protocol):
    """Where the second moments of matrices' inputs come from; calibrate.Calibration is such a source."""

    def moments(self, matrix: str) -> np.ndarray | None:
        """The sums X^T X, float32 [inputs, inputs], of the inputs X [tokens, inputs] of a matrix; None if not known.

        Args:
            matrix: The name of the matrix in the data file.
        """


@dataclass(frozen=True)
class Precision:
    """The types of a graph's numbers.

    Args:
        name: "fp32", "fp16", "bf16", "int8" or "int4".
        target: The device that the graph is made for: "cpu" or "cuda".
        dtype: The numpy dtype of the activations, the KV cache, and all weights that are not quantised.
        layers: The bits of the layers' matrices (8 or 4); None leaves them in dtype.
        ends: The bits of the token embedding and the head (8 or 4); None leaves them in dtype.
        dynamic: Whether the layers' activations are rounded to int8 too; this is faster for many tokens at a time.
        standard: Whether the graph consists of operators of the ONNX standard alone.
        calibration: The moments that the layers' matrices are rounded for; None rounds each weight to the nearest.
    """

    name: str
    target: str
    dtype: np.dtype
    layers: int | None = None
    ends: int | None = None
    dynamic: bool = False
    standard: bool = False
    calibration: MomentsSource | None = field(default=None, compare=False, repr=False)

    @property
    def for_prompts(self) -> Precision | None:
        """The precision of prefill.onnx, or None where decoder.onnx itself prefills as fast."""
        if self.name == "int8" and self.target == "cpu":
            return replace(self, dynamic=True)
        return None

    @property
    def windowed_caches(self) -> bool:
        """Whether local layers of decoder.onnx cache their window only.

        On CUDA such a cache could not be captured in a CUDA graph: the run that captures computes a step three times,
        and each time would move the window on.
        """
        return self.target == "cpu"

    @property
    def chooses(self) -> bool:
        """Whether decoder.onnx returns the most likely tokens, so that the logits can stay on the device."""
        return self.target == "cuda"

    def block_size(self, inputs: int, bits: int) -> int:
        """The number of inputs that share a scale, in a quantised matrix.

        Args:
            inputs: The number of inputs that the matrix has.
            bits: 8 or 4.
        """
        sizes = _BLOCKS[self.target, bits]
        return next((size for size in sizes if inputs % size == 0), sizes[-1])


_FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_BITS = {"int8": (8, 8), "int4": (4, 8)}  # of the layers, and of the embedding and the head


def precision_for(name: str, target: str | None = None) -> Precision:
    """Returns the Precision of a name.

    Args:
        name: "fp32", "fp16", "bf16", "int8" or "int4".
        target: "cpu" or "cuda"; by default "cuda" for fp16 and bf16, and "cpu" for the others.

    Raises:
        RequestError: The name or the target is unknown, or the target does not run the precision.
    """
    if name not in PRECISION_TARGETS:
        raise RequestError(f"unknown precision {name!r} (known: {', '.join(PRECISION_TARGETS)})")
    target = target or PRECISION_TARGETS[name][0]
    if target not in TARGETS:
        raise RequestError(f"unknown target {target!r} (known: {', '.join(TARGETS)})")
    if target not in PRECISION_TARGETS[name]:
        others = [other for other, targets in PRECISION_TARGETS.items() if target in targets]
        raise RequestError(f"{name} has no fast kernels on target {target}, which runs {', '.join(others)}")
    if name in _FLOATS:
        return Precision(name, target, np.dtype(_FLOATS[name]))
    layers, ends = _BITS[name]
    return Precision(name, target, np.dtype(np.float32 if target == "cpu" else np.float16), layers, ends)


def cast(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Rounds a float32 array to dtype, each number to the nearest.

    Args:
        value: A float32 array of any shape.
        dtype: The dtype of the result.
        name: The tensor's name, for the message.

    Raises:
        CheckpointError: A finite value is too large for dtype.
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

"""ONNX: graphs from checkpoints, without TensorFlow."""

from export.package import export_onnx
from export.verify import verify

__all__ = ["export_onnx", "verify"]

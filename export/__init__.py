"""ONNX: graphs from checkpoints, without TensorFlow."""

from export.package import export_onnx

__all__ = ["export_onnx"]

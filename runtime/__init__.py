"""Decoding exported models with onnxruntime; no onnx, no TensorFlow."""

from runtime.pipeline import pipeline

__all__ = ["pipeline"]

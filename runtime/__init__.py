"""Decoding exported models with onnxruntime; no onnx, no TensorFlow."""

"""Exports a checkpoint as an ONNX folder, without TensorFlow and without the runtime."""

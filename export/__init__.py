"""From a checkpoint to an ONNX folder, without TensorFlow and without the runtime."""

"""neo-tf: GPT-Neo from a Mesh-TensorFlow checkpoint to production decoding.

Importing it is light: each name below loads what it needs on first use.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "GPTNeo": "neo_tf.model",
    "GPTNeoConfig": "neo_tf.config",
    "Checkpoint": "neo_tf.checkpoints",
    "open_checkpoint": "neo_tf.checkpoints",
    "save_checkpoint": "neo_tf.checkpoints",
    "convert": "neo_tf.checkpoints",
    "init_checkpoint": "neo_tf.checkpoints",
    "export_onnx": "export",
    "verify": "export",
    "pipeline": "runtime",
    "Session": "runtime",
    "Engine": "runtime",
    "Service": "runtime",
    "Request": "runtime",
    "SamplingOptions": "runtime",
    "BeamOptions": "runtime",
    "Tokenizer": "runtime",
    "NeoTFError": "neo_tf.errors",
}
__all__ = [*_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'neo_tf' has no attribute {name!r}")
    if name == "GPTNeo":
        from neo_tf.keras_backend import import_tensorflow

        import_tensorflow()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOMES])

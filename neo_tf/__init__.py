"""neo-tf: GPT-Neo from a Mesh-TensorFlow checkpoint to production decoding.

Importing it is light: each name below loads what it needs on first use.
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# In the source tree export/ and runtime/ lie beside this folder; installed, they lie inside it.
if not os.path.isdir(os.path.join(__path__[0], "runtime")):
    __path__.append(os.path.dirname(__path__[0]))

# ONNX Runtime's official builds send events of their use to Microsoft unless this is set before their import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "GPTNeo": "neo_tf.model",
    "GPTNeoConfig": "neo_tf.config",
    "Checkpoint": "neo_tf.checkpoints",
    "open_checkpoint": "neo_tf.checkpoints",
    "save_checkpoint": "neo_tf.checkpoints",
    "convert": "neo_tf.checkpoints",
    "init_checkpoint": "neo_tf.checkpoints",
    "export_onnx": "neo_tf.export.package",
    "verify": "neo_tf.evaluation.verify",
    "pipeline": "neo_tf.text_generation",
    "set_seed": "neo_tf.text_generation",
    "Session": "neo_tf.runtime.device.session",
    "Engine": "neo_tf.runtime.engine.engine",
    "Service": "neo_tf.runtime.engine.service",
    "Request": "neo_tf.runtime.engine.request",
    "Generation": "neo_tf.runtime.engine.generation",
    "SamplingOptions": "neo_tf.runtime.sampling.options",
    "BeamOptions": "neo_tf.runtime.sampling.options",
    "Tokenizer": "neo_tf.runtime.tokenizer",
    "NeoTFError": "neo_tf.errors",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'neo_tf' has no attribute {name!r}")
    if name == "GPTNeo":
        from neo_tf.keras_backend import import_tensorflow

        import_tensorflow()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

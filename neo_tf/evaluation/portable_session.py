"""model.onnx, run as any other runtime would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, one_line
from neo_tf.onnx_folder import MODEL, OnnxFolder
from neo_tf.runtime.device.element_types import numpy_dtype
from neo_tf.runtime.device.providers import session_options


class PortableSession:
    """model.onnx with caches that grow and an attention mask of ones. It is for verification, not for speed.

    Args:
        folder: An ONNX folder: its path, or an OnnxFolder.
        precision: One of the folder's precisions; its first one where None.

    Raises:
        CheckpointError: The graph cannot be loaded.
        ConfigError, RequestError: See OnnxFolder.
    """

    def __init__(self, folder: OnnxFolder | Path | str, precision: str | None = None):
        import onnxruntime

        folder = OnnxFolder.read(folder)
        self.config = folder.config
        self.precision = folder.find_precision(precision)
        path = folder.graph_path(self.precision, MODEL)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), session_options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None
        self._parts = cache_parts(self.config, windowed=False, head_size=self.config.head_size)
        self._dtypes = {value.name: value.type for value in self._session.get_inputs()}
        self._cache: list[np.ndarray] = []

    def prefill(self, slot: int, token_ids: np.ndarray, past: int, logits_of: int | Literal["all"] = 1) -> np.ndarray:
        """Runs several tokens, like Session.prefill. It has one slot, and a past of 0 begins a new sequence."""
        count = len(token_ids)
        if past == 0:
            self._cache = [
                np.zeros((1, part.heads, 0, part.columns), numpy_dtype(self._dtypes[part.past])) for part in self._parts
            ]
        feed = {part.past: value for part, value in zip(self._parts, self._cache, strict=True)}
        feed["input_ids"] = np.asarray(token_ids, np.int64)[None]
        feed["attention_mask"] = np.ones((1, past + count), np.int64)
        feed["position_ids"] = np.arange(past, past + count, dtype=np.int64)[None]
        # The graph takes 0 for all tokens, and cannot leave the logits out.
        feed["num_logits_to_keep"] = np.array([0 if logits_of == "all" else max(logits_of, 1)], np.int64)
        outputs = self._session.run(["logits", *(part.present for part in self._parts)], feed)
        logits, *self._cache = [np.asarray(output) for output in outputs]
        return logits[0, :0] if logits_of == 0 else logits[0]

"""Hidden states of whole texts, from an ONNX folder's encoder.onnx. It has no cache, and no part in decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neo_tf.errors import EngineError, RequestError
from neo_tf.onnx_folder import HIDDEN_STATES, OnnxFolder

from .graph_files import GraphFiles
from .providers import choose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Encoder:
    """The graph that turns a text's tokens into the final hidden states. Several threads may use it.

    It loads the weights a second time, and is made where hidden states are asked for: what only decodes pays nothing.

    Args:
        folder: An ONNX folder that export_onnx wrote: its path, or an OnnxFolder that was read before.
        device: "cpu", "cuda" or "cuda:N"; None takes the device that the folder was exported for.
        threads: The number of the CPU's threads; ONNX Runtime's choice where None.
        precision: One of the folder's precisions; the folder's first one where None.

    Attributes:
        config: The model's config.
        precision: The precision in use.

    Raises:
        CheckpointError: The folder has no encoder.onnx, or it is damaged.
        ConfigError: The folder's config.json cannot be used, or does not fit encoder.onnx.
        ProviderError: The device is not available, or has too little memory.
        RequestError: The folder has no such precision.
    """

    def __init__(
        self,
        folder: OnnxFolder | Path | str,
        device: str | int | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        folder = OnnxFolder.read(folder)
        self.config = folder.config
        self.precision = folder.find_precision(precision)
        device, device_id = choose(device, folder.target)
        files = GraphFiles(folder, self.precision, device, device_id, threads, captures=False)
        self._graph = files.open_encoder()

    def hidden_states(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The final hidden states of one text: what the head computes logits from, after ln_f.

        Args:
            token_ids: int [n], 1 <= n <= n_ctx.

        Returns:
            float32 [n, embd].

        Raises:
            RequestError: There is no token, there are more than the context has, or one is outside the vocabulary.
            EngineError: A hidden state is NaN or infinite.
        """
        ids = np.asarray(token_ids, np.int64)
        if not 1 <= len(ids) <= self.config.n_ctx:
            raise RequestError(f"hidden states are of 1 to {self.config.n_ctx} tokens, not of {len(ids)}")
        if ids.min() < 0 or ids.max() >= self.config.n_vocab:
            raise RequestError(f"a token id is outside the vocabulary of {self.config.n_vocab}")
        (states,) = self._graph.run([HIDDEN_STATES], {"input_ids": ids[None]})
        if not np.isfinite(states).all():
            raise EngineError("hidden states are NaN or infinite: the weights or the precision do not fit the text")
        return states[0]

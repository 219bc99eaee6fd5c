"""The graphs of an ONNX folder as ONNX Runtime's sessions, checked against the folder's config before anything runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError, ProviderError, one_line
from neo_tf.onnx_folder import DECODER, ENCODER, HIDDEN_STATES, PREFILL, OnnxFolder, top_tokens

from .element_types import numpy_dtype
from .providers import create_session, session_options
from .step import LoadedGraph

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from onnxruntime import InferenceSession

# A folder has two graphs, each with threads of its own. The threads of one graph must not stay awake for 20 ms, as ONNX
# Runtime would let them, while the other graph runs.
_SPIN_MICROSECONDS = 1000
_INPUTS = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length")


@dataclass(frozen=True)
class GraphFiles:
    """The graph files of one precision.

    Args:
        folder: The folder.
        precision: One of the folder's precisions.
        device, device_id: The device that the graphs run on.
        threads: The number of the CPU's threads; ONNX Runtime's choice where None.
        captures: Whether runs can be captured as CUDA graphs.

    Raises:
        ProviderError: The device has no kernels for the precision.
    """

    folder: OnnxFolder
    precision: str
    device: str
    device_id: int
    threads: int | None
    captures: bool

    def __post_init__(self) -> None:
        if self.precision == "bf16" and self.device == "cpu":
            raise ProviderError(f"{self.folder.path}: bf16 has kernels on CUDA alone")

    def open_decoder(self) -> tuple[LoadedGraph, np.dtype]:
        """decoder.onnx, and the type of keys and values.

        Raises:
            CheckpointError, ConfigError: It is not there, damaged, or of another model.
            ProviderError: The device does not start.
        """
        folder = self.folder
        path = folder.graph_path(self.precision, DECODER)
        if not path.is_file():
            raise CheckpointError(f"{folder.path}: an ONNX folder of neo-tf has a {path.name}, and this one has none")
        session = self._load(path)
        names = {*_INPUTS, "logits_start"}
        sizes = {"logits": [folder.config.n_vocab]}
        top = 0
        if folder.chooses:
            top = top_tokens(folder.config)
            names.add("inverse_temperature")
            sizes |= {"inverse_temperature": [1, 1], "top_logprobs": [top], "top_ids": [top]}
        dtype = self._check(path, session, names, sizes)
        return self._loaded(session, top), dtype

    def open_prompts(self) -> LoadedGraph | None:
        """prefill.onnx, where the folder has one; it raises what open_decoder does."""
        path = self.folder.graph_path(self.precision, PREFILL)
        if not path.is_file():
            return None
        session = self._load(path)
        self._check(path, session, set(_INPUTS), {})
        return self._loaded(session)

    def open_encoder(self) -> InferenceSession:
        """encoder.onnx.

        Raises:
            CheckpointError, ConfigError: It is not there, damaged, or of another model.
            ProviderError: The device does not start.
        """
        path = self.folder.graph_path(self.precision, ENCODER)
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder.path}: has no {path.name}, for hidden states: export it again with this neo-tf"
            )
        session = self._load(path)
        n_embd = self.folder.config.n_embd
        outputs = {value.name: value.shape[-1] for value in session.get_outputs()}
        inputs = [value.name for value in session.get_inputs()]
        if inputs != ["input_ids"] or outputs != {HIDDEN_STATES: n_embd}:
            raise ConfigError(f"{path}: does not turn input_ids into {HIDDEN_STATES} of {n_embd} numbers a token")
        return session

    def _load(self, path: Path) -> InferenceSession:
        options = session_options(self.threads, _SPIN_MICROSECONDS)
        try:
            return create_session(path, self.device, self.device_id, options, self.captures)
        except NeoTFError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            if self.device == "cuda" and re.search("out of memory|allocate memory", str(error)):
                raise ProviderError(f"{path}: GPU {self.device_id} has no memory for the weights") from None
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None

    def _loaded(self, session: InferenceSession, top: int = 0) -> LoadedGraph:
        return LoadedGraph(session, self.device, self.device_id, self.folder.config.n_vocab, top, self.captures)

    def _check(self, path: Path, session: InferenceSession, names: set[str], sizes: dict[str, list[int]]) -> np.dtype:
        """Checks that a graph agrees with the config, to which the buffers are cut, before it reads and writes them.

        Args:
            path: The graph's file, for the messages.
            session: The graph.
            names: Inputs that the graph must have.
            sizes: The fixed sizes of inputs and outputs other than the cache's, after the batch.

        Returns:
            The type of keys and values.
        """
        inputs = session.get_inputs()
        missing = names - {value.name for value in inputs}
        if missing:
            raise CheckpointError(
                f"{path}: has no input {', '.join(sorted(missing))}: export it again with this neo-tf"
            )
        parts = cache_parts(self.folder.config, self.folder.windowed_caches)
        shapes = {value.name: value.shape for value in (*inputs, *session.get_outputs())}
        wanted = sizes | {part.past: [part.heads, part.columns] for part in parts}
        found = {name: [size for size in shape[1:] if isinstance(size, int)] for name, shape in shapes.items()}
        caches = {name for name in shapes if name.startswith("past_key_values.")}
        for name in sorted({*wanted, *caches}):
            if found.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{path}: {name} has sizes {found.get(name)}, but config.json asks for {wanted.get(name)}"
                )
        keys = {part.past for part in parts if part.kind != "sums"}
        return numpy_dtype(next((value.type for value in inputs if value.name in keys), "tensor(float)"))

"""ONNX Runtime sessions over a folder's graphs: their buffers, and the two calls that the engine makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError, ProviderError, one_line
from neo_tf.onnx_folder import DECODER, PREFILL, OnnxFolder, top_tokens

from ..argument_kinds import Whole
from .element_types import numpy_dtype
from .host_rows import HostRows
from .kv_cache import KVCache
from .machine import exact_int8
from .providers import choose, create_session, placement, session_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from onnxruntime import InferenceSession

    from .decoder_session import DecodedRows

QUANTISED = ("int8", "int4")
# A folder has two graphs, each with threads of its own. The threads of one graph must not stay awake for 20 ms, as ONNX
# Runtime would let them, while the other graph runs.
_SPIN_MICROSECONDS = 1000
_INPUTS = ("input_ids", "position_ids", "seqlens_k", "total_sequence_length")


class Session:
    """A decoder and its KV cache, from an ONNX folder. It is a DecoderSession.

    A session holds up to `slots` sequences at the same time, each in a slot of the KV cache. The engine chooses the
    slots; prefill runs a sequence's prompt in its slot, and decode runs the next token of several slots together.

    Args:
        folder: An ONNX folder that export_onnx wrote: its path, or an OnnxFolder that was read before.
        slots: The number of sequences that can be decoded at the same time.
        device: "cpu", "cuda" or "cuda:N"; None takes the device that the folder was exported for.
        threads: The number of the CPU's threads; ONNX Runtime's choice where None.
        precision: One of the folder's precisions; the folder's first one where None.

    Attributes:
        slots: The number of sequences, as above. The cache may have one slot more: see in_pairs.
        folder: The OnnxFolder.
        config: The model's config.
        precision: The precision in use.
        device, device_id: The device in use, "cpu" or "cuda", and its index.
        cache: The KVCache.

    Raises:
        CheckpointError: The folder is damaged, or export_onnx did not write it.
        ConfigError: The folder's config.json cannot be used.
        ProviderError: The device is not available.
        RequestError: The folder has no such precision, or slots is not a number from 1 on.
    """

    def __init__(
        self,
        folder: OnnxFolder | Path | str,
        slots: int = 1,
        device: str | int | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        Whole(least=1).check("slots", slots)
        self.slots = slots
        self.folder = folder = OnnxFolder.read(folder)
        self.config = folder.config
        self.precision = folder.find_precision(precision)
        self.device, self.device_id = choose(device, folder.target)
        if self.precision == "bf16" and self.device == "cpu":
            raise ProviderError(f"{folder.path}: bf16 has kernels on CUDA alone")
        path = folder.graph_path(self.precision, DECODER)
        if not path.is_file():
            raise CheckpointError(f"{folder.path}: an ONNX folder of neo-tf has a {path.name}, and this one has none")
        self._session = self._load(path, threads)
        wanted = {"logits": [self.config.n_vocab]}
        names = {*_INPUTS, "logits_start"}
        if folder.chooses:
            names.add("inverse_temperature")
            wanted["inverse_temperature"] = [1, 1]
            wanted["top_logprobs"] = [top_tokens(self.config)]
            wanted["top_ids"] = [top_tokens(self.config)]
        dtype = self._check_graph(path, self._session, names, wanted)
        prompts = folder.graph_path(self.precision, PREFILL)
        self._prompts: InferenceSession | None = None
        if prompts.is_file() and exact_int8():
            self._prompts = self._load(prompts, threads)
            self._check_graph(prompts, self._prompts, set(_INPUTS), {})
        in_cache = slots + slots % 2 if self.in_pairs else slots  # the last slot of an odd number needs a neighbour
        size = in_cache * KVCache.bytes_per_slot(self.config, dtype, self.device, folder.windowed_caches)
        small = size < folder.data_path.stat().st_size / 2  # compared with the weights
        self.cache = KVCache(
            self.config, in_cache, dtype, self.device, self.device_id, folder.windowed_caches, large_pages=small
        )
        self._decoders: dict[tuple[int, int], _Step] = {}  # by the first slot and the number of slots
        self._logits = np.empty((in_cache, 1, self.config.n_vocab), np.float32)  # of the last decode step, by slot

    def _load(self, path: Path, threads: int | None) -> InferenceSession:
        options = session_options(threads, _SPIN_MICROSECONDS)
        try:
            return create_session(path, self.device, self.device_id, options)
        except NeoTFError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None

    def _check_graph(
        self, path: Path, session: InferenceSession, names: set[str], sizes: dict[str, list[int]]
    ) -> np.dtype:
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
        parts = cache_parts(self.config, self.folder.windowed_caches)
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

    @property
    def placement(self) -> dict[str, list[str]]:
        """The names of decoder.onnx's nodes that each provider runs, on CUDA; see placement in providers.py."""
        return placement(self._session)

    @property
    def has_prompt_graph(self) -> bool:
        """Whether prompts run through a graph of their own, prefill.onnx, which computes no logits."""
        return self._prompts is not None

    @property
    def in_pairs(self) -> bool:
        """Whether decode should be given an even number of slots.

        ONNX Runtime's kernel for quantised weights takes two sequences at a time, and adds up the last one of an odd
        number in another order. With even numbers a sequence's logits are the same in any company, to the last bit. A
        session of one slot has no company, and a single sequence is faster.
        """
        return self.slots > 1 and self.device == "cpu" and self.precision in QUANTISED

    def prefill(
        self, slot: int, token_ids: Sequence[int] | np.ndarray, past: int, logits_of: int | Literal["all"] = 1
    ) -> np.ndarray:
        """Runs several tokens of one sequence.

        Tokens without logits run through prefill.onnx where the folder has it.

        Args:
            slot: The sequence's slot, to which the tokens are appended.
            token_ids: int [n], n >= 1; the sequence's next tokens.
            past: The number of tokens that the slot holds already; past + n <= n_ctx.
            logits_of: The number of last tokens whose logits are returned, from 0 to n, or "all" of them.

        Returns:
            float32 [logits_of, n_vocab].
        """
        token_ids = np.asarray(token_ids)
        kept = len(token_ids) if logits_of == "all" else logits_of
        silent = len(token_ids) - kept
        if self._prompts and silent:
            self._step(self._prompts, slot, 1, silent).run(token_ids[None, :silent], past)
            if kept == 0:
                return np.empty((0, self.config.n_vocab), np.float32)
            token_ids = token_ids[silent:]
            past += silent
        logits = np.empty((1, max(kept, 1), self.config.n_vocab), np.float32)  # decoder.onnx has no runs without logits
        self._step(self._session, slot, 1, len(token_ids), logits).run(token_ids[None], past)
        return logits[0, :kept]

    def decode(
        self, first: int, token_ids: np.ndarray, past: np.ndarray, inverse_temperatures: np.ndarray | None = None
    ) -> DecodedRows:
        """Runs one token of each of several sequences in neighbouring slots, each sequence at its own length.

        Args:
            first: The first slot.
            token_ids: int [count], one token for each of the slots [first, first + count). A slot without a running
                sequence takes any token.
            past: int [count], the number of tokens that each slot holds. An empty slot's 0 lets the token overwrite the
                slot's first position, which does no harm.
            inverse_temperatures: Nothing is chosen by this graph, so that they change nothing.

        Returns:
            The rows' logits, in a buffer that the next step of these slots writes over.
        """
        count = len(token_ids)
        step = self._decoders.get((first, count))
        if step is None:
            step = self._step(self._session, first, count, 1, self._logits[first : first + count])
            self._decoders[first, count] = step
        step.run(np.reshape(token_ids, (count, 1)), past)
        return HostRows(self._logits[first : first + count, 0])

    def _step(
        self, session: InferenceSession, slot: int, count: int, tokens: int, logits: np.ndarray | None = None
    ) -> _Step:
        """A run of `tokens` tokens of each of the slots [slot, slot + count), which writes these logits."""
        step = _Step(session, count, tokens, logits, self.folder.chooses and logits is not None)
        self.cache.bind(step.binding, slot, count)
        return step


class _Step:
    """The bound buffers of a run of one shape.

    Args:
        session: The graph.
        count: The number of sequences.
        tokens: The number of tokens of each sequence.
        logits: float32 [count, n, n_vocab], where the graph writes the logits of the last n tokens; None for a graph
            without logits.
        chooses: Whether the graph takes inverse_temperature.
    """

    def __init__(
        self, session: InferenceSession, count: int, tokens: int, logits: np.ndarray | None, chooses: bool
    ) -> None:
        self._session = session
        self.binding = session.io_binding()
        self._tokens = np.arange(tokens)
        self._input_ids = np.zeros((count, tokens), np.int64)
        self._position_ids = np.zeros((count, tokens), np.int64)
        self._seqlens_k = np.zeros(count, np.int32)
        self._total_sequence_length = np.zeros((), np.int32)
        _bind(self.binding.bind_input, "input_ids", self._input_ids)
        _bind(self.binding.bind_input, "position_ids", self._position_ids)
        _bind(self.binding.bind_input, "seqlens_k", self._seqlens_k)
        _bind(self.binding.bind_input, "total_sequence_length", self._total_sequence_length)
        if logits is not None:
            # onnxruntime is given addresses alone: what they point to must live as long as the step.
            self._logits = logits
            self._logits_start = np.array([tokens - logits.shape[1]], np.int64)
            _bind(self.binding.bind_input, "logits_start", self._logits_start)
            _bind(self.binding.bind_output, "logits", self._logits)
        if chooses:
            self._inverse_temperature = np.ones((count, 1, 1), np.float32)
            _bind(self.binding.bind_input, "inverse_temperature", self._inverse_temperature)

    def run(self, token_ids: np.ndarray, past: int | np.ndarray) -> None:
        """Runs the graph.

        Args:
            token_ids: int [count, tokens].
            past: The number of tokens that each slot holds: an int for all, or int [count].
        """
        tokens = len(self._tokens)
        past = np.asarray(past)
        self._input_ids[:] = token_ids
        self._position_ids[:] = past[..., None] + self._tokens
        self._seqlens_k[:] = past + (tokens - 1)
        self._total_sequence_length[...] = past.max() + tokens
        self._session.run_with_iobinding(self.binding)


def _bind(bind: Callable[..., None], name: str, value: np.ndarray) -> None:
    bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

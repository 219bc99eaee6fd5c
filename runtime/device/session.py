"""ONNX Runtime sessions over a folder's graphs: their buffers, and the two calls that the engine makes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError, ProviderError, one_line
from neo_tf.notes import note
from neo_tf.onnx_folder import DECODER, PREFILL, OnnxFolder, top_tokens
from neo_tf.sizes import readable_bytes

from ..argument_kinds import Whole
from .buckets import MOST_SCORED, pieces, row_buckets
from .cudart import Cudart
from .element_types import numpy_dtype
from .kv_cache import KVCache
from .machine import exact_int8
from .memory import allocate
from .one_thread import OneThread
from .providers import choose, create_session, placement, session_options
from .step import EAGER, LoadedGraph, Shape, Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxruntime import InferenceSession

    from .decoder_session import DecodedRows

QUANTISED = ("int8", "int4")
# A folder has two graphs, each with threads of its own. The threads of one graph must not stay awake for 20 ms, as ONNX
# Runtime would let them, while the other graph runs.
_SPIN_MICROSECONDS = 1000
_RESERVED = 2**28  # bytes of a GPU's memory for ONNX Runtime, cuBLAS and captured graphs
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
        graphs: Whether decode steps are captured as CUDA graphs, on CUDA. Models whose steps cannot be captured run
            without, which is said; NEO_TF_CUDA_GRAPH=0 in the environment turns all off.

    Attributes:
        slots: The number of sequences, as above. The cache may have one slot more: see in_pairs.
        folder: The OnnxFolder.
        config: The model's config.
        precision: The precision in use.
        device, device_id: The device in use, "cpu" or "cuda", and its index.
        cache: The KVCache.
        buckets: The numbers of slots that decode takes, in ascending order, all from slot 0; empty where it takes any
            neighbouring slots.
        graphs: Whether decode steps are captured as CUDA graphs.
        thread: The thread that decode runs in, whoever calls it, where graphs are used: they belong to the thread that
            captured them. None where it runs in the caller's.

    Raises:
        CheckpointError: The folder is damaged, or export_onnx did not write it.
        ConfigError: The folder's config.json cannot be used.
        ProviderError: The device is not available, or has too little memory.
        RequestError: The folder has no such precision, or slots is not a number from 1 on.
    """

    def __init__(
        self,
        folder: OnnxFolder | Path | str,
        slots: int = 1,
        device: str | int | None = None,
        threads: int | None = None,
        precision: str | None = None,
        graphs: bool = True,
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
        self.buckets = self._choose_buckets()
        self.graphs = self._choose_graphs(graphs)
        self.thread = OneThread() if self.graphs else None
        decoder = self._load(path, threads)
        wanted = {"logits": [self.config.n_vocab]}
        names = {*_INPUTS, "logits_start"}
        if folder.chooses:
            names.add("inverse_temperature")
            wanted["inverse_temperature"] = [1, 1]
            wanted["top_logprobs"] = [top_tokens(self.config)]
            wanted["top_ids"] = [top_tokens(self.config)]
        dtype = self._check_graph(path, decoder, names, wanted)
        self._decoder = self._loaded(decoder, top_tokens(self.config) if folder.chooses else 0)
        prompts = folder.graph_path(self.precision, PREFILL)
        self._prompts: LoadedGraph | None = None
        if prompts.is_file() and exact_int8():
            session = self._load(prompts, threads)
            self._check_graph(prompts, session, set(_INPUTS), {})
            self._prompts = self._loaded(session)
        in_cache = slots + slots % 2 if self.in_pairs else slots  # the last slot of an odd number needs a neighbour
        slot_bytes = KVCache.bytes_per_slot(self.config, dtype, folder.windowed_caches)
        if self.device == "cuda":
            self._check_memory(slot_bytes)
        small = in_cache * slot_bytes < folder.data_path.stat().st_size / 2  # compared with the weights
        self.cache = KVCache(self.config, in_cache, dtype, self.device, self.device_id, small, folder.windowed_caches)
        # Of the last decode step by slot, or on CUDA of a scored piece of a prompt.
        kept = max(in_cache, MOST_SCORED) if self.buckets else in_cache
        self._logits = allocate(self.device, self.device_id, 4 * kept * self.config.n_vocab)
        self._decoders: dict[tuple[int, int], Step] = {}  # by the first slot and the number of slots
        self._pieces: dict[Shape, Step] = {}  # of prompts, on CUDA

    def _load(self, path: Path, threads: int | None) -> InferenceSession:
        options = session_options(threads, _SPIN_MICROSECONDS)
        try:
            return create_session(path, self.device, self.device_id, options, self.graphs)
        except NeoTFError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            if self.device == "cuda" and re.search("out of memory|allocate memory", str(error)):
                raise ProviderError(f"{path}: GPU {self.device_id} has no memory for the weights") from None
            raise CheckpointError(f"{path}: cannot be loaded: {one_line(error)}") from None

    def _loaded(self, session: InferenceSession, top: int = 0) -> LoadedGraph:
        return LoadedGraph(session, self.device, self.device_id, self.config.n_vocab, top, self.graphs)

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
        return placement(self._decoder.session)

    @property
    def has_prompt_graph(self) -> bool:
        """Whether prompts run through a graph of their own, prefill.onnx, which computes no logits."""
        return self._prompts is not None

    @property
    def prefers_silent_prompts(self) -> bool:
        """Whether prefill without logits is cheaper: a prompt's last token should be decoded with other sequences'."""
        return self.has_prompt_graph or bool(self.buckets)

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
        if self.buckets:
            return self._prefill_in_pieces(slot, token_ids, past, kept)
        if self._prompts and silent:
            self._step(self._prompts, slot, Shape(1, silent, 0)).run(token_ids[None, :silent], past)
            if kept == 0:
                return np.empty((0, self.config.n_vocab), np.float32)
            token_ids = token_ids[silent:]
            past += silent
        step = self._step(self._decoder, slot, Shape(1, len(token_ids), max(kept, 1)))  # it has no runs without logits
        step.run(token_ids[None], past)
        return step.last_logits(0, kept)

    def _prefill_in_pieces(self, slot: int, token_ids: np.ndarray, past: int, kept: int) -> np.ndarray:
        """Runs a prompt's tokens in runs of few shapes."""
        logits = np.empty((kept, self.config.n_vocab), np.float32)
        silent = len(token_ids) - kept
        begin = 0
        for piece in pieces(silent, kept, self.config.n_ctx - past):
            end = begin + piece.length
            shape = Shape(1, piece.tokens, piece.tokens if piece.is_scored else 1)
            step = self._pieces.get(shape)
            if step is None:
                step = self._pieces[shape] = Step(self._decoder, shape, self._logits)
            step.bind(self.cache, slot)
            padded = np.zeros((1, piece.tokens), np.int64)
            padded[0, : piece.length] = token_ids[begin:end]
            step.run(padded, past + begin)
            if piece.is_scored:
                logits[begin - silent : end - silent] = step.last_logits(0, piece.length)
            begin = end
        return logits

    def decode(
        self, first: int, token_ids: np.ndarray, past: np.ndarray, inverse_temperatures: np.ndarray | None = None
    ) -> DecodedRows:
        """Runs one token of each of several sequences in neighbouring slots, each sequence at its own length.

        Args:
            first: The first slot; 0 where there are buckets.
            token_ids: int [count], one token for each of the slots [first, first + count). A slot without a running
                sequence takes any token. Where there are buckets, count is one of them.
            past: int [count], the number of tokens that each slot holds. An empty slot's 0 lets the token overwrite the
                slot's first position, which does no harm.
            inverse_temperatures: float32 [count], the inverse of the temperature by which each row's most likely tokens
                are weighed, where the graph chooses; None for ones.

        Returns:
            The rows' logits, and their most likely tokens where the graph chooses. The next call writes over them.
        """
        if self.thread and not self.thread.is_current:
            return self.thread.run(lambda: self._decode(first, token_ids, past, inverse_temperatures))
        return self._decode(first, token_ids, past, inverse_temperatures)

    def _decode(
        self, first: int, token_ids: np.ndarray, past: np.ndarray, inverse_temperatures: np.ndarray | None
    ) -> Step:
        count = len(token_ids)
        step = self._decoders.get((first, count))
        if step is None:
            step = self._decoders[first, count] = self._new_decoder(first, count)
        step.run(np.reshape(token_ids, (count, 1)), past, inverse_temperatures)
        return step

    def warm_up(self) -> None:
        """Captures the decode step of every bucket as a CUDA graph, where graphs are used.

        Call it while no slot holds a text: each step is run three times, and writes into the first position of its
        slots.
        """
        if not self.graphs:
            return
        # The largest first: then the memory that it takes has room for what the others need.
        for count in reversed(self.buckets):
            self.decode(0, np.zeros(count, np.int64), np.zeros(count, np.int64))

    def _new_decoder(self, first: int, count: int) -> Step:
        shape = Shape(count, 1, 1)
        total = None
        if self.buckets:
            assert first == 0 and count in self.buckets, f"slots [{first}, {first + count}) are no bucket"
            total = self.config.n_ctx
        step = Step(
            self._decoder, shape, self._logits, first, total, chooses=True, number=count if self.graphs else EAGER
        )
        step.bind(self.cache, first)
        return step

    def _step(self, graph: LoadedGraph, slot: int, shape: Shape) -> Step:
        """A run of one slot, with buffers of its own."""
        step = Step(graph, shape)
        step.bind(self.cache, slot)
        return step

    # ---- what a session on CUDA is made of

    def _choose_buckets(self) -> tuple[int, ...]:
        """See buckets."""
        if self.device == "cpu" or "linear" in self.config.attention_types:
            return ()
        return row_buckets(self.slots)

    def _choose_graphs(self, wanted: bool) -> bool:
        """Whether decode steps are captured; says where the model's options do not allow it."""
        if self.device == "cpu" or not wanted or os.environ.get("NEO_TF_CUDA_GRAPH") == "0":
            return False
        reasons = self.folder.why_not_captured()
        if reasons:
            note(f"{self.folder.path}: decoded without CUDA graphs ({'; '.join(reasons)})")
        return not reasons

    def _check_memory(self, slot_bytes: int) -> None:
        """Raises ProviderError where the GPU's memory does not hold the cache beside what else is needed."""
        config = self.config
        # The activations of a prompt's piece, and a token's logits in several forms, for each slot too.
        logits_bytes = 16 * config.n_vocab
        working = 512 * 32 * config.n_embd + MOST_SCORED * logits_bytes + _RESERVED
        free = Cudart(self.device_id).free_memory()
        room = max(free - working, 0)
        fit = max(room // (slot_bytes + logits_bytes) - 1, 0)  # one is for the shared-prefix cache
        if self.slots <= fit:
            return
        raise ProviderError(
            f"{self.folder.path}: GPU {self.device_id} has {readable_bytes(free)} free beside the weights, and {fit} "
            f"slots fit there ({readable_bytes(slot_bytes)} each, and as much for shared prefixes), not {self.slots}"
        )

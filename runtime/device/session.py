"""ONNX Runtime sessions over a folder's graphs: their buffers, and the two calls that the engine makes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from neo_tf.errors import ProviderError
from neo_tf.notes import note
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.sizes import readable_bytes

from ..argument_kinds import Whole
from .buckets import MOST_SCORED, MOST_SILENT, pieces, row_buckets
from .cudart import Cudart
from .graph_files import GraphFiles
from .kv_cache import KVCache
from .machine import exact_int8
from .memory import allocate
from .one_thread import OneThread
from .providers import choose, placement
from .step import EAGER, LoadedGraph, Shape, Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .decoder_session import DecodedRows

QUANTISED = ("int8", "int4")
_RESERVED = 2**28  # bytes of a GPU's memory for ONNX Runtime, cuBLAS and captured graphs


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
        threads: The number of the CPU's threads, as above.
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
        self.threads = threads
        self.buckets = self._choose_buckets()
        self.graphs = self._choose_graphs(graphs)
        self.thread = OneThread() if self.graphs else None
        files = GraphFiles(folder, self.precision, self.device, self.device_id, threads, self.graphs)
        self._decoder, dtype = files.open_decoder()
        self._prompts = files.open_prompts() if exact_int8() else None
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
        working = MOST_SILENT * 32 * config.n_embd + MOST_SCORED * logits_bytes + _RESERVED
        free = Cudart(self.device_id).free_memory()
        room = max(free - working, 0)
        fit = max(room // (slot_bytes + logits_bytes) - 1, 0)  # one is for the shared-prefix cache
        if self.slots <= fit:
            return
        raise ProviderError(
            f"{self.folder.path}: GPU {self.device_id} has {readable_bytes(free)} free beside the weights, and {fit} "
            f"slots fit there ({readable_bytes(slot_bytes)} each, and as much for shared prefixes), not {self.slots}"
        )

"""One run of a graph: its buffers, which are bound once, and what it computed."""

from __future__ import annotations

import contextlib
import gc
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neo_tf.errors import EngineError

from .memory import Block, View, aligned, allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import DTypeLike
    from onnxruntime import InferenceSession, RunOptions

    from .kv_cache import KVCache

EAGER = -1  # the number of a run that is not captured


@dataclass(frozen=True)
class Shape:
    """The shape of a run.

    Args:
        count: The number of sequences.
        tokens: The number of tokens of each sequence.
        kept: The number of last tokens whose logits are computed; 0 for a graph without logits.
    """

    count: int
    tokens: int
    kept: int


class LoadedGraph(NamedTuple):
    """A graph, and where it runs.

    Args:
        session: ONNX Runtime's session.
        device, device_id: The device.
        n_vocab: The number of logits of a token.
        top_tokens: The number of most likely tokens that it returns; 0 for a graph that does not choose.
        captures: Whether its runs can be captured as CUDA graphs.
    """

    session: InferenceSession
    device: str
    device_id: int
    n_vocab: int
    top_tokens: int = 0
    captures: bool = False


class Step:
    """The bound buffers of a run of one shape. After a run of one token of each row it is the run's DecodedRows.

    What the host writes for a run lies in one block, and is pushed at once. What it reads of the most likely tokens
    lies in another one, and is pulled at once. Logits stay on the device until they are asked for.

    Where a run is captured as a CUDA graph, the graph holds the addresses of all buffers and the values that kernels
    read in the host's memory. So they never change: the caches are bound once, and those values are constants.

    Args:
        graph: The graph.
        shape: The shape of the run.
        logits: A block for logits; one of its own where None.
        row: The row of that block at which the step's logits begin.
        total: total_sequence_length in every run; the longest row's length where None.
        chooses: Whether the most likely tokens are wanted, where the graph returns them.
        number: The number of the run among the captured ones, or EAGER.
    """

    def __init__(
        self,
        graph: LoadedGraph,
        shape: Shape,
        logits: Block | None = None,
        row: int = 0,
        total: int | None = None,
        chooses: bool = False,
        number: int = EAGER,
    ) -> None:
        self._graph = graph
        self._shape = shape
        self._binding = graph.session.io_binding()
        self._number = number
        self._options = _run_options(number) if graph.captures else None
        self._thread: int | None = None  # that captured the run
        self._slot: int | None = None  # the first one that is bound
        self._steps = np.arange(shape.tokens)
        inputs: list[tuple[str, DTypeLike, Sequence[int]]] = [
            ("input_ids", np.int64, (shape.count, shape.tokens)),
            ("position_ids", np.int64, (shape.count, shape.tokens)),
            ("seqlens_k", np.int32, (shape.count,)),
        ]
        if graph.top_tokens:
            inputs.append(("inverse_temperature", np.float32, (shape.count, 1, 1)))
        self._inputs, self._given = self._place(inputs)
        for name, view in self._given.items():
            self._bind_view(self._binding.bind_input, name, view)
        if graph.top_tokens:
            self._given["inverse_temperature"].array[:] = 1
        self._constant_total = total is not None
        self._total = self._bind_host("total_sequence_length", np.array(total or 0, np.int32), total is not None)
        self._top: dict[str, View] = {}
        if not shape.kept:
            return
        self._start = self._bind_host("logits_start", np.array([shape.tokens - shape.kept], np.int64), True)
        kept = (shape.count, shape.kept)
        rows = shape.count * shape.kept
        block = logits or allocate(graph.device, graph.device_id, 4 * rows * graph.n_vocab)
        self._logits = View(block, 4 * row * graph.n_vocab, np.float32, (rows, graph.n_vocab))
        place = (np.float32, (*kept, graph.n_vocab), self._logits.address)
        self._binding.bind_output("logits", graph.device, graph.device_id, *place)
        if graph.top_tokens and chooses:
            top = (*kept, graph.top_tokens)
            self._outputs, self._top = self._place([("top_ids", np.int64, top), ("top_logprobs", np.float32, top)])
            for name, view in self._top.items():
                self._bind_view(self._binding.bind_output, name, view)

    def bind(self, cache: KVCache, slot: int) -> None:
        """Binds the cache's slots from this one on, unless they are bound already."""
        if slot == self._slot:
            return
        if self._thread is not None:
            raise EngineError("a captured step cannot be moved to other slots")
        cache.bind(self._binding, slot, self._shape.count)
        self._slot = slot

    def run(
        self, token_ids: np.ndarray, past: int | np.ndarray, inverse_temperatures: np.ndarray | None = None
    ) -> None:
        """Runs the graph.

        Args:
            token_ids: int [count, tokens].
            past: The number of tokens that each slot holds: an int for all, or int [count].
            inverse_temperatures: float32 [count], where the graph chooses; None for ones.

        Raises:
            EngineError: A captured run in another thread than before.
        """
        is_capture = self._number != EAGER and self._thread is None
        self._check_thread()
        tokens = self._shape.tokens
        past = np.asarray(past)
        given = self._given
        given["input_ids"].array[:] = token_ids
        given["position_ids"].array[:] = past[..., None] + self._steps
        given["seqlens_k"].array[:] = past + (tokens - 1)
        if self._graph.top_tokens:
            inverse = 1 if inverse_temperatures is None else inverse_temperatures[:, None, None]
            given["inverse_temperature"].array[:] = inverse
        if not self._constant_total:
            self._total[...] = past.max() + tokens
        self._inputs.push()
        if is_capture:
            with _no_garbage_collection():
                self._graph.session.run_with_iobinding(self._binding, self._options)
        else:
            self._graph.session.run_with_iobinding(self._binding, self._options)
        if self._top:
            self._outputs.pull(0, self._outputs.mirror.size)

    @property
    def top_ids(self) -> np.ndarray | None:
        """int64 [count, K], each row's most likely tokens, best first; None where the graph does not choose."""
        return self._top["top_ids"].array[:, 0] if self._top else None

    @property
    def top_logprobs(self) -> np.ndarray | None:
        """float32 [count, K], their log-probabilities in softmax(logits * inverse_temperature); None as above."""
        return self._top["top_logprobs"].array[:, 0] if self._top else None

    def logits(self, row: int) -> np.ndarray:
        """The logits of a row, float32 [n_vocab], in a buffer that the next run writes over."""
        return self._logits.pull(row, 1)[0]

    def last_logits(self, begin: int, end: int) -> np.ndarray:
        """A sequence's logits of the tokens [begin, end) among those that are kept, float32 [n, n_vocab]."""
        return self._logits.pull(begin, end - begin)

    def _check_thread(self) -> None:
        """CUDA graphs belong to the thread that captured them. Another one would capture its own, of a running step."""
        if self._number == EAGER:
            return
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise EngineError("a captured step must run in the thread that captured it")

    def _place(self, arrays: list[tuple[str, DTypeLike, Sequence[int]]]) -> tuple[Block, dict[str, View]]:
        """One block for several arrays."""
        places = []
        size = 0
        for name, dtype, shape in arrays:
            places.append((name, size, dtype, shape))
            size += aligned(math.prod(shape) * np.dtype(dtype).itemsize)
        block = allocate(self._graph.device, self._graph.device_id, size)
        return block, {name: View(block, offset, dtype, shape) for name, offset, dtype, shape in places}

    def _bind_view(self, bind: Callable[..., None], name: str, view: View) -> None:
        bind(name, self._graph.device, self._graph.device_id, view.array.dtype, view.array.shape, view.address)

    def _bind_host(self, name: str, value: np.ndarray, constant: bool) -> np.ndarray:
        """Binds an input that the graph reads in the host's memory."""
        self._binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        value.flags.writeable = not constant
        return value


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While a run is captured, no thread may free memory of the GPU: that of a session that nobody has any more."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _run_options(number: int) -> RunOptions:
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options

"""The KV cache as a graph sees it: inputs and outputs, and the lengths and masks that go with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from onnx import TensorProto

from neo_tf.cache_layout import cache_parts, padded_head_size
from neo_tf.rotary import rotary_tables

from .builder import Graph, Scope, typed

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

FLOAT = TensorProto.FLOAT
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL
_Made = TypeVar("_Made")


class Cache:
    """A graph's cache. `declare` makes the inputs and outputs; the layers call the other methods.

    Args:
        graph: The graph.
        config: The model's config.
        windowed: Whether a local layer's cache is as short as its window. Otherwise all caches are full.
        padded: Whether heads may be padded to a size that GroupQueryAttention takes (decoder.onnx). Otherwise heads
            keep their size (model.onnx).

    Attributes:
        head_size: The number of columns of keys and values; the model's own head size, or padded.
        pads: Whether head_size is larger than the model's own.
        masked: Whether attention is made of standard operators, with a mask and caches that grow by the step.
        parts: The CacheParts of all layers, in order.
        seqlens_k: int32 [batch], each row's length minus one, this step's tokens included. This and
            total_sequence_length are set before the first layer, by read_mask or to inputs of the graph.
        total_sequence_length: int32 [], the longest row's length.
        fresh: bool [batch, 1, 1, 1], whether a row's sequence begins with this step; None where no layer reads it.
        mask: int64 [batch, total], 0 where a row is padded; None where no row can be.
    """

    seqlens_k: str
    total_sequence_length: str

    def __init__(self, graph: Graph, config: GPTNeoConfig, windowed: bool, padded: bool) -> None:
        self.graph = graph
        self.config = config
        self.head_size = padded_head_size(config) if padded else config.head_size
        self.pads = self.head_size != config.head_size
        fused = padded_head_size(config) == config.head_size and not graph.precision.standard
        self.masked = not padded and not fused
        self.parts = cache_parts(config, windowed, self.head_size)
        self.fresh: str | None = None
        self.mask: str | None = None
        self._kinds = {part.layer: part.kind for part in self.parts}
        self._made: dict[str, Any] = {}  # what _once built, by its key

    def declare(self) -> None:
        """Declares the inputs and outputs of every layer: [batch, heads, rows, columns] each."""
        past_rows: str
        present_rows: str | int
        for part in self.parts:
            if part.kind == "full":
                past_rows, present_rows = "past_sequence_length", "total_sequence_length"
            elif part.kind == "window":
                past_rows = present_rows = f"window_{part.layer}"
            else:
                past_rows, present_rows = f"sums_{part.layer}", part.rows
            # Running sums stay in float32.
            dtype = np.float32 if part.kind == "sums" else self.graph.precision.dtype
            self.graph.input(part.past, dtype, ["batch_size", part.heads, past_rows, part.columns])
            self.graph.output(part.present, dtype, ["batch_size", part.heads, present_rows, part.columns])

    def begin(self) -> None:
        """Lets every row begin with this step, in place of the inputs that say what went before: no cache is declared.

        It makes position_ids, the lengths, and a cache without rows for every layer. Rows are as long as the step.
        """
        scope = self.graph.root["begin"]
        constant = self.graph.constant
        op = scope.op
        shape = op("Shape", "input_ids", name="shape")
        batch = op("Shape", "input_ids", end=1, name="batch")
        step = op("Squeeze", op("Shape", "input_ids", start=1), name="step")
        op("Expand", op("Range", constant(0), step, constant(1)), shape, name="positions", out="position_ids")
        self.total_sequence_length = op("Cast", step, to=INT32, name="total_sequence_length")
        last = op("Sub", self.total_sequence_length, constant(1, np.int32))
        self.seqlens_k = op("Expand", last, batch, name="seqlens_k")
        for part in self.parts:
            inner = scope[f"h{part.layer}"]
            empty = inner.op("Concat", batch, constant([part.heads, 0, part.columns]), axis=0)
            zeros = inner.op("ConstantOfShape", empty)
            held = zeros if part.kind == "sums" else inner.native(zeros)
            inner.op("Identity", held, out=part.past)

    def read_mask(self) -> None:
        """Derives the lengths from attention_mask, int64 [batch, past + seq], which is 0 where there is no token.

        Zeros after every row's last 1 stand for memory that is not used yet: a runtime whose past and present are
        one buffer may pass the mask of its whole capacity. Rows may differ in length where a step is one token.
        """
        scope = self.graph.root["attention_mask"]
        constant = self.graph.constant
        op = scope.op
        step = op("Squeeze", op("Shape", "input_ids", start=1), name="step")
        columns = op("Squeeze", op("Shape", "attention_mask", start=1), name="columns")
        if self.masked:  # caches grow by the step's tokens: all of their memory is in use
            total = columns
            lengths = op("Expand", total, op("Shape", "attention_mask", end=1))
        else:
            # [batch, columns] -> [batch]: up to each row's last 1
            after = op("Range", constant(1), op("Add", columns, constant(1)), constant(1), name="after")
            ends = op("ReduceMax", op("Mul", "attention_mask", after), constant([1]), keepdims=0, name="ends")
            total = op("Max", op("ReduceMax", ends, keepdims=0), step)
            # Rows of several tokens end together: tokens past a row's own last 1 are hidden like any other 0.
            alone = op("Max", ends, constant(1))
            lengths = op("Where", op("Equal", step, constant(1)), alone, total, name="lengths")
        self.seqlens_k = op("Cast", op("Sub", lengths, constant(1)), to=INT32, name="seqlens_k")
        self.total_sequence_length = op("Cast", total, to=INT32, name="total_sequence_length")
        total = op("Reshape", total, constant([1]))
        self.mask = op("Slice", "attention_mask", constant([0]), total, constant([1]), name="mask")

    def names(self, layer: int) -> tuple[list[str], list[str]]:
        """The inputs and outputs of a layer: [past key, past value] and [present key, present value].

        Keys and values are [batch, heads, rows, head_size] each, in the graph's own type: past rows are the tokens
        before this step, present rows include this step's, and a windowed layer has the window's rows in both. Of
        attention type "linear", the key is the sum [batch, heads, 1, head] and the value [batch, heads, head, head],
        both float32.
        """
        parts = [part for part in self.parts if part.layer == layer]
        return [part.past for part in parts], [part.present for part in parts]

    def is_local(self, layer: int) -> bool:
        """Whether the layer's window is shorter than the context: otherwise local and global are the same."""
        return self.config.window(layer) < self.config.n_ctx

    def is_windowed(self, layer: int) -> bool:
        """Whether the layer's cache is as short as its window."""
        return self._kinds[layer] == "window"

    def lengths(self, layer: int) -> tuple[str, str]:
        """A layer's seqlens_k, int32 [batch], and total_sequence_length, int32 [].

        Where the layer has learned keys, they count as positions before the first one.
        """
        if not self._remembers(layer):
            return self.seqlens_k, self.total_sequence_length
        return self._once("memory/lengths", self._memory_lengths)

    @property
    def rotary_tables(self) -> tuple[str, str]:
        """The cosines and sines of the positions' angles, [n_ctx, head / 2] each."""
        config = self.config
        dtype = self.graph.precision.dtype
        shape = (config.n_ctx, config.head_size // 2)

        def add(name: str, index: int) -> str:
            return self.graph.add_weight(
                typed(f"rotary/{name}", dtype), dtype, shape, lambda: rotary_tables(config)[index].astype(dtype)
            )

        return add("cos", 0), add("sin", 1)

    # ---- learned keys and values

    @property
    def memory_rows(self) -> str:
        """int64 [1]: num_mem_kv in a sequence's first step, 0 afterwards."""

        def build(scope: Scope) -> str:
            first = scope.op("Equal", self._step_length(scope), self.total_sequence_length)
            rows = scope.op("Mul", scope.op("Cast", first, to=INT64), self.graph.constant(self.config.num_mem_kv))
            return scope.op("Reshape", rows, self.graph.constant([1]))

        return self._once("memory", build)

    def lengthen(self, q: str, scope: Scope) -> str:
        """Puts rows of zeros before the queries, in the learned keys' positions: [batch, memory + seq, ...]."""
        constant = self.graph.constant
        pads = scope.op("Concat", constant([0]), self.memory_rows, constant([0, 0, 0, 0]), axis=0)
        return scope.pad(q, pads)

    def shorten(self, a: str, scope: Scope) -> str:
        """Drops the rows that lengthen added: [batch, memory + seq, ...] -> [batch, seq, ...]."""
        constant = self.graph.constant
        return scope.op("Slice", a, self.memory_rows, constant([2**62]), constant([1]))

    def _memory_lengths(self, scope: Scope) -> tuple[str, str]:
        memory = self.graph.constant(self.config.num_mem_kv, np.int32)
        return (
            scope.op("Add", self.seqlens_k, memory, name="seqlens_k"),
            scope.op("Add", self.total_sequence_length, memory, name="total_sequence_length"),
        )

    def _remembers(self, layer: int) -> bool:
        return self.config.num_mem_kv > 0 and self.config.attention_types[layer] == "global"

    # ---- linear attention's sums

    def sums(self, past: str, rows: int, scope: Scope) -> str:
        """The sums before this step, [batch, heads, rows, columns]; they are zeros in a sequence's first step.

        Other runtimes begin with caches of no rows, ours with whatever the slot held before.

        Args:
            past: The layer's input, float32 [batch, heads, rows, columns], or with no rows in the first step.
            rows: The number of rows of the sums.
            scope: The scope that the nodes are named in.
        """
        constant = self.graph.constant
        shape = scope.op("Shape", past)
        ends = scope.op("Concat", scope.op("Slice", shape, constant([0]), constant([2])), constant([rows]), axis=0)
        ends = scope.op("Concat", ends, scope.op("Slice", shape, constant([3]), constant([4])), axis=0)
        zeros = scope.op("Expand", constant(0, np.float32), ends)
        held = scope.op("Concat", past, zeros, axis=2)
        held = scope.op("Slice", held, constant([0]), constant([rows]), constant([2]))
        return scope.op("Where", self.fresh, zeros, held) if self.fresh else held

    # ---- masks, where no fused operator makes them

    def step_mask(self) -> str:
        """float32 [batch, 1, 1, seq]: 1 where this step has a token, 0 where it is padded."""

        def build(scope: Scope) -> str:
            op = scope.op
            constant = self.graph.constant
            # A row's tokens end where the row does.
            ends = op("Unsqueeze", op("Add", op("Cast", self.seqlens_k, to=INT64), constant(1)), constant([1]))
            step = op("Cast", self._step_length(scope), to=INT64)
            columns = op("Add", ends, op("Range", op("Neg", step), constant(0), constant(1)))
            # A row without a single token would begin before the first column.
            mask = op("GatherElements", self.mask, op("Max", columns, constant(0)), axis=1)
            return op("Cast", op("Unsqueeze", mask, constant([1, 2])), to=FLOAT)

        return self._once("step_mask", build)

    def padding(self, layer: int) -> str:
        """The bias of GroupQueryAttention: 0 at tokens, and a very negative number where rows are padded.

        It is [batch, 1, seq, memory + total] in the graph's own type. Causality and windows are the operator's part.
        """

        def build(scope: Scope) -> str:
            constant = self.graph.constant
            # [batch, total] -> [batch, 1, 1, total] -> [batch, 1, seq, total]
            lowest = -65504 if self.graph.precision.dtype == np.float16 else -1e9
            bias = self._hidden(self._visible(scope), scope, lowest)
            step = scope.op("Shape", "input_ids", start=1)
            bias = scope.op("Expand", bias, scope.op("Concat", constant([1, 1]), step, constant([1]), axis=0))
            return scope.native(self._remembering(bias, memory, scope))

        memory = self._memory(layer)
        return self._once(f"padding_{memory}", build)

    def bias(self, layer: int) -> str:
        """The bias of masked attention: 0 where a query sees a key, and a very negative number elsewhere.

        It is float32 [batch, 1, seq, memory + total].
        """
        window = self.config.window(layer)
        memory = self._memory(layer)
        return self._once(f"bias_{window}_{memory}", lambda scope: self._bias(scope, window, memory))

    def _bias(self, scope: Scope, window: int, memory: int) -> str:
        op = scope.op
        constant = self.graph.constant
        step = op("Cast", self._step_length(scope), to=INT64)
        total = op("Cast", self.total_sequence_length, to=INT64)
        key = op("Range", constant(0), total, constant(1), name="key")
        query = op("Range", op("Sub", total, step), total, constant(1), name="query")
        distance = op("Sub", op("Unsqueeze", query, constant([1])), key)
        near = op("Less", distance, constant(window))
        visible = op("And", op("GreaterOrEqual", distance, constant(0)), near)
        # [seq, total] and [batch, 1, 1, total] -> [batch, 1, seq, total]
        return self._remembering(self._hidden(op("And", visible, self._visible(scope)), scope), memory, scope)

    def _visible(self, scope: Scope) -> str:
        """bool [batch, 1, 1, total]: whether there is a token."""
        return scope.op("Unsqueeze", scope.op("Cast", self.mask, to=BOOL), self.graph.constant([1, 2]))

    def _hidden(self, visible: str, scope: Scope, lowest: float = -1e9) -> str:
        """0 where a key is visible, `lowest` where it is not: float32 of the same shape."""
        # Not -inf: for a query that sees nothing, as padded ones may, the softmax would be NaN.
        return scope.op("Where", visible, self.graph.constant(0, np.float32), self.graph.constant(lowest, np.float32))

    def _remembering(self, bias: str, memory: int, scope: Scope) -> str:
        """Puts zeros in front: every query sees the learned keys, whose own rows of the first step are dropped later.

        [batch, 1, seq, total] -> [batch, 1, seq, memory + total]; in the first step the rows are memory + seq too.
        """
        if not memory:
            return bias
        constant = self.graph.constant
        front = scope.op("Concat", constant([0, 0]), self.memory_rows, constant([memory, 0, 0, 0, 0]), axis=0)
        return scope.op("Pad", bias, front)

    def _memory(self, layer: int) -> int:
        """The number of learned keys that the layer has."""
        return self.config.num_mem_kv if self._remembers(layer) else 0

    def _step_length(self, scope: Scope) -> str:
        """int32 []: the number of tokens of this step."""
        return self._once(
            "step_length",
            lambda inner: inner.op("Cast", inner.op("Squeeze", inner.op("Shape", "input_ids", start=1)), to=INT32),
        )

    def _once(self, key: str, build: Callable[[Scope], _Made]) -> _Made:
        """What `build` makes in the scope cache/{key}, which is done at the first call with that key only."""
        if key not in self._made:
            self._made[key] = build(self.graph.root["cache"][key])
        return self._made[key]

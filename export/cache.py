"""The KV cache as a graph sees it: inputs and outputs, and the lengths and masks that go with them."""

import numpy as np

from neo_tf.cache_layout import cache_parts, padded_head_size
from neo_tf.rotary import rotary_tables

from .builder import typed

FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9  # of onnx.TensorProto


class Cache:
    """A graph's cache. `declare` makes the inputs and outputs; the layers ask for the rest.

    Args:
        graph: the Graph.
        config: a GPTNeoConfig.
        windowed: keeps a local layer's cache as short as its window, and pads heads (decoder.onnx); otherwise caches
            are full and heads as they are (model.onnx).
    """

    def __init__(self, graph, config, windowed):
        self.graph, self.config = graph, config
        self.head_size = padded_head_size(config) if windowed else config.head_size
        self.pads = self.head_size != config.head_size
        fused = padded_head_size(config) == config.head_size and not graph.precision.standard
        self.masked = not windowed and not fused
        self.parts = cache_parts(config, windowed, self.head_size)
        self._kinds = {part.layer: part.kind for part in self.parts}
        self._made = {}
        self.seqlens_k = self.total_sequence_length = None
        self.fresh = None
        self.mask = None

    def declare(self):
        """Declares the inputs and outputs of every layer."""
        for part in self.parts:
            length = {"full": "past_sequence_length", "window": f"window_{part.layer}", "sums": f"sums_{part.layer}"}
            total = {"full": "total_sequence_length", "window": f"window_{part.layer}", "sums": part.rows}
            for name, rows, declare in (
                (part.past, length[part.kind], self.graph.input),
                (part.present, total[part.kind], self.graph.output),
            ):
                # Running sums stay in float32.
                dtype = np.float32 if part.kind == "sums" else self.graph.precision.dtype
                declare(name, dtype, ["batch_size", part.heads, rows, part.columns])

    def read_mask(self):
        """Derives the lengths from attention_mask, int64 [batch, past + seq]: 0 where no token stands.

        Zeros after every row's last 1 are taken for room that is not in use yet: a runtime whose past and present are
        one buffer may hand in the mask of its whole capacity. Its rows may differ in length where a step is one token.
        """
        scope, constant = self.graph.root["attention_mask"], self.graph.constant
        op, step = scope.op, scope.op("Squeeze", scope.op("Shape", "input_ids", start=1), name="step")
        columns = op("Squeeze", op("Shape", "attention_mask", start=1), name="columns")
        if self.masked:  # caches grow by the step's tokens: there is no room that is not in use
            total = columns
            lengths = op("Expand", total, op("Shape", "attention_mask", end=1))
        else:
            # [batch, columns] -> [batch]: up to each row's last 1
            after = op("Range", constant(1), op("Add", columns, constant(1)), constant(1), name="after")
            ends = op("ReduceMax", op("Mul", "attention_mask", after), constant([1]), keepdims=0, name="ends")
            total = op("Max", op("ReduceMax", ends, keepdims=0), step)
            # Rows of several tokens end together: those past a row's own last 1 are hidden as any other 0 is.
            alone = op("Max", ends, constant(1))
            lengths = op("Where", op("Equal", step, constant(1)), alone, total, name="lengths")
        self.seqlens_k = op("Cast", op("Sub", lengths, constant(1)), to=INT32, name="seqlens_k")
        self.total_sequence_length = op("Cast", total, to=INT32, name="total_sequence_length")
        total = op("Reshape", total, constant([1]))
        self.mask = op("Slice", "attention_mask", constant([0]), total, constant([1]), name="mask")

    def names(self, layer):
        """The layer's (past key, past value) and (present key, present value)."""
        parts = [part for part in self.parts if part.layer == layer]
        return [part.past for part in parts], [part.present for part in parts]

    def is_local(self, layer):
        """Whether the layer's window is shorter than the context: otherwise local and global are the same."""
        return self.config.window(layer) < self.config.n_ctx

    def is_windowed(self, layer):
        """Whether the layer's cache is as short as its window."""
        return self._kinds[layer] == "window"

    def lengths(self, layer):
        """(seqlens_k, total_sequence_length) of the layer: learned keys count as positions before the first."""
        if not self._remembers(layer):
            return self.seqlens_k, self.total_sequence_length
        return self._once("memory/lengths", self._memory_lengths)

    @property
    def rotary_tables(self):
        """Names of the cosines and sines, [n_ctx, head / 2] each."""
        config, dtype = self.config, self.graph.precision.dtype
        shape = (config.n_ctx, config.head_size // 2)

        def table(index):
            return rotary_tables(config)[index].astype(dtype)

        return [
            self.graph.add_weight(typed(f"rotary/{name}", dtype), dtype, shape, lambda index=index: table(index))
            for index, name in enumerate(("cos", "sin"))
        ]

    # ---- learned keys and values

    @property
    def memory_rows(self):
        """int64 [1]: num_mem_kv in a sequence's first step, 0 afterwards."""

        def build(scope):
            first = scope.op("Equal", self._step_length(scope), self.total_sequence_length)
            rows = scope.op("Mul", scope.op("Cast", first, to=INT64), self.graph.constant(self.config.num_mem_kv))
            return scope.op("Reshape", rows, self.graph.constant([1]))

        return self._once("memory", build)

    def lengthen(self, q, scope):
        """Puts rows of zeros before the queries, where the learned keys stand."""
        constant = self.graph.constant
        pads = scope.op("Concat", constant([0]), self.memory_rows, constant([0, 0, 0, 0]), axis=0)
        return scope.pad(q, pads)

    def shorten(self, a, scope):
        """Drops the rows that lengthen put there: [batch, memory + seq, ...] -> [batch, seq, ...]."""
        constant = self.graph.constant
        return scope.op("Slice", a, self.memory_rows, constant([2**62]), constant([1]))

    def _memory_lengths(self, scope):
        memory = self.graph.constant(self.config.num_mem_kv, np.int32)
        return (
            scope.op("Add", self.seqlens_k, memory, name="seqlens_k"),
            scope.op("Add", self.total_sequence_length, memory, name="total_sequence_length"),
        )

    def _remembers(self, layer):
        return self.config.num_mem_kv > 0 and self.config.attention_types[layer] == "global"

    # ---- linear attention's sums

    def sums(self, past, rows, scope):
        """The sums so far, [batch, heads, rows, columns]: zeros in a sequence's first step.

        Other runtimes begin with caches of no rows, ours with whatever the slot held before.
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

    def step_mask(self):
        """float32 [batch, 1, 1, seq]: 1 where this step has a token, 0 where it is padded."""

        def build(scope):
            op, constant = scope.op, self.graph.constant
            # A row's tokens end where the row does.
            ends = op("Unsqueeze", op("Add", op("Cast", self.seqlens_k, to=INT64), constant(1)), constant([1]))
            step = op("Cast", self._step_length(scope), to=INT64)
            columns = op("Add", ends, op("Range", op("Neg", step), constant(0), constant(1)))
            # A row without a single token would begin before the first column.
            mask = op("GatherElements", self.mask, op("Max", columns, constant(0)), axis=1)
            return op("Cast", op("Unsqueeze", mask, constant([1, 2])), to=FLOAT)

        return self._once("step_mask", build)

    def padding(self, layer):
        """float [batch, 1, seq, memory + total]: 0 at tokens, -inf-like where rows are padded, for GroupQueryAttention.

        Causality and windows are the operator's own business.
        """

        def build(scope):
            constant = self.graph.constant
            # [batch, total] -> [batch, 1, 1, total] -> [batch, 1, seq, total]
            lowest = -65504 if self.graph.precision.dtype == np.float16 else -1e9
            bias = self._hidden(self._visible(scope), scope, lowest)
            step = scope.op("Shape", "input_ids", start=1)
            bias = scope.op("Expand", bias, scope.op("Concat", constant([1, 1]), step, constant([1]), axis=0))
            return scope.native(self._remembering(bias, memory, scope))

        memory = self._memory(layer)
        return self._once(f"padding_{memory}", build)

    def bias(self, layer):
        """float [batch, 1, seq, memory + total]: 0 where a query sees a key, and -inf-like elsewhere."""
        window, memory = self.config.window(layer), self._memory(layer)
        return self._once(f"bias_{window}_{memory}", lambda scope: self._bias(scope, window, memory))

    def _bias(self, scope, window, memory):
        op, constant = scope.op, self.graph.constant
        step = op("Cast", self._step_length(scope), to=INT64)
        total = op("Cast", self.total_sequence_length, to=INT64)
        key = op("Range", constant(0), total, constant(1), name="key")
        query = op("Range", op("Sub", total, step), total, constant(1), name="query")
        distance = op("Sub", op("Unsqueeze", query, constant([1])), key)
        near = op("Less", distance, constant(window))
        visible = op("And", op("GreaterOrEqual", distance, constant(0)), near)
        # [seq, total] and [batch, 1, 1, total] -> [batch, 1, seq, total]
        return self._remembering(self._hidden(op("And", visible, self._visible(scope)), scope), memory, scope)

    def _visible(self, scope):
        """bool [batch, 1, 1, total]."""
        return scope.op("Unsqueeze", scope.op("Cast", self.mask, to=BOOL), self.graph.constant([1, 2]))

    def _hidden(self, visible, scope, lowest=-1e9):
        # Not -inf: a query that sees nothing, as padded ones may, would be no number, and so would its values.
        return scope.op("Where", visible, self.graph.constant(0, np.float32), self.graph.constant(lowest, np.float32))

    def _remembering(self, bias, memory, scope):
        """Every query sees the learned keys; their own rows of zeros, in the first step, are dropped later."""
        if not memory:
            return bias
        constant = self.graph.constant
        front = scope.op("Concat", constant([0, 0]), self.memory_rows, constant([memory, 0, 0, 0, 0]), axis=0)
        return scope.op("Pad", bias, front)

    def _memory(self, layer):
        return self.config.num_mem_kv if self._remembers(layer) else 0

    def _step_length(self, scope):
        return self._once(
            "step_length",
            lambda inner: inner.op("Cast", inner.op("Squeeze", inner.op("Shape", "input_ids", start=1)), to=INT32),
        )

    def _once(self, key, build):
        if key not in self._made:
            self._made[key] = build(self.graph.root["cache"][key])
        return self._made[key]

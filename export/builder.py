"""A small ONNX graph builder: nodes are named as paths; weights are planned first and written later.

A value in a graph is its name, a str: what the methods below return is what other nodes take as inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from neo_tf.progress import Progress, no_progress
from neo_tf.variables import ROOT

from .precision import Precision, cast, precision_for

if TYPE_CHECKING:
    from neo_tf.checkpoints import Checkpoint, LazyTensor

MICROSOFT = "com.microsoft"  # the domain of the operators that ONNX Runtime adds
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
_ALIGNMENT = 4096  # a page: ONNX Runtime maps large tensors straight from the file
_INLINE_BYTES = 1024  # smaller constants stay in the graph file


@dataclass(frozen=True)
class Weight:
    """A tensor of the data file.

    Args:
        name: The tensor's name.
        dtype: Its numpy dtype.
        shape: Its shape.
        read: A function that returns the tensor; it is called when the tensor is written.
        offset: The position of its first byte in the file.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    offset: int

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class WeightFile:
    """The plan of one data file that several graphs share: a name stands for the same tensor in all of them.

    Args:
        location: The file's name, as the graphs refer to it.
        weights: The planned tensors, {name: Weight}.
        nbytes: The size of the file in bytes.
    """

    location: str
    weights: dict[str, Weight] = field(default_factory=dict)
    nbytes: int = 0

    def add(self, name: str, dtype: DTypeLike, shape: Sequence[int], read: Callable[[], np.ndarray]) -> Weight:
        """Plans a tensor at the next page boundary, unless one of that name is planned already.

        Args:
            name, dtype, shape, read: See Weight.

        Returns:
            The planned Weight.
        """
        if name not in self.weights:
            offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
            self.weights[name] = Weight(name, np.dtype(dtype), tuple(shape), read, offset)
            self.nbytes = offset + self.weights[name].nbytes
        return self.weights[name]

    def write(self, path: Path | str, progress: Progress = no_progress) -> None:
        """Writes all tensors; one is in memory at a time.

        Args:
            path: The file to write.
            progress: Called after each tensor with its bytes and its name.
        """
        with open(path, "wb") as out:
            for weight in self.weights.values():
                value = weight.read()
                if value.shape != weight.shape or value.dtype != weight.dtype:
                    raise AssertionError(f"{weight.name}: planned {weight.shape}, read {value.shape} {value.dtype}")
                out.seek(weight.offset)
                out.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
                progress(weight.nbytes, weight.name)
                del value


@dataclass(frozen=True)
class _External:
    """An initializer whose values lie in the data file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    plan: Callable[[], Weight]  # plans the tensor, once a graph uses it


class Graph:
    """A graph under construction.

    Args:
        name: The graph's name.
        checkpoint: The checkpoint that holds the weights.
        weight_file: The plan of the data file that the weights are written to.
        precision: The types of the graph's numbers; fp32 by default.
    """

    def __init__(
        self, name: str, checkpoint: Checkpoint, weight_file: WeightFile, precision: Precision | None = None
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.weight_file = weight_file
        self.precision = precision or precision_for("fp32")
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto | _External] = {}
        self._names: dict[str, int] = {}

    @property
    def root(self) -> Scope:
        """The outermost scope: the names in it begin with a slash."""
        return Scope(self, "")

    def unique(self, name: str) -> str:
        """Returns the name itself the first time, then name_1, name_2, ..."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str], default: ArrayLike | None = None) -> str:
        """Declares an input.

        Args:
            name: The input's name.
            dtype: Its numpy dtype.
            shape: Its shape; a str names a size that may vary.
            default: The value where a caller leaves the input out; None makes it required.
        """
        if default is not None:
            self.initializers[name] = numpy_helper.from_array(np.asarray(default), name)
        self.inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def output(self, name: str, dtype: DTypeLike, shape: Sequence[int | str] | None) -> str:
        """Declares a value of the graph as an output; the shape None leaves it open."""
        self.outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def add_weight(self, name: str, dtype: DTypeLike, shape: Sequence[int], read: Callable[[], np.ndarray]) -> str:
        """Declares a tensor of the data file as an initializer; it gets a place there only if a node uses it.

        Args:
            name, dtype, shape, read: See Weight.
        """
        self.initializers[name] = _External(
            np.dtype(dtype), tuple(shape), lambda: self.weight_file.add(name, dtype, shape, read)
        )
        return name

    def add_view(self, name: str, dtype: DTypeLike, shape: Sequence[int], of: str) -> str:
        """Declares another initializer over the bytes of a weight: the same values in another shape.

        Args:
            name: The new initializer's name.
            dtype: Its dtype, with which the shape takes as many bytes as the weight does.
            shape: Its shape.
            of: The name of the weight.
        """
        weight = self.initializers[of]
        assert isinstance(weight, _External)
        self.initializers[name] = _External(np.dtype(dtype), tuple(shape), weight.plan)
        return name

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        """Returns a small constant; equal values of one dtype and rank share one initializer."""
        array = np.asarray(value, dtype)
        assert array.nbytes <= _INLINE_BYTES
        name = f"/constants/{array.dtype.name}_{'_'.join(map(str, array.reshape(-1).tolist()))}_{array.ndim}d"
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def number(self, value: ArrayLike) -> str:
        """Returns a small constant in the graph's own floating-point type."""
        return self.constant(value, self.precision.dtype)

    def float32_number(self, value: ArrayLike) -> str:
        """Returns a small float32 constant."""
        return self.constant(value, np.float32)

    def model(self) -> ModelProto:
        """Returns the finished model: the nodes that its outputs need, with references into the data file."""
        nodes = self._needed()
        used = {name for node in nodes for name in node.input} | {value.name for value in self.inputs}
        initializers = [self._tensor(name) for name in self.initializers if name in used]
        graph = helper.make_graph(nodes, self.name, self.inputs, self.outputs, initializer=initializers)
        domains = {"": OPSETS[""]} if self.precision.standard else OPSETS
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="neo-tf")

    def _needed(self) -> list[NodeProto]:
        """The nodes that the outputs depend on, in order."""
        wanted = {value.name for value in self.outputs}
        nodes = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                wanted.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _tensor(self, name: str) -> TensorProto:
        """An initializer as ONNX writes it; a tensor of the data file is planned there now."""
        made = self.initializers[name]
        if isinstance(made, TensorProto):
            return made
        weight = made.plan()
        tensor = TensorProto(
            name=name, data_type=_onnx_type(made.dtype), dims=made.shape, data_location=TensorProto.EXTERNAL
        )
        place = {"location": self.weight_file.location, "offset": weight.offset, "length": weight.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass(frozen=True)
class Scope:
    """A scope of the original in the graph: scope["attn"] is an inner scope, and its operators are named below it.

    Args:
        graph: The graph.
        path: The path of the scope's nodes, such as /h0/attn.
        variables: The path of the scope's variables. It differs from `path` only where layers share their variables.
    """

    graph: Graph
    path: str
    variables: str = ""

    def __getitem__(self, name: str) -> Scope:
        return Scope(self.graph, f"{self.path}/{name}", f"{self.variables}/{name}")

    # ---- nodes

    def op(
        self,
        op_type: str,
        *inputs: str | None,
        domain: str = "",
        name: str | None = None,
        out: str | None = None,
        **attributes: Any,
    ) -> str:
        """Adds a node with one output.

        Args:
            op_type: The operator's name.
            inputs: The operator's inputs; None stands for an optional one that is left out.
            domain: The operator's domain; the ONNX standard by default.
            name: The last part of the node's path; the operator's name by default.
            out: The output's name; the node's path by default.
            attributes: The operator's attributes.

        Returns:
            The output.
        """
        node = self.graph.unique(f"{self.path}/{name or op_type}")
        output = out or node
        self._add_node(op_type, inputs, [output], node, domain, attributes)
        return output

    def op_several(
        self,
        op_type: str,
        *inputs: str | None,
        outputs: int | Sequence[str],
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Adds a node with several outputs.

        Args:
            op_type, inputs, domain, name, attributes: See op.
            outputs: The outputs' names, or their number: then they are called {path}:0, {path}:1, ...

        Returns:
            The outputs.
        """
        node = self.graph.unique(f"{self.path}/{name or op_type}")
        names = [f"{node}:{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._add_node(op_type, inputs, names, node, domain, attributes)
        return tuple(names)

    def _add_node(
        self,
        op_type: str,
        inputs: Sequence[str | None],
        outputs: list[str],
        name: str,
        domain: str,
        attributes: dict[str, Any],
    ) -> None:
        present = [value or "" for value in inputs]
        self.graph.nodes.append(helper.make_node(op_type, present, outputs, name=name, domain=domain, **attributes))

    def float32(self, x: str) -> str:
        """Casts x to float32, for computations that the graph's own type is not exact or not wide enough for."""
        return x if self.graph.precision.dtype == np.float32 else self.op("Cast", x, to=TensorProto.FLOAT)

    def native(self, x: str) -> str:
        """Casts x, which is float32, to the graph's own type."""
        dtype = self.graph.precision.dtype
        return x if dtype == np.float32 else self.op("Cast", x, to=_onnx_type(dtype))

    def pad(self, x: str, pads: str) -> str:
        """Puts zeros around x; in float32 where x is bfloat16, as CUDA has no bfloat16 kernel of Pad."""
        if self.graph.precision.dtype.name == "bfloat16":
            return self.native(self.op("Pad", self.float32(x), pads))
        return self.op("Pad", x, pads)

    def result(self, x: str, name: str) -> str:
        """Renames x, the output of the last node, to the name of a graph's output: an Identity would copy it."""
        assert list(self.graph.nodes[-1].output) == [x]
        self.graph.nodes[-1].output[0] = name
        return name

    # ---- variables

    def canonical(self, name: str) -> str:
        """The canonical name of a variable of this scope: gpt2/h0/attn/q."""
        return f"{ROOT}{self.variables}/{name}"

    def tensor(self, name: str) -> LazyTensor:
        """Returns the checkpoint's tensor of a variable of this scope."""
        return self.graph.checkpoint.tensors[self.canonical(name)]

    def read(self, variables: Sequence[str]) -> Iterator[np.ndarray]:
        """Reads some variables of this scope, one by one, as float32."""
        return (self.tensor(variable).read().astype(np.float32, copy=False) for variable in variables)

    def weight(self, name: str) -> str:
        """Returns a variable of this scope as an initializer in the graph's floating-point type."""
        return self.packed([name], name)

    def packed(self, names: Sequence[str], name: str) -> str:
        """Returns several variables of this scope side by side, along the last axis, as one initializer.

        Args:
            names: The variables' names.
            name: The initializer's name within this scope.
        """
        shapes = [self.tensor(part).shape for part in names]
        if len(names) == 1:
            return self.derived(name, shapes[0], lambda tensor: tensor, *names)
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return self.derived(name, shape, lambda *tensors: np.concatenate(tensors, axis=-1), *names)

    def derived(
        self,
        name: str,
        shape: Sequence[int],
        function: Callable[..., np.ndarray],
        *variables: str,
        dtype: DTypeLike | None = None,
    ) -> str:
        """Returns an initializer that is computed in float32 from variables of this scope when it is written.

        Args:
            name: The initializer's name within this scope.
            shape: Its shape.
            function: Takes the variables as float32 arrays, and returns the values.
            variables: The variables' names.
            dtype: The initializer's dtype; the graph's own by default.
        """
        dtype = np.dtype(dtype or self.graph.precision.dtype)
        path = self.canonical(name)
        return self.graph.add_weight(
            typed(path, dtype), dtype, shape, lambda: cast(function(*self.read(variables)), dtype, path)
        )

    def derived_pair(
        self,
        name: str,
        dtypes: tuple[DTypeLike, DTypeLike],
        shapes: tuple[Sequence[int], Sequence[int]],
        function: Callable[..., tuple[np.ndarray, np.ndarray]],
        *variables: str,
    ) -> tuple[str, str]:
        """Returns two initializers, {name} and {name}/scales, that are computed together from variables.

        Args:
            name: The first initializer's name within this scope.
            dtypes: The two dtypes.
            shapes: The two shapes.
            function: Takes the variables as float32 arrays, and returns the two arrays.
            variables: The variables' names.
        """
        made: dict[int, np.ndarray] = {}

        def part(index: int) -> np.ndarray:
            # One computation gives both parts. They are written one after the other, and then forgotten.
            if not made:
                made.update(enumerate(function(*self.read(variables))))
            return made.pop(index)

        base = self.canonical(name)
        return (
            self.graph.add_weight(base, dtypes[0], shapes[0], lambda: part(0)),
            self.graph.add_weight(f"{base}/scales", dtypes[1], shapes[1], lambda: part(1)),
        )

    def moments(self, name: str) -> np.ndarray | None:
        """The moments that a matrix of this scope is to be rounded for, or None; see calibrate.py."""
        calibration = self.graph.precision.calibration
        return calibration.moments(self.canonical(name)) if calibration else None


def typed(name: str, dtype: np.dtype) -> str:
    """The name of a tensor in a dtype: {name}/float16; a float32 tensor has the plain name."""
    return name if dtype == np.float32 else f"{name}/{dtype.name}"


def _onnx_type(dtype: DTypeLike) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

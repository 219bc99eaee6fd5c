"""A small ONNX graph builder: nodes named as paths, weights that are planned now and written later."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .precision import cast, precision_for

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
_ALIGNMENT = 4096  # a page: ONNX Runtime maps large tensors straight from the file
_INLINE_BYTES = 1024  # smaller constants stay in the graph file


@dataclass(frozen=True)
class Weight:
    """A tensor of the data file: where it will lie, and what reads it when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple
    read: Callable[[], np.ndarray]
    offset: int

    @property
    def nbytes(self):
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class WeightFile:
    """The plan of one data file that several graphs point into. Asking twice for a name gives the same tensor."""

    location: str
    weights: dict = field(default_factory=dict)
    nbytes: int = 0

    def add(self, name, dtype, shape, read):
        """Plans a tensor at the next page boundary, unless it is planned already."""
        if name not in self.weights:
            offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
            self.weights[name] = Weight(name, np.dtype(dtype), tuple(shape), read, offset)
            self.nbytes = offset + self.weights[name].nbytes
        return self.weights[name]

    def write(self, path, progress):
        """Writes all tensors, one in memory at a time. progress(name, bytes) is called after each."""
        with open(path, "wb") as out:
            for weight in self.weights.values():
                value = weight.read()
                if value.shape != weight.shape or value.dtype != weight.dtype:
                    raise AssertionError(f"{weight.name}: planned {weight.shape}, read {value.shape} {value.dtype}")
                out.seek(weight.offset)
                out.write(memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8)))
                progress(weight.name, weight.nbytes)
                del value


class Graph:
    """A graph under construction.

    Args:
        name: the graph's name.
        checkpoint: the Checkpoint that holds the weights.
        weight_file: the WeightFile that the weights go to.
        precision: a Precision.
    """

    def __init__(self, name, checkpoint, weight_file, precision=None):
        self.name, self.checkpoint, self.weight_file = name, checkpoint, weight_file
        self.precision = precision or precision_for("fp32")
        self.inputs, self.outputs, self.nodes, self.initializers = [], [], [], {}
        self._names = {}

    @property
    def root(self):
        """The outermost scope, whose names are the graph's."""
        return Scope(self, "")

    def unique(self, name):
        """The name itself the first time, then name_1, name_2, ..."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def input(self, name, dtype, shape, default=None):
        """Declares an input; with a default it is an initializer that a caller may override."""
        if default is not None:
            self.initializers[name] = numpy_helper.from_array(np.asarray(default), name)
        self.inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def output(self, name, dtype, shape):
        """Declares an output."""
        self.outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def add_weight(self, name, dtype, shape, read):
        """Declares a tensor of the data file as an initializer. Its place there is planned only if it is used."""
        self.initializers[name] = (dtype, shape, lambda: self.weight_file.add(name, dtype, shape, read))
        return name

    def add_view(self, name, dtype, shape, of):
        """Declares another initializer over the bytes of a weight: the same values in another shape."""
        self.initializers[name] = (dtype, shape, self.initializers[of][2])
        return name

    def constant(self, value, dtype=np.int64):
        """A small constant, the same one for the same value."""
        value = np.asarray(value, dtype)
        assert value.nbytes <= _INLINE_BYTES
        name = f"/constants/{value.dtype.name}_{'_'.join(map(str, value.reshape(-1).tolist()))}_{value.ndim}d"
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def number(self, value):
        """A small constant in the graph's own floating-point type."""
        return self.constant(value, self.precision.dtype)

    def float32_number(self, value):
        """A small float32 constant."""
        return self.constant(value, np.float32)

    def model(self):
        """The finished ModelProto: what its outputs need; its weights are references into the data file."""
        nodes = self._needed()
        used = {name for node in nodes for name in node.input} | {value.name for value in self.inputs}
        initializers = [self._tensor(name) for name in self.initializers if name in used]
        graph = helper.make_graph(nodes, self.name, self.inputs, self.outputs, initializer=initializers)
        opsets = {"": OPSETS[""]} if self.precision.standard else OPSETS
        opsets = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="neo-tf")

    def _needed(self):
        wanted, nodes = {value.name for value in self.outputs}, []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                wanted.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _tensor(self, name):
        made = self.initializers[name]
        if isinstance(made, TensorProto):
            return made
        dtype, shape, plan = made
        weight = plan()
        tensor = TensorProto(name=name, data_type=_onnx_type(dtype), dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": self.weight_file.location, "offset": weight.offset, "length": weight.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass(frozen=True)
class Scope:
    """A scope of the original in the graph: scope["attn"] is an inner one, whose operators are named below it.

    Args:
        graph: the Graph.
        path: where its nodes stand: /h0/attn.
        variables: where its variables stand; the same unless layers share theirs.
    """

    graph: Graph
    path: str
    variables: str = ""

    def __getitem__(self, name):
        return Scope(self.graph, f"{self.path}/{name}", f"{self.variables}/{name}")

    def op(self, op_type, *inputs, domain="", outputs=1, name=None, out=None, **attributes):
        """Adds a node `{path}/{name or op_type}` and returns its output's name, or a tuple of several.

        An input None is an omitted optional one. `out` names the outputs instead of deriving them.
        """
        node = self.graph.unique(f"{self.path}/{name or op_type}")
        names = out or ([node] if outputs == 1 else [f"{node}:{index}" for index in range(outputs)])
        self.graph.nodes.append(
            helper.make_node(op_type, [i or "" for i in inputs], names, name=node, domain=domain, **attributes)
        )
        return names[0] if len(names) == 1 else tuple(names)

    def float32(self, x):
        """x in float32, for what the graph's own type is too short or too narrow for."""
        return x if self.graph.precision.dtype == np.float32 else self.op("Cast", x, to=TensorProto.FLOAT)

    def result(self, x, name):
        """Names what the last node made as a graph's output; an Identity would copy it."""
        assert list(self.graph.nodes[-1].output) == [x]
        self.graph.nodes[-1].output[0] = name
        return name

    def native(self, x):
        """x, which is float32, in the graph's own type."""
        dtype = self.graph.precision.dtype
        return x if dtype == np.float32 else self.op("Cast", x, to=_onnx_type(dtype))

    def pad(self, x, pads):
        """x with zeros around it; CUDA has no bfloat16 kernel for it."""
        if self.graph.precision.dtype.name == "bfloat16":
            return self.native(self.op("Pad", self.float32(x), pads))
        return self.op("Pad", x, pads)

    def weight(self, name):
        """A variable of this scope as an initializer, in the graph's floating-point type."""
        return self.packed([name], name)

    def packed(self, names, name):
        """Several variables of this scope side by side (along the last axis) as one initializer."""
        shapes = [self.tensor(part).shape for part in names]
        if len(names) == 1:
            return self.derived(name, shapes[0], lambda tensor: tensor, *names)
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return self.derived(name, shape, lambda *tensors: np.concatenate(tensors, axis=-1), *names)

    def derived(self, name, shape, function, *variables, dtype=None):
        """A function of some variables of this scope, computed in float32 when it is written, as an initializer.

        dtype: of the initializer; the graph's own by default.
        """
        dtype = np.dtype(dtype or self.graph.precision.dtype)
        path = f"gpt2{self.variables}/{name}"
        return self.graph.add_weight(
            typed(path, dtype), dtype, shape, lambda: cast(function(*self.read(variables)), dtype, path)
        )

    def derived_pair(self, name, dtypes, shapes, function, *variables):
        """As derived, for a function that returns two arrays: initializers {name} and {name}/scales."""
        made = {}

        def part(index):
            # Both parts come of one computation; they are written one after the other, then forgotten.
            if not made:
                made.update(enumerate(function(*self.read(variables))))
            return made.pop(index)

        base = f"gpt2{self.variables}/{name}"
        return (
            self.graph.add_weight(base, dtypes[0], shapes[0], lambda: part(0)),
            self.graph.add_weight(f"{base}/scales", dtypes[1], shapes[1], lambda: part(1)),
        )

    def tensor(self, name):
        """The checkpoint's tensor of a variable of this scope."""
        return self.graph.checkpoint.tensors[f"gpt2{self.variables}/{name}"]

    def moments(self, name):
        """What a matrix of this scope is to be rounded for, or None; see calibrate.py."""
        calibration = self.graph.precision.calibration
        return calibration and calibration.moments(f"gpt2{self.variables}/{name}")

    def read(self, variables):
        """The values of some variables of this scope, one by one, float32."""
        return (self.tensor(variable).read().astype(np.float32, copy=False) for variable in variables)


def typed(name, dtype):
    """The name of a tensor in a type: float32 has the plain one."""
    return name if dtype == np.float32 else f"{name}/{dtype.name}"


def _onnx_type(dtype):
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

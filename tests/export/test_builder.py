"""The data file is planned and written as it should be, and nodes and constants get the right names."""

import gc
import weakref
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from neo_tf.checkpoints import Checkpoint, LazyTensor
from neo_tf.config import GPTNeoConfig
from neo_tf.export.builder import Graph, WeightFile
from neo_tf.export.graph import build_decoder, build_model
from neo_tf.variables import model_variables


def constant_reader(value):
    return lambda: value


def test_weights_lie_on_pages_and_come_back(tmp_path):
    sizes = {"a": (3,), "b": (1024, 4), "c": (), "d": (4096, 3), "e": (7, 5)}
    values = {name: np.random.default_rng(len(name)).random(shape).astype(np.float32) for name, shape in sizes.items()}
    file, seen = WeightFile("data"), []
    for name, value in values.items():
        file.add(name, np.float32, value.shape, constant_reader(value))
    assert [weight.offset for weight in file.weights.values()] == [0, 4096, 20480, 24576, 73728]
    file.write(tmp_path / "data", lambda *done: seen.append(done))
    data = (tmp_path / "data").read_bytes()
    assert len(data) == file.nbytes == 73728 + 4 * 35
    for name, weight in file.weights.items():
        stored = np.frombuffer(data[weight.offset : weight.offset + weight.nbytes], np.float32)
        np.testing.assert_array_equal(stored.reshape(weight.shape), values[name])
    assert seen == [(value.nbytes, name) for name, value in values.items()]


def test_a_tensor_that_is_stored_transposed_is_written_in_its_order(tmp_path):
    value = np.arange(12, dtype=np.float32).reshape(3, 4).T
    file = WeightFile("data")
    file.add("x", np.float32, (4, 3), constant_reader(value))
    file.write(tmp_path / "data", lambda *done: None)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "data", np.float32).reshape(4, 3), value)


def test_a_name_is_planned_once():
    file = WeightFile("data")
    first = file.add("x", np.float32, (10, 10), constant_reader(None))
    assert file.add("x", np.float32, (10, 10), constant_reader(None)) is first
    assert file.nbytes == 400


@pytest.mark.parametrize("value", [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float64)], ids=["shape", "dtype"])
def test_a_tensor_other_than_planned_is_not_written(tmp_path, value):
    file = WeightFile("data")
    file.add("x", np.float32, (3, 2), constant_reader(value))
    with pytest.raises(AssertionError, match="x: planned"):
        file.write(tmp_path / "data", lambda *done: None)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    file, alive, most = WeightFile("data"), [], 0

    def read():
        nonlocal most
        gc.collect()
        value = np.zeros((64, 64), np.float32)
        alive.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in alive))
        return value

    for number in range(5):
        file.add(str(number), np.float32, (64, 64), read)
    file.write(tmp_path / "data", lambda *done: None)
    assert len(alive) == 5 and most == 1


def test_planning_the_graphs_reads_nothing():
    def read():
        raise AssertionError("read too early")

    config = GPTNeoConfig(50257, 2048, 2560, 20, 4, ("global", "local") * 2)
    variables = model_variables(config)
    tensors = {name: LazyTensor(variable.shape, np.dtype(np.float32), read) for name, variable in variables.items()}
    file = WeightFile("data")
    checkpoint = Checkpoint("nowhere", "keras", config, tensors)
    build_model(checkpoint, file)
    planned = file.nbytes
    build_decoder(checkpoint, file)
    assert file.nbytes == planned >= 4 * sum(variable.size for variable in variables.values())


def graph_of(**tensors):
    lazy = {
        f"gpt2/h0/{name}": LazyTensor(value.shape, value.dtype, constant_reader(value))
        for name, value in tensors.items()
    }
    return Graph("test", SimpleNamespace(tensors=lazy), WeightFile("data"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_packed_variables_lie_side_by_side_in_float32(dtype):
    parts = {name: (np.arange(6).reshape(2, 3) + 10 * i).astype(dtype) for i, name in enumerate("qkv")}
    graph = graph_of(**parts)
    name = graph.root["h0"].packed(["q", "k", "v"], "qkv")
    assert not graph.weight_file.weights  # nothing uses it yet
    graph.output(graph.root["h0"].op("Identity", name), np.float32, None)
    graph.model()
    weight = graph.weight_file.weights[name]
    assert (name, weight.shape, weight.dtype) == ("gpt2/h0/qkv", (2, 9), np.float32)
    value = weight.read()
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value[1], [3, 4, 5, 13, 14, 15, 23, 24, 25])


def test_a_weight_becomes_a_reference_into_the_data_file():
    graph = graph_of(g=np.ones(5, np.float32), b=np.ones(5, np.float32))
    names = [graph.root["h0"].weight(name) for name in ("g", "b", "g")]
    assert names == ["gpt2/h0/g", "gpt2/h0/b", "gpt2/h0/g"]
    graph.output(graph.root["h0"].op("Add", *names[:2]), np.float32, None)
    tensors = graph.model().graph.initializer
    assert [tensor.name for tensor in tensors] == ["gpt2/h0/g", "gpt2/h0/b"]
    for tensor, offset in zip(tensors, ("0", "4096"), strict=True):
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert tensor.data_location == TensorProto.EXTERNAL and not tensor.raw_data
        assert place == {"location": "data", "offset": offset, "length": "20"}


def test_constants_are_shared_by_value_type_and_rank():
    graph = graph_of()
    names = [
        *(graph.constant(1), graph.constant([1]), graph.constant([[1]]), graph.constant([1], np.float32)),
        *(graph.constant([1, 2]), graph.constant([12]), graph.constant(-1)),
    ]
    assert len(set(names)) == len(names)
    assert graph.constant([1, 2]) == names[4]
    graph.output(graph.root.op("Concat", *names), np.int64, None)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.model().graph.initializer}
    assert len(values) == len(names)
    assert values[names[1]].shape == (1,) and values[names[4]].tolist() == [1, 2] and values[names[6]] == -1


def test_what_no_output_needs_is_left_out_with_its_weights():
    graph = graph_of(g=np.ones(5, np.float32), b=np.ones(5, np.float32))
    scope = graph.root["h0"]
    x = scope.op("Neg", scope.weight("g"))
    scope.op("Add", x, scope.weight("b"))
    graph.output(x, np.float32, [5])
    model = graph.model()
    assert [node.op_type for node in model.graph.node] == ["Neg"]
    assert [tensor.name for tensor in model.graph.initializer] == ["gpt2/h0/g"] == list(graph.weight_file.weights)


def test_operators_are_named_below_their_scope():
    graph = graph_of()
    scope = graph.root["h0"]["attn"]
    assert scope.op("Add", "x", "y") == "/h0/attn/Add"
    assert scope.op("Add", "x", "y", name="Residual") == "/h0/attn/Residual"
    assert scope.op_several("Split", "x", None, outputs=2, num_outputs=2) == ("/h0/attn/Split:0", "/h0/attn/Split:1")
    assert scope.op("Identity", "x", out="logits") == "logits"
    for name in ("/h0/attn/Add", "/h0/attn/Residual", "/h0/attn/Split:1", "logits"):
        graph.output(name, np.float32, None)
    nodes = graph.model().graph.node
    assert [node.name for node in nodes] == [f"/h0/attn/{name}" for name in ("Add", "Residual", "Split", "Identity")]
    assert list(nodes[2].input) == ["x", ""]

"""Both graphs compute what the original computed, and have the inputs and outputs that other runtimes expect."""

import itertools
import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import DECODABLE, GLOBAL_LOCAL, GOLDEN, PADDING, TINY_PYTHON, TOLERANCE, Reference

import neo_tf
from neo_tf.cache_layout import cache_parts
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.runtime.device.kv_cache import rows
from neo_tf.runtime.device.session import Session

# (folder, padding, tolerance). The original's own float32 logits of tiny-python lie up to 1.7e-4 off a float64
# computation of the same weights, so that no implementation can be expected to come closer.
CASES = {name: (GOLDEN / name, PADDING, TOLERANCE) for name in DECODABLE}
CASES["tiny-python"] = (TINY_PYTHON, 1, 2.5e-4)
CHUNKS = {"prefill": [2**30], "token by token": [1], "uneven chunks": [1, 7, 2, 30, 3, 70]}
RUNNERS = {
    "decoder.onnx": lambda folder: Session(folder, device="cpu"),
    "model.onnx": PortableSession,
}
GRAPHS = tuple(RUNNERS)
LOCAL = "tiny-local-radius"


def load(folder, graph="model.onnx"):
    return onnx.load(folder / graph, load_external_data=False)


def attention_nodes(model):
    nodes = [node for node in model.graph.node if "Attention" in node.op_type]
    return [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in nodes]


def ort_session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_chunks(runner, ids, sizes):
    """Logits of every position, [n, n_vocab], computed in chunks whose sizes repeat the given ones."""
    logits, past = [], 0
    for size in itertools.cycle(sizes):
        logits.append(runner.prefill(0, ids[past : past + size], past, logits_of="all"))
        past += len(logits[-1])
        if past == len(ids):
            return np.concatenate(logits)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_originals(exported, name, graph, chunks):
    folder, padding, tolerance = CASES[name]
    reference = Reference.load(folder, padding)
    runner = RUNNERS[graph](exported(folder))
    for row, ids in enumerate(reference.inputs):
        logits = run_chunks(runner, ids, CHUNKS[chunks])
        assert logits.shape == (len(ids), runner.config.n_vocab)
        error = np.abs(logits[reference.positions] - reference.logits[row]).max()
        assert error < tolerance


def zero_length_cache(config, rows):
    empty = np.zeros((rows, config.n_head, 0, config.head_size), np.float32)
    return {f"past_key_values.{i}.{part}": empty for i in range(config.n_layer) for part in ("key", "value")}


@pytest.mark.parametrize("name", GLOBAL_LOCAL)
def test_model_onnx_runs_a_batch_of_two_from_an_empty_cache(exported, reference, name):
    reference, folder = reference(name), exported(GOLDEN / name)
    config = neo_tf.GPTNeoConfig.from_file(folder / "config.json")
    session = ort_session(folder / "model.onnx")
    ids, n = reference.inputs, reference.inputs.shape[1]
    names = [output.name for output in session.get_outputs()]

    def run(start, end, cache):
        # num_logits_to_keep is left out: other runtimes do not know it, and get the logits of every position.
        feed = {
            "input_ids": ids[:, start:end],
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (2, 1)),
        }
        return dict(zip(names, session.run(names, feed | cache), strict=True))

    prefill = run(0, n - 1, zero_length_cache(config, 2))
    presents = {name: value for name, value in prefill.items() if name != "logits"}
    assert {value.shape for value in presents.values()} == {(2, config.n_head, n - 1, config.head_size)}
    cache = {name.replace("present", "past_key_values"): value for name, value in presents.items()}
    logits = np.concatenate([prefill["logits"], run(n - 1, n, cache)["logits"]], axis=1)
    assert logits.shape == (2, n, config.n_vocab)
    assert np.abs(logits[:, reference.positions] - reference.logits).max() < TOLERANCE


@pytest.mark.parametrize("logits_of, kept", [("all", 64), (1, 1), (2, 2), (63, 63), (64, 64), (1000, 64)])
def test_model_onnx_keeps_the_last_logits_on_request(exported, reference, logits_of, kept):
    reference, folder = reference("vocab-padded"), exported(GOLDEN / "vocab-padded")
    logits = PortableSession(folder).prefill(0, reference.inputs[0], 0, logits_of=logits_of)
    assert logits.shape == (kept, 320)
    assert np.abs(logits - reference.logits[0, -kept:]).max() < TOLERANCE


@pytest.mark.parametrize("logits_of", [0, 1, 2, 40])
def test_decoder_onnx_keeps_the_last_logits_on_request(exported, reference, logits_of):
    reference, session = reference("vocab-padded"), Session(exported(GOLDEN / "vocab-padded"), device="cpu")
    session.prefill(0, reference.inputs[0, :24], 0)
    logits = session.prefill(0, reference.inputs[0, 24:], 24, logits_of=logits_of)
    assert logits.shape == (logits_of, 320)
    assert np.abs(logits - reference.logits[0, 64 - logits_of :]).max(initial=0) < TOLERANCE


def test_the_likeliest_token_of_every_position_is_the_originals(exported, reference):
    reference, folder = reference(LOCAL), exported(GOLDEN / LOCAL)
    config = neo_tf.GPTNeoConfig.from_file(folder / "config.json")
    feed = {part.past: np.zeros((2, part.heads, part.rows, part.columns), np.float32) for part in cache_parts(config)}
    n = 40
    feed |= {
        "input_ids": reference.inputs[:, :n],
        "position_ids": np.tile(np.arange(n), (2, 1)),
        "seqlens_k": np.full(2, n - 1, np.int32),
        "total_sequence_length": np.array(n, np.int32),
        "logits_start": np.array([0], np.int64),
    }
    (logits,) = ort_session(folder / "decoder.onnx").run(["logits"], feed)
    tokens = logits.argmax(-1)
    np.testing.assert_array_equal(tokens, np.load(GOLDEN / LOCAL / "reference.npz")["argmax_all"][:, :n])


@pytest.mark.parametrize("name", ["tiny-global-local", LOCAL])
def test_model_onnx_has_the_usual_names_and_dims(exported, name):
    folder = exported(GOLDEN / name)
    session = ort_session(folder / "model.onnx")
    past = ["batch_size", 4, "past_sequence_length", 8]
    present = ["batch_size", 4, "total_sequence_length", 8]
    parts = [f"{layer}.{part}" for layer in range(4) for part in ("key", "value")]
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
        ("attention_mask", "tensor(int64)", ["batch_size", "total_sequence_length"]),
        ("position_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
        *((f"past_key_values.{part}", "tensor(float)", past) for part in parts),
    ]
    assert [(item.name, item.type, item.shape) for item in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch_size", "sequence_length", 257]),
        *((f"present.{part}", "tensor(float)", present) for part in parts),
    ]
    extra = session.get_overridable_initializers()
    assert [(item.name, item.type, item.shape) for item in extra] == [("num_logits_to_keep", "tensor(int64)", [1])]


@pytest.mark.parametrize("name, local", [("tiny-global-local", {1, 3}), (LOCAL, {0, 1, 2, 3}), ("tiny-global", set())])
def test_decoder_onnx_names_a_shorter_cache_for_local_layers(exported, name, local):
    folder = exported(GOLDEN / name)
    session = ort_session(folder / "decoder.onnx")
    lengths = {item.name: item.shape[2] for item in session.get_inputs() if item.name.startswith("past_key_values")}
    assert lengths == {
        f"past_key_values.{layer}.{part}": f"window_{layer}" if layer in local else "past_sequence_length"
        for layer in range(4)
        for part in ("key", "value")
    }
    config = Session(folder, device="cpu").config
    kept = {part.layer: rows(part, config) for part in cache_parts(config)}
    assert {layer for layer in range(4) if kept[layer] < config.n_ctx} == local
    assert all(kept[layer] == config.n_ctx for layer in set(range(4)) - local)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", GLOBAL_LOCAL)
def test_attention_is_unscaled_and_windowed_where_it_is_local(exported, name, graph):
    config = neo_tf.GPTNeoConfig.from_file(GOLDEN / name / "config.json")
    nodes = attention_nodes(load(exported(GOLDEN / name), graph))
    assert len(nodes) == config.n_layer
    for layer, attributes in enumerate(nodes):
        local = config.attention_types[layer] == "local"
        assert attributes["scale"] == 1.0
        assert attributes.get("local_window_size") == (config.local_attention_radius if local else None)
        assert ("sliding_window_cache" in attributes) == (local and graph == "decoder.onnx")


@pytest.fixture(scope="module")
def variant(tmp_path_factory, exported):
    """A function that exports a copy of a golden checkpoint with a changed config."""

    def export(name, **changes):
        folder = tmp_path_factory.mktemp("variant") / name
        shutil.copytree(GOLDEN / name, folder)
        params = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(params))
        return exported(folder)

    return export


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("radius", [256, 4096])
def test_a_window_as_long_as_the_context_is_no_window(variant, reference, radius, graph):
    ids = reference(LOCAL).inputs[0]
    wide = variant(LOCAL, local_attention_radius=radius)
    assert not any("local_window_size" in node for node in attention_nodes(load(wide, graph)))
    as_global = variant(LOCAL, attention_types=[[["global"], 4]])
    logits = [run_chunks(RUNNERS[graph](folder), ids, [200, 1, 55]) for folder in (wide, as_global)]
    np.testing.assert_array_equal(*logits)


def weights_of(model):
    """{name: (offset, length, dims)} of the tensors that a graph reads from the data file."""
    found = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            assert place["location"] == "model.onnx_data"
            assert tensor.data_type == onnx.TensorProto.FLOAT
            found[tensor.name] = (int(place["offset"]), int(place["length"]), tuple(tensor.dims))
    return found


@pytest.mark.parametrize("source", [*(GOLDEN / name for name in GLOBAL_LOCAL), TINY_PYTHON], ids=lambda path: path.name)
def test_weights_are_stored_once_for_both_graphs(exported, source):
    folder = exported(source)
    config = neo_tf.GPTNeoConfig.from_file(folder / "config.json")
    weights = weights_of(load(folder))
    assert weights == weights_of(load(folder, "decoder.onnx"))
    assert [path.name for path in folder.glob("*.onnx_data")] == ["model.onnx_data"]
    # The tensors follow each other, each begins on a new page, and the file holds nothing else.
    end = 0
    for offset, length, dims in sorted(weights.values()):
        assert offset == -(-end // 4096) * 4096
        assert length == 4 * np.prod(dims)
        end = offset + length
    assert (folder / "model.onnx_data").stat().st_size == end
    # There are as many numbers as parameters: the tied embedding is stored once, whole, and under its own name.
    embd, per_layer = config.n_embd, 12 * config.n_embd**2 + 10 * config.n_embd
    expected = (config.n_vocab + config.n_ctx + 2) * embd + config.n_layer * per_layer
    assert sum(length for _, length, _ in weights.values()) == 4 * expected
    assert [name for name, (_, _, dims) in weights.items() if dims == (config.n_vocab, embd)] == ["gpt2/wte"]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("source", [GOLDEN / "tiny-global-local", TINY_PYTHON], ids=lambda path: path.name)
def test_graph_files_hold_no_weights(exported, source, graph):
    folder = exported(source)
    assert (folder / graph).stat().st_size < 50_000
    inline = [tensor for tensor in load(folder, graph).graph.initializer if not tensor.external_data]
    assert max(onnx.numpy_helper.to_array(tensor).nbytes for tensor in inline) <= 64
    constants = [node for node in load(folder, graph).graph.node if node.op_type == "Constant"]
    assert not constants


def test_the_data_file_holds_the_checkpoints_numbers(exported):
    tensorflow = pytest.importorskip("tensorflow")
    source = GOLDEN / "tiny-local-radius"
    folder, reader = exported(source), tensorflow.train.load_checkpoint(str(source))
    data = (folder / "model.onnx_data").read_bytes()
    for name, (offset, length, dims) in weights_of(load(folder)).items():
        stored = np.frombuffer(data[offset : offset + length], np.float32).reshape(dims)
        parts = [name.replace("qkv", part) for part in ("q", "k", "v")] if name.endswith("qkv") else [name]
        np.testing.assert_array_equal(stored, np.concatenate([reader.get_tensor(part) for part in parts], axis=-1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_load_where_their_operators_exist(exported, graph):
    folder = exported(GOLDEN / "tiny-global-local")
    onnx.checker.check_model(str(folder / graph))
    model = load(folder, graph)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert set(opsets) == {"", "com.microsoft"}
    assert opsets[""] >= 20  # the first opset with Gelu
    for node in model.graph.node:
        fused = node.op_type in ("GroupQueryAttention", "SkipLayerNormalization")
        assert node.domain == ("com.microsoft" if fused else "")


@pytest.mark.parametrize("graph", GRAPHS)
def test_nodes_are_named_as_the_originals_scopes(exported, graph):
    folder = exported(GOLDEN / "tiny-global-local")
    model = load(folder, graph)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(/[A-Za-z]\w*)+", name) for name in names)
    for layer in range(4):
        assert {
            f"/h{layer}/norm_1/LayerNormalization",
            f"/h{layer}/attn/qkv/MatMul",
            f"/h{layer}/attn/o/MatMul",
            f"/h{layer}/norm_2/LayerNormalization",
            f"/h{layer}/mlp/conv1d_main/c_fc/MatMul",
            f"/h{layer}/mlp/conv1d_main/c_proj/MatMul",
        } <= set(names)
    # A node that reads a variable is in the variable's scope, except the head with the embedding, and fused nodes.
    for node in model.graph.node:
        for weight in weights_of(model).keys() & set(node.input):
            if (
                node.op_type == "SkipLayerNormalization"
                and weight == node.input[-1]
                and weight.endswith(("o_b", "bias"))
            ):
                continue
            scope = weight.removeprefix("gpt2").rpartition("/")[0]
            assert node.name.startswith(f"{scope}/"), (node.name, weight)

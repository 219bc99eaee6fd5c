"""Graphs for CUDA, tested without a GPU: every node has a CUDA kernel, and fp16 and bf16 are exact enough.

The list of kernels was made by ONNX Runtime 1.31's own CUDA provider, which placed each of these graphs; where it
is installed, test_cuda_provider.py asks it again.
"""

import json

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, GOLDEN_NAMES, TINY_PYTHON
from cuda_kernels import CUDA_KERNELS, without_kernel
from onnx import TensorProto, helper

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.config_values import ACTIVATIONS
from neo_tf.errors import ProviderError
from neo_tf.evaluation.deviation import LIMITS
from neo_tf.evaluation.verify import verify
from neo_tf.runtime.device.session import Session
from tests.export.test_precision import nll

# In these models the host computes shapes: see docs/precisions.md.
SHAPED_BY_THE_HOST = ("attn-mix", "mem-kv")


def decoder(folder):
    return onnx.load(folder / "decoder.onnx", load_external_data=False)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_node_has_a_cuda_kernel(name, precision, tmp_path):
    neo_tf.export_onnx(GOLDEN / name, tmp_path / "onnx", precision, target="cuda")
    model = decoder(tmp_path / "onnx")
    assert without_kernel(model) == []
    # No shapes: they are computed on the host, and a captured graph would not compute them again.
    shapes = [node.name for node in model.graph.node if node.op_type == "Shape"]
    assert bool(shapes) == (name in SHAPED_BY_THE_HOST), shapes


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_activation_has_a_cuda_kernel(precision, tmp_path):
    base = json.loads((GOLDEN / "act-relu" / "config.json").read_text()) | {
        "n_layer": 1,
        "attention_types": [[["global"], 1]],
    }
    for name in ACTIVATIONS:
        (tmp_path / "config.json").write_text(json.dumps(base | {"activation_fn": name}))
        neo_tf.export_onnx(random_checkpoint(tmp_path / "config.json"), tmp_path / "onnx", precision, force=True)
        assert without_kernel(decoder(tmp_path / "onnx")) == [], name


def test_a_node_without_a_kernel_is_named():
    node = helper.make_node("Selu", ["x"], ["y"], name="/h0/Selu")
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1]) for name in "xy")
    assert "Selu" in CUDA_KERNELS
    assert without_kernel(helper.make_model(helper.make_graph([node], "g", [x], [y]))) == ["/h0/Selu: Selu of BFLOAT16"]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_head_is_padded_to_a_multiple_of_128_and_cut(precision, tmp_path):
    name = "tiny-global"  # its vocabulary has 257 ids
    neo_tf.export_onnx(GOLDEN / name, tmp_path / "onnx", precision, target="cuda")
    model = decoder(tmp_path / "onnx")
    head = next(node for node in model.graph.node if node.name == "/head/MatMulNBits")
    assert next(attribute.i for attribute in head.attribute if attribute.name == "N") == 384
    logits = next(value for value in model.graph.output if value.name == "logits")
    assert logits.type.tensor_type.shape.dim[2].dim_value == 257
    assert logits.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("name", ["tiny-global-local", "rotary", "moe", "attn-mix", "mem-kv", "mlp-glu"])
def test_fp16_is_right_where_the_cpu_has_its_kernels(name, tmp_path):
    neo_tf.export_onnx(GOLDEN / name, tmp_path / "onnx", "fp16")
    found = verify(GOLDEN / name, tmp_path / "onnx", tokens=48)
    assert all(deviation.failure("fp16") is None for deviation in found), found
    assert all(deviation.failure("fp32") for deviation in found)  # the weights were rounded indeed


def widened(folder):
    """decoder.onnx of a bfloat16 folder for the CPU: float32 arithmetic, and every tensor rounded as CUDA rounds it."""
    model = onnx.load(folder / "decoder.onnx")
    graph, narrow = model.graph, set()
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            narrow.add(value.name)
    for number, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.BFLOAT16:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer[number].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            narrow.add(tensor.name)
    nodes = []
    for node in graph.node:
        to = next((attribute for attribute in node.attribute if attribute.name == "to"), None)
        rounds = to.i == TensorProto.BFLOAT16 if to else bool(narrow & set(node.input))
        if to and rounds:
            to.i = TensorProto.FLOAT
        nodes.append(node)
        if not rounds or node.op_type == "Shape":
            continue
        for number, name in enumerate(node.output):
            if name and not name.startswith("present."):
                node.output[number] = f"{name}/wide"
                nodes.append(helper.make_node("Cast", [f"{name}/wide"], [f"{name}/bf16"], to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=TensorProto.FLOAT))
                narrow.add(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_perplexity_on_held_out_text(precision, demo_folder, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision)
    if precision == "bf16":
        onnx.save(widened(tmp_path / "onnx"), tmp_path / "onnx" / "decoder.onnx")
        config = json.loads((tmp_path / "onnx" / "config.json").read_text()) | {"precisions": ["fp16"]}
        (tmp_path / "onnx" / "config.json").write_text(json.dumps(config))
    data = np.load(TINY_PYTHON / "reference.npz")
    losses = []
    for session in (Session(demo_folder), Session(tmp_path / "onnx", device="cpu")):
        logits = np.stack([session.prefill(0, ids, 0, logits_of="all") for ids in data["inputs"]])
        losses.append(nll(logits, data["labels"].astype(np.int64)))
    assert losses[0] != losses[1]
    assert np.exp(losses[1] - losses[0]) - 1 < LIMITS[precision].perplexity


def test_attention_is_finite_where_fp16_products_are_not(tmp_path):
    """q . k beyond 65504: neither the fused operator nor the plain one may hold it in fp16."""
    checkpoint = random_checkpoint(GOLDEN / "tiny-global-local" / "config.json")
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if name.endswith(("attn/q", "attn/k")):
            tensors[name] = neo_tf.checkpoints.LazyTensor(
                tensor.shape, tensor.dtype, lambda tensor=tensor: tensor.read() * 3000
            )
    neo_tf.save_checkpoint(
        checkpoint.__class__(**{**vars(checkpoint), "tensors": tensors}), tmp_path / "large", "keras"
    )
    neo_tf.export_onnx(tmp_path / "large", tmp_path / "fp16", "fp16")
    neo_tf.export_onnx(tmp_path / "large", tmp_path / "fp32", "fp32")
    ids = np.random.default_rng(0).integers(0, checkpoint.config.n_vocab, checkpoint.config.n_ctx)
    half, full = (
        Session(tmp_path / name, device="cpu").prefill(0, ids, 0, logits_of="all") for name in ("fp16", "fp32")
    )
    assert np.isfinite(half).all()
    # Such attention picks one key, and rounding may change the pick.
    assert (half.argmax(-1) == full.argmax(-1)).mean() > 0.5


def test_bf16_on_the_cpu_is_one_line(tmp_path):
    neo_tf.export_onnx(GOLDEN / "tiny-global", tmp_path / "onnx", "bf16")
    with pytest.raises(ProviderError, match="bf16 has kernels on CUDA alone"):
        Session(tmp_path / "onnx", device="cpu")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_the_session_places_every_node_on_the_gpu(precision, gpu, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision, target="cuda")
    placed = Session(tmp_path / "onnx", device="cuda").placement
    assert placed.keys() == {"CUDAExecutionProvider"}
    assert len(placed["CUDAExecutionProvider"]) > 20


@pytest.mark.parametrize("width", [20, 36])
def test_only_the_head_is_padded(width, tmp_path):
    """Layers whose widths are not multiples of 8 keep their widths."""
    config = json.loads((GOLDEN / "tiny-global" / "config.json").read_text()) | {"n_embd": width}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = random_checkpoint(tmp_path / "config.json")
    for precision in ("int8", "int4"):
        neo_tf.export_onnx(checkpoint, tmp_path / precision, precision, target="cuda")
        found = Session(tmp_path / precision, device="cpu").prefill(0, [1, 2, 3], 0, logits_of="all")
        neo_tf.export_onnx(checkpoint, tmp_path / f"{precision}-cpu", precision)
        expected = Session(tmp_path / f"{precision}-cpu", device="cpu").prefill(0, [1, 2, 3], 0, logits_of="all")
        np.testing.assert_allclose(found, expected, atol=0.05)

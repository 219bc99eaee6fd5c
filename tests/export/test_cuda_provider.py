"""ONNX Runtime's own CUDA provider, on a machine without a GPU: where it places nodes, what it launches and captures.

CUDA's libraries are replaced by ones that do nothing (tests/dummy_cuda.c), so nothing is said about numbers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import dummy_cuda
import onnx
import pytest
from conftest import GOLDEN, GOLDEN_NAMES

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.config_values import ACTIVATIONS
from neo_tf.onnx_folder import OnnxFolder

pytestmark = pytest.mark.skipif(dummy_cuda.why_not() is not None, reason=str(dummy_cuda.why_not()))

SCRIPT = Path(__file__).with_name("cuda_provider.py")
# In these models the host computes shapes, and the dummy's kernels leave it nothing to compute them from.
ON_THE_HOST = {"attn-mix": "linear", "mem-kv": "num_mem_kv"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A function from ONNX folders for CUDA to what the provider does with each: see cuda_provider.py."""
    libraries = dummy_cuda.build(tmp_path_factory.mktemp("dummy_cuda"))

    def run(*folders, **variables):
        command = [sys.executable, str(SCRIPT), str(libraries), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def shaped(folder, precision, **changes):
    """A folder for CUDA of a model with random weights and other sizes than the golden one."""
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text()) | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    neo_tf.export_onnx(random_checkpoint(folder / "config.json"), folder / precision, precision, target="cuda")
    return folder / precision


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_every_node_is_placed_on_cuda_and_the_step_is_captured(precision, reports, tmp_path):
    for name in GOLDEN_NAMES:
        neo_tf.export_onnx(GOLDEN / name, tmp_path / name, precision, target="cuda")
    for name, found in zip(GOLDEN_NAMES, reports(*(tmp_path / name for name in GOLDEN_NAMES)), strict=True):
        assert ("CPUExecutionProvider" in found["placed"]) == (name in ON_THE_HOST), name
        reasons = OnnxFolder.read(tmp_path / name).why_not_captured()
        if name in ON_THE_HOST:
            assert "cannot use the graph capture feature" in found["refused"]
            assert [reason for reason in reasons if ON_THE_HOST[name] in reason]
        elif name == "moe":
            assert "cuDNN is unavailable" in found["refused"]
            assert reasons and OnnxFolder.read(tmp_path / name).needs_cudnn
        else:
            assert reasons == [] and "error" not in found and "refused" not in found, (name, found)
            # Nothing crosses the bus in a step: inputs and outputs are the device's, and no node runs on the host.
            assert set(found["copies"]) <= {"on the device"}
            # The run that captures computes the step twice before; from then on a run is one replay.
            assert found["captured"]["first"]["captured-launch"] == len(found["launches"])
            assert found["captured"]["first"]["launch"] == 2 * len(found["launches"])
            assert found["captured"]["second"] == {"replay": 1, "synchronisation": 1}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_activation_is_placed_on_cuda(precision, reports, tmp_path):
    layers = {"n_layer": 1, "attention_types": [[["global"], 1]]}
    folders = [shaped(tmp_path / name, precision, activation_fn=name, **layers) for name in ACTIVATIONS]
    for name, found in zip(ACTIVATIONS, reports(*folders), strict=True):
        assert found["placed"].keys() == {"CUDAExecutionProvider"}, name


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("head_size", [64, 128])
def test_the_kernels_of_published_head_sizes(head_size, precision, reports, tmp_path):
    """Global and local layers decode by XQA, the attention kernel that is made for single tokens."""
    sizes = {"n_embd": 2 * head_size, "n_head": 2, "n_layer": 2, "attention_types": [[["global", "local"], 1]]}
    (found,) = reports(shaped(tmp_path / "model", precision, **sizes))
    attention = [name for name in found["launches"] if "mha" in name]
    assert len(attention) == 2
    assert all(f"H{head_size}" in name and "grp1" in name for name in attention)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weight_only_products_are_there_when_they_are_asked_for(precision, reports, tmp_path):
    """ONNX Runtime's variable ORT_FPA_INTB_GEMM: see docs/precisions.md."""
    folder = shaped(tmp_path / "model", precision, n_embd=128, n_layer=1, attention_types=[[["global"], 1]])
    products = {}
    for value in "01":
        (found,) = reports(folder, ORT_FPA_INTB_GEMM=value)
        products[value] = sum("fpa_intb" in name.lower() or "fpaintb" in name.lower() for name in found["launches"])
    # qkv, o, c_fc and the head; the last layer's c_proj is not one of them, as ONNX Runtime adds its bias to it.
    assert products == {"0": 0, "1": 4}


def test_a_node_without_a_kernel_would_be_seen(reports, tmp_path):
    """What the tests above assert is not true of any graph."""
    folder = shaped(tmp_path / "model", "fp16", n_layer=1, attention_types=[[["global"], 1]])
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    nodes = list(model.graph.node)
    head = next(number for number, node in enumerate(nodes) if node.name == "/choose/LogSoftmax")
    inverse = onnx.helper.make_node("Atan", [nodes[head].input[0]], ["atan"], name="/choose/Atan")
    nodes[head].input[0] = "atan"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:head], inverse, *nodes[head:]])
    onnx.save(model, folder / "decoder.onnx")
    (found,) = reports(folder)
    assert found["placed"]["CPUExecutionProvider"] and "cannot use the graph capture" in found["refused"]

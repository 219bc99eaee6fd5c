"""int8 and int4 folders: rounding, kernels, and what they cost in perplexity on text that the demo model never saw."""

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from export.precision import BLOCK, quantise
from export.verify import COSINES, PortableSession
from runtime.session import Session


def restore(packed, scales, bits):
    """What the kernels read: (integer - 2 ** (bits - 1)) * scale."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((packed.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(len(packed), -1)


@pytest.mark.parametrize("inputs", [BLOCK, 3 * BLOCK, 100])
def test_8_bits_are_the_nearest_of_255_steps(inputs):
    weight = np.random.default_rng(0).standard_normal((50, inputs)).astype(np.float32)
    weight[7] = 0
    packed, scales = quantise(weight, 8)
    assert packed.shape == (50, -(-inputs // BLOCK), BLOCK) and scales.shape == packed.shape[:2]
    error = np.abs(restore(packed, scales, 8)[:, :inputs] - weight)
    assert (error <= np.repeat(scales, BLOCK, axis=1)[:, :inputs] / 2 * 1.001).all()
    assert np.count_nonzero(restore(packed, scales, 8)[7]) == 0


def test_4_bits_beat_the_nearest_integer_of_the_largest_value():
    weight = np.random.default_rng(0).standard_normal((400, 4 * BLOCK)).astype(np.float32)
    packed, scales = quantise(weight, 4)
    assert packed.shape == (400, 4, BLOCK // 2)
    error = np.square(restore(packed, scales, 4) - weight).mean()
    blocks = weight.reshape(400, 4, BLOCK)
    plain = np.abs(blocks).max(-1, keepdims=True) / 7
    assert error < 0.9 * np.square(np.rint(blocks / plain) * plain - blocks).mean()


def nll(logits, labels):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, labels[..., None], -1)[..., 0]
    return (np.log(np.exp(shifted).sum(-1)) - chosen).mean()


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.01), ("int4", 0.05)])
def test_perplexity_on_held_out_text(precision, limit, demo_folder, tmp_path):
    data = np.load(TINY_PYTHON / "reference.npz")
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / precision, precision)
    exact, rounded = Session(demo_folder), Session(tmp_path / precision)
    losses = []
    for session in (exact, rounded):
        logits = np.stack([session.prefill(0, ids, 0, keep=0) for ids in data["inputs"]])
        losses.append(nll(logits, data["labels"].astype(np.int64)))
    assert np.exp(losses[1] - losses[0]) - 1 < limit


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_both_graphs_agree_and_steps_agree_with_prefill(precision, tmp_path):
    ids = np.load(TINY_PYTHON / "reference.npz")["inputs"][0, :300]
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision)
    session, portable = Session(tmp_path / "onnx"), PortableSession(tmp_path / "onnx")
    whole = session.prefill(0, ids, 0, keep=0)
    np.testing.assert_allclose(portable.prefill(0, ids, 0, keep=0), whole, atol=1e-3)

    steps = [session.prefill(0, ids[:1], 0)[0]]
    steps += [session.decode(0, ids[at : at + 1], [at])[0].copy() for at in range(1, len(ids))]
    cosine = (steps * whole).sum(-1) / np.linalg.norm(steps, axis=-1) / np.linalg.norm(whole, axis=-1)
    assert cosine.mean() > 0.9998


@pytest.mark.parametrize("name", ["no-weight-tie", "mlp-glu", "moe", "share-parameters", "mem-kv", "attn-mix"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_kind_of_layer_runs_in_it(name, precision, tmp_path):
    neo_tf.export_onnx(GOLDEN / name, tmp_path / "onnx", precision)
    deviations = neo_tf.verify(GOLDEN / name, tmp_path / "onnx", tokens=32)
    assert all(found.passes(precision) for found in deviations), deviations
    assert not any(found.passes("fp32") for found in deviations)  # it is rounded, after all


def test_the_embedding_is_stored_once_and_the_limits_are_told(tmp_path, demo_folder):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", "int8")
    exact, rounded = ((folder / "model.onnx_data").stat().st_size for folder in (demo_folder, tmp_path / "onnx"))
    assert rounded < 0.37 * exact  # 9 bits for 32, and wpe, norms and page gaps as they were
    model = onnx.load(tmp_path / "onnx" / "decoder.onnx", load_external_data=False)
    places = {value.name: value.external_data[1].value for value in model.graph.initializer if value.external_data}
    assert places["gpt2/wte/int8"] == places["gpt2/wte/int8/rows"]
    assert COSINES["int8"] > COSINES["int4"] > 0.98

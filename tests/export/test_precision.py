"""int8 and int4 folders: rounding, kernels, and what they cost in perplexity on text that the demo model never saw."""

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from export.precision import block_size, cast, precision_for, quantise, quantise_columns
from export.verify import LIMITS, PortableSession
from neo_tf.errors import CheckpointError, RequestError
from runtime.session import Session


def restore(packed, scales, bits):
    """What the kernels read: (integer - 2 ** (bits - 1)) * scale."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((packed.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(len(packed), -1)


@pytest.mark.parametrize("inputs", [32, 128, 384, 100])
def test_8_bits_are_the_nearest_of_255_steps(inputs):
    weight = np.random.default_rng(0).standard_normal((50, inputs)).astype(np.float32)
    weight[7] = 0
    packed, scales = quantise(weight, 8)
    block = block_size(inputs, 8)
    assert packed.shape == (50, -(-inputs // block), block) and scales.shape == packed.shape[:2]
    error = np.abs(restore(packed, scales, 8)[:, :inputs] - weight)
    assert (error <= np.repeat(scales, block, axis=1)[:, :inputs] / 2 * 1.001).all()
    assert np.count_nonzero(restore(packed, scales, 8)[7]) == 0


def test_4_bits_beat_the_nearest_integer_of_the_largest_value():
    weight = np.random.default_rng(0).standard_normal((400, 128)).astype(np.float32)
    packed, scales = quantise(weight, 4)
    assert packed.shape == (400, 4, 16)
    error = np.square(restore(packed, scales, 4) - weight).mean()
    blocks = weight.reshape(400, 4, 32)
    plain = np.abs(blocks).max(-1, keepdims=True) / 7
    assert error < 0.9 * np.square(np.rint(blocks / plain) * plain - blocks).mean()


def test_columns_are_the_nearest_of_255_steps():
    weight = np.random.default_rng(0).standard_normal((100, 60)).astype(np.float32)
    weight[:, 3] = 0
    integers, scales = quantise_columns(weight)
    assert integers.dtype == np.int8 and integers.shape == weight.shape and scales.shape == (60,)
    assert (np.abs(integers * scales - weight) <= scales / 2 * 1.001).all()
    np.testing.assert_array_equal(np.abs(integers).max(axis=0), [127] * 3 + [0] + [127] * 56)


def test_scales_are_rounded_before_the_integers():
    weight = np.random.default_rng(0).standard_normal((50, 128)).astype(np.float32)
    packed, scales = quantise(weight, 8, np.float16)
    assert scales.dtype == np.float16
    wide = scales.astype(np.float32)
    assert (np.abs(restore(packed, wide, 8) - weight) <= np.repeat(wide, 128, axis=1) / 2 * 1.01).all()


def test_a_weight_that_fp16_has_no_room_for_is_named():
    half = np.dtype(np.float16)
    np.testing.assert_array_equal(cast(np.float32([1, np.inf]), half, "x"), np.float16([1, np.inf]))
    with pytest.raises(CheckpointError, match="gpt2/h0/attn/q: 70000 is too large for float16"):
        cast(np.float32([1, -70000]), half, "gpt2/h0/attn/q")


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("fp8", None, "unknown precision 'fp8'"),
        ("fp32", "tpu", "unknown target 'tpu'"),
        ("fp32", "cuda", "fp32 has no fast kernels on target cuda, which runs fp16, bf16, int8, int4"),
        ("bf16", "cpu", "bf16 has no fast kernels on target cpu, which runs fp32, int8, int4"),
    ],
)
def test_what_a_target_does_not_run_is_refused(name, target, message):
    with pytest.raises(RequestError, match=message):
        precision_for(name, target)


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
    columns = 6 * 12 * 128 * 128 - 5 * 9 * 128 * 128 // 5  # prefill.onnx's, of all but the last layer's o and mlp
    assert rounded < 0.37 * exact + columns  # 8.25 bits for 32, and wpe, norms and page gaps as they were
    model = onnx.load(tmp_path / "onnx" / "decoder.onnx", load_external_data=False)
    places = {value.name: value.external_data[1].value for value in model.graph.initializer if value.external_data}
    assert places["gpt2/wte/int8"] == places["gpt2/wte/int8/rows"]
    assert LIMITS["int8"].cosine > LIMITS["int4"].cosine > 0.98

"""int8 and int4 folders: rounding, kernels, and the perplexity on text that the demo model was not trained on."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TINY_PYTHON
from session_helpers import decoded_logits

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.cli import main
from neo_tf.cli.info import describe
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.evaluation.deviation import LIMITS
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.export.precision import cast, precision_for
from neo_tf.export.quantise import quantise, quantise_columns
from neo_tf.runtime.device.session import Session


def restore(packed, scales, bits):
    """The weights that the kernels compute with: (integer - 2 ** (bits - 1)) * scale."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((packed.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(len(packed), -1)


@pytest.mark.parametrize("inputs", [32, 128, 384, 768, 100])
def test_8_bits_are_the_nearest_of_255_steps(inputs):
    weight = np.random.default_rng(0).standard_normal((50, inputs)).astype(np.float32)
    weight[7] = 0
    block = precision_for("int8").block_size(inputs, 8)
    packed, scales = quantise(weight, 8, block)
    assert packed.shape == (50, -(-inputs // block), block) and scales.shape == packed.shape[:2]
    error = np.abs(restore(packed, scales, 8)[:, :inputs] - weight)
    assert (error <= np.repeat(scales, block, axis=1)[:, :inputs] / 2 * 1.001).all()
    assert np.count_nonzero(restore(packed, scales, 8)[7]) == 0


def test_4_bits_beat_the_nearest_integer_of_the_largest_value():
    weight = np.random.default_rng(0).standard_normal((400, 128)).astype(np.float32)
    packed, scales = quantise(weight, 4, 128)
    assert packed.shape == (400, 1, 64)
    error = np.square(restore(packed, scales, 4) - weight).mean()
    blocks = weight.reshape(400, 1, 128)
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
    packed, scales = quantise(weight, 8, 128, np.float16)
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
        logits = np.stack([session.prefill(0, ids, 0, logits_of="all") for ids in data["inputs"]])
        losses.append(nll(logits, data["labels"].astype(np.int64)))
    assert np.exp(losses[1] - losses[0]) - 1 < limit


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_both_graphs_agree_and_steps_agree_with_prefill(precision, tmp_path):
    ids = np.load(TINY_PYTHON / "reference.npz")["inputs"][0, :300]
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", precision)
    session, portable = Session(tmp_path / "onnx"), PortableSession(tmp_path / "onnx")
    whole = session.prefill(0, ids, 0, logits_of="all")
    np.testing.assert_allclose(portable.prefill(0, ids, 0, logits_of="all"), whole, atol=1e-3)

    steps = [session.prefill(0, ids[:1], 0)[0]]
    steps += [decoded_logits(session, 0, ids[at : at + 1], [at])[0] for at in range(1, len(ids))]
    cosine = (steps * whole).sum(-1) / np.linalg.norm(steps, axis=-1) / np.linalg.norm(whole, axis=-1)
    assert cosine.mean() > 0.9998


@pytest.mark.parametrize("name", ["no-weight-tie", "mlp-glu", "moe", "share-parameters", "mem-kv", "attn-mix"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_kind_of_layer_runs_in_it(name, precision, tmp_path):
    neo_tf.export_onnx(GOLDEN / name, tmp_path / "onnx", precision)
    deviations = neo_tf.verify(GOLDEN / name, tmp_path / "onnx", tokens=32)
    assert all(found.failure(precision) is None for found in deviations), deviations
    assert all(found.failure("fp32") for found in deviations)  # the weights were rounded indeed


def test_the_embedding_is_stored_once_and_the_limits_are_told(tmp_path, demo_folder):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", "int8")
    exact, rounded = ((folder / "model.onnx_data").stat().st_size for folder in (demo_folder, tmp_path / "onnx"))
    columns = 6 * 12 * 128 * 128 - 5 * 9 * 128 * 128 // 5  # those of prefill.onnx: all but the last layer's o and mlp
    assert rounded < 0.37 * exact + columns  # 8.25 in place of 32 bits; wpe, norms and page gaps are unchanged
    model = onnx.load(tmp_path / "onnx" / "decoder.onnx", load_external_data=False)
    places = {value.name: value.external_data[1].value for value in model.graph.initializer if value.external_data}
    assert places["gpt2/wte/int8"] == places["gpt2/wte/int8/rows"]
    assert LIMITS["int8"].cosine > LIMITS["int4"].cosine > 0.98


def test_prompts_in_int8_are_the_same_in_any_company_and_any_chunks(tmp_path):
    """Each row is rounded by itself, so that no other token of the chunk changes it."""
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", "int8")
    session = Session(tmp_path / "onnx", slots=2)
    assert session.has_prompt_graph
    ids = np.load(TINY_PYTHON / "reference.npz")["inputs"][0, :400]
    whole = session.prefill(0, ids, 0)[0].copy()
    for start, end in ((0, 1), (1, 150), (150, 399)):
        assert session.prefill(1, ids[start:end], start, logits_of=0).shape == (0, session.config.n_vocab)
    np.testing.assert_allclose(session.prefill(1, ids[399:], 399)[0], whole, atol=1e-4)
    # A token with large activations in the same chunk does not change the rows before it.
    exact = Session(tmp_path / "onnx")
    session.prefill(0, ids[:100], 0, logits_of=0)
    quiet = session.prefill(0, ids[100:101], 100)[0].copy()
    for other in (0, 1, 2047):
        exact.prefill(0, [*ids[:100], other], 0, logits_of=0)
        np.testing.assert_allclose(exact.prefill(0, ids[100:101], 100)[0], quiet, atol=1e-4)


def test_rows_of_zeros_stay_zero_in_int8(tmp_path):
    """A row is divided by its largest value, which is 0 here."""
    checkpoint = random_checkpoint(GOLDEN / "rezero" / "config.json")
    zero = {
        name: replace(tensor, read=lambda shape=tensor.shape: np.zeros(shape, np.float32))
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(("wte", "wpe"))
    }
    assert len(zero) == 2
    neo_tf.export_onnx(replace(checkpoint, tensors=checkpoint.tensors | zero), tmp_path / "onnx", "int8")
    session = Session(tmp_path / "onnx")
    session.prefill(0, [1, 2, 3], 0, logits_of=0)
    assert all(np.isfinite(rows).all() for rows in session.cache.rows_of(0, 0, 3, 3))


def test_several_precisions_share_what_is_equal(tmp_path, demo_folder):
    sizes = {}
    for name in ("int8", "int4"):
        neo_tf.export_onnx(TINY_PYTHON, tmp_path / name, name)
        sizes[name] = (tmp_path / name / "model.onnx_data").stat().st_size
    names = ("int4", "int8", "fp32")
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "all", names)
    folder = tmp_path / "all"
    data = (folder / "model.onnx_data").stat().st_size
    ends = 2048 * (128 + 4) + 512 * 128 * 4  # the embedding in int8, and wpe in float32
    assert data < sum(sizes.values()) + (demo_folder / "model.onnx_data").stat().st_size - ends - 512 * 128 * 4

    ids = np.load(TINY_PYTHON / "reference.npz")["inputs"][0, :200]
    for name in names:
        alone = Session(demo_folder if name == "fp32" else tmp_path / name).prefill(0, ids, 0)
        np.testing.assert_array_equal(Session(folder, precision=name).prefill(0, ids, 0), alone)
        portable = PortableSession(folder, name).prefill(0, ids, 0)
        np.testing.assert_allclose(portable, alone, atol=1e-4 if name == "fp32" else 1)
    assert Session(folder).precision == "int4"
    with pytest.raises(RequestError, match="exported in int4 and int8 and fp32, not in fp16"):
        Session(folder, precision="fp16")
    assert describe(folder)["weights"].endswith("in int4, int8, fp32")
    with pytest.raises(RequestError, match="one target"):
        neo_tf.export_onnx(TINY_PYTHON, tmp_path / "mixed", ["fp32", "fp16"])


def test_generate_takes_one_of_several(tmp_path, capfd, monkeypatch):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "all", ["fp32", "int4"])
    texts = []
    for chosen in ([], ["--precision", "int4"], ["--precision", "bf16"]):
        arguments = ["neo-tf", "generate", str(tmp_path / "all"), "def", "--do-sample", "--seed", "3", *chosen]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as end:
            main()
        texts.append((end.value.code, capfd.readouterr()))
    assert [code for code, _ in texts] == [0, 0, 1]
    assert texts[0][1].out != texts[1][1].out
    assert "exported in fp32 and int4, not in bf16" in texts[2][1].err

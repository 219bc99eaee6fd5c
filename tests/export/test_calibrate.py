"""Rounding for a text: how much error it saves, which matrices it covers, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import GOLDEN, OPTIONS, TINY_PYTHON
from test_precision import nll, restore

import neo_tf
import neo_tf.export.calibrate
from neo_tf.cli import main
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.export.calibrate import MAX_TOKENS, Calibration
from neo_tf.export.precision import precision_for
from neo_tf.export.quantise import quantise
from neo_tf.progress import no_progress
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.tokenizer import Tokenizer

REPOSITORY = GOLDEN.parents[2]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "runtime").glob("*.py")))
PART = TEXT[:10_000]


@pytest.fixture(scope="module")
def demo():
    return neo_tf.open_checkpoint(TINY_PYTHON)


def correlated(tokens, inputs, seed=0):
    """X [tokens, inputs] whose features depend on each other."""
    draw = np.random.default_rng(seed).standard_normal
    return (draw((tokens, inputs // 4)) @ draw((inputs // 4, inputs)) + draw((tokens, inputs))).astype(np.float32)


def rounded(weight, bits, moments=None, dtype=np.float32):
    packed, scales = quantise(weight, bits, precision_for("int8").block_size(weight.shape[1], bits), dtype, moments)
    return restore(packed, scales.astype(np.float32), bits)[:, : weight.shape[1]]


@pytest.mark.parametrize("inputs", [128, 100, 20])  # whole blocks, an incomplete block, and less than one block
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_change_less_than_with_the_nearest_steps(bits, inputs):
    x, weight = correlated(2000, inputs), np.random.default_rng(1).standard_normal((50, inputs)).astype(np.float32)
    weight[7] = 0
    result = rounded(weight, bits, x.T @ x)
    errors = [np.square(x @ (weight - q).T).sum() for q in (result, rounded(weight, bits))]
    assert errors[0] < 0.7 * errors[1]
    assert np.count_nonzero(result[7]) == 0
    half = rounded(weight, bits, x.T @ x, np.float16)
    # The integers compensate for the rounding of the scales.
    assert np.square(x @ (weight - half).T).sum() < 1.1 * errors[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_each_weight_is_the_best_that_those_before_it_leave(bits):
    """By the definition: while the later weights are free, no other step of weight j is better."""
    x, weight = correlated(500, 32), np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    moments = (x.T @ x).astype(np.float64)
    packed, scales = quantise(weight, bits, 32, moments=moments)
    result = restore(packed, scales, bits)
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(32)
    for at in range(32):
        # The least cost over all errors of the weights after `at`, if those up to it are given: a Schur complement.
        before, after = slice(at + 1), slice(at + 1, None)
        cross = damped[before, after]
        cost = damped[before, before] - cross @ np.linalg.solve(damped[after, after], cross.T)
        errors = (weight - result)[:, before].astype(np.float64)
        best = np.einsum("oi,ij,oj->o", errors, cost, errors)
        for step in (-1, 1):
            integer = np.rint(result[:, at] / scales[:, 0]) + step
            other = errors.copy()
            other[:, -1] -= step * scales[:, 0]
            worse = np.einsum("oi,ij,oj->o", other, cost, other) >= best * (1 - 1e-5)
            assert (worse | (integer < -(2 ** (bits - 1))) | (integer >= 2 ** (bits - 1))).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_do_not_depend_on_each_other_take_the_nearest_steps(bits):
    weight = np.random.default_rng(0).standard_normal((5000, 96)).astype(np.float32)
    expected = quantise(weight, bits, 32)
    for moments in (np.eye(96), np.zeros((96, 96)), 5 * np.eye(96, dtype=np.float32)):
        for found, plain in zip(quantise(weight, bits, 32, moments=moments), expected, strict=True):
            np.testing.assert_array_equal(found, plain)


def test_inputs_that_are_always_zero_do_no_harm():
    x, weight = correlated(500, 64), np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)
    x[:, [0, 5, 40]] = 0
    result = rounded(weight, 4, x.T @ x)
    assert np.isfinite(result).all()
    assert np.square(x @ (weight - result).T).sum() < 0.5 * np.square(x @ (weight - rounded(weight, 4)).T).sum()


def test_int4_costs_less_on_held_out_text(tmp_path, demo_folder):
    data = np.load(TINY_PYTHON / "reference.npz")
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "plain", "int4")
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "calibrated", "int4", calibrate=TEXT)
    scores, losses = [], []
    for folder in (demo_folder, tmp_path / "plain", tmp_path / "calibrated"):
        session = Session(folder)
        logits = np.stack([session.prefill(0, ids, 0, logits_of="all") for ids in data["inputs"]]).astype(np.float64)
        scores.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        losses.append(nll(logits, data["labels"].astype(np.int64)))
    plain, calibrated = np.exp(np.array(losses[1:]) - losses[0]) - 1
    assert calibrated < min(plain, 0.02)
    # The divergence from the exact distributions has less noise: it is halved.
    plain, calibrated = ((np.exp(scores[0]) * (scores[0] - other)).sum(-1).mean() for other in scores[1:])
    assert calibrated < 0.6 * plain
    assert not any(path.is_dir() for path in (tmp_path / "calibrated").iterdir())
    assert len({(tmp_path / name / "model.onnx_data").stat().st_size for name in ("plain", "calibrated")}) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_covered(name, tmp_path):
    checkpoint = neo_tf.open_checkpoint(GOLDEN / name, tokenizer=GOLDEN / "tokenizer.json")
    neo_tf.export_onnx(checkpoint, tmp_path / "onnx", ["int4", "int8"], calibrate=TEXT[:2000])
    for precision in ("int4", "int8"):
        deviations = neo_tf.verify(checkpoint, tmp_path / "onnx", tokens=32, precision=precision)
        assert all(found.failure(precision) is None for found in deviations), deviations
    # Every matrix in 4 bits was rounded for the text: without the text, its integers differ.
    neo_tf.export_onnx(checkpoint, tmp_path / "plain", "int4")
    plain, calibrated = (stored(tmp_path / folder) for folder in ("plain", "onnx"))
    matrices = [matrix for matrix in plain if matrix.endswith("/int4")]
    assert matrices and all(plain[matrix] != calibrated[matrix] for matrix in matrices)
    assert plain["gpt2/wte/int8/rows"] == calibrated["gpt2/wte/int8/rows"]


def stored(folder):
    """{name: bytes} of the first precision's weights."""
    import onnx

    model, data = onnx.load(folder / "decoder.onnx", load_external_data=False), folder / "model.onnx_data"
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    }
    content = data.read_bytes()
    return {
        name: content[int(place["offset"]) : int(place["offset"]) + int(place["length"])]
        for name, place in places.items()
    }


def test_layers_are_computed_in_groups_that_fit_the_memory(demo, tmp_path, monkeypatch):
    def moments(calibration, matrices=None):
        with calibration.inside(tmp_path, no_progress):
            return {matrix: calibration.moments(matrix) for matrix in matrices or calibration._inputs}

    whole = Calibration(demo, PART)
    assert len(whole._groups) == 1 and len(whole._inputs) == 4 * 6
    # Enough for one c_proj, or a few of the other matrices.
    monkeypatch.setattr(neo_tf.export.calibrate, "_MEMORY", 4 * 512 * 1024 + 1)
    parts = Calibration(demo, PART)
    assert max(map(len, parts._groups)) > 1 and min(map(len, parts._groups)) == 1
    expected, found = moments(whole), moments(parts)
    for matrix, value in expected.items():
        np.testing.assert_allclose(found[matrix], value, rtol=1e-3, atol=1e-5 * np.abs(value).max())
    assert moments(parts, ["gpt2/wte"]) == {"gpt2/wte": None}
    assert list(tmp_path.iterdir()) == []


def test_moments_are_those_of_the_keras_models_inputs(demo, tmp_path):
    """The first layer's inputs come from the embeddings and norm_1; positions begin at 0 in each piece of n_ctx."""
    calibration = Calibration(demo, PART)
    with calibration.inside(tmp_path, no_progress):
        found = calibration.moments("gpt2/h0/attn/qkv")
    ids = np.concatenate(calibration._sequences)
    positions = np.concatenate([np.arange(len(piece)) for piece in calibration._sequences])
    h = demo.read("gpt2/wte")[ids].astype(np.float64) + demo.read("gpt2/wpe")[positions]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    x = h * demo.read("gpt2/h0/norm_1/g") + demo.read("gpt2/h0/norm_1/b")
    np.testing.assert_allclose(found, x.T @ x, rtol=1e-3, atol=1e-5 * np.abs(found).max())


def test_shared_layers_add_up(tmp_path):
    checkpoint = neo_tf.open_checkpoint(GOLDEN / "share-parameters", tokenizer=GOLDEN / "tokenizer.json")
    calibration = Calibration(checkpoint, TEXT[:1000])
    assert {len(inputs) for inputs in calibration._inputs.values()} == {checkpoint.config.n_layer}


def test_a_long_text_is_taken_in_pieces_from_all_of_it(demo):
    short = TEXT[:50_000]
    ids = Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json").encode(short)
    sequences = Calibration(demo, short)._sequences
    assert len(ids) <= MAX_TOKENS and np.concatenate(sequences).tolist() == ids
    assert all(len(piece) == 512 for piece in sequences[:-1])
    long = Calibration(demo, "a" + "\n" * 5 * MAX_TOKENS + TEXT)._sequences
    assert MAX_TOKENS - 512 <= sum(map(len, long)) <= MAX_TOKENS
    assert len({tuple(piece) for piece in long}) > 3  # not only from the beginning


def test_progress_adds_up_to_the_source(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(neo_tf.export.calibrate, "_MEMORY", 10**7)
    for precisions in ("int4", ["int8", "int4"]):
        seen = []
        progress = lambda size, name: seen.append(size)  # noqa: E731, B023
        neo_tf.export_onnx(demo, tmp_path / "onnx", precisions, calibrate=PART, progress=progress, force=True)
        assert sum(seen) == pytest.approx(demo.nbytes)
        assert max(seen) < demo.nbytes / 5


def test_what_it_cannot_do_is_refused(demo, tmp_path):
    with pytest.raises(RequestError, match="is for int8 and int4, not for fp16 and bf16"):
        neo_tf.export_onnx(demo, tmp_path / "onnx", ["fp16", "bf16"], calibrate=TEXT)
    with pytest.raises(RequestError, match=r"a text of \d+ tokens is too short to calibrate on: 256"):
        neo_tf.export_onnx(demo, tmp_path / "onnx", "int4", calibrate="import sys")
    with pytest.raises(CheckpointError, match="no tokenizer to calibrate with"):
        neo_tf.export_onnx(replace(demo, files={}), tmp_path / "onnx", "int4", calibrate=TEXT)
    # Infinite weights are refused by name; finite ones can still make the layers' inputs infinite.
    for value, message in ((np.inf, "gpt2/h0/norm_1/g holds 128 Inf"), (3e38, "attn/qkv: its inputs are not finite")):
        large = np.full(128, value, np.float32)
        gains = replace(demo.tensors["gpt2/h0/norm_1/g"], read=lambda large=large: large)
        broken = replace(demo, tensors=demo.tensors | {"gpt2/h0/norm_1/g": gains})
        with pytest.raises(CheckpointError, match=message):
            neo_tf.export_onnx(broken, tmp_path / "onnx", "int4", calibrate=PART)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_a_text_file(tmp_path, capfd, monkeypatch):
    texts = {"text": PART.encode(), "short": b"import sys", "binary": b"\xff\x80\x00"}
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    said = {}
    for name in (*texts, "missing"):
        options = ["--precision", "int4", "--calibrate", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", ["neo-tf", "export", str(TINY_PYTHON), str(tmp_path / f"{name}.out"), *options])
        with pytest.raises(SystemExit) as end:
            main()
        said[name] = (end.value.code, capfd.readouterr().err)
    assert said["text"][0] == 0 and (tmp_path / "text.out" / "decoder.onnx").is_file()
    for name, message in (("short", "too short"), ("binary", "not a text in UTF-8"), ("missing", "No such file")):
        assert said[name][0] == 1 and message in said[name][1] and said[name][1].count("\n") == 1

"""A session's rows: each as if alone, at its own length, in whatever slot, after whoever was there before."""

import json
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, TOLERANCE, sums_differ_by
from session_helpers import decoded_logits

import neo_tf
from neo_tf.cli.info import describe
from neo_tf.errors import CheckpointError, ConfigError, RequestError
from neo_tf.runtime.device.session import Session

MODELS = ("tiny-global-local", "tiny-local-radius", "vocab-padded", "tiny-global")


@pytest.fixture
def session(exported):
    """A function that opens a golden model with some slots."""
    return lambda name, slots=1, **options: Session(exported(GOLDEN / name), slots=slots, device="cpu", **options)


def alone(session, ids):
    return session.prefill(0, ids, 0, logits_of="all")


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_unequal_lengths_are_decoded_as_if_alone(session, reference, name):
    """From 1, 20, n/2 and n-40 tokens on, together, until the longest is full: every row as the original has it."""
    reference = reference(name)
    n = reference.inputs.shape[1]
    starts, rows = [1, 20, n // 2, n - 20], [0, 1, 1, 0]
    together = session(name, slots=4)
    for slot, (start, row) in enumerate(zip(starts, rows, strict=True)):
        together.prefill(slot, reference.inputs[row, :start], 0)
    logits = [dict() for _ in rows]
    for step in range(20):
        past = np.array(starts) + step
        found = decoded_logits(together, 0, reference.inputs[rows, past], past)
        for slot, position in enumerate(past):
            logits[slot][int(position)] = found[slot]
    kept = {int(position): place for place, position in enumerate(reference.positions)}
    for row, found in zip(rows, logits, strict=True):
        whole = alone(session(name), reference.inputs[row])
        compared = [position for position in found if position in kept]
        assert compared
        bound = min(TOLERANCE, sums_differ_by(whole, together.config.n_embd))
        for position, value in found.items():
            assert np.abs(value - whole[position]).max() < bound
        for position in compared:
            assert np.abs(found[position] - reference.logits[row, kept[position]]).max() < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_slot_that_was_used_does_not_leak(session, reference, name):
    reference = reference(name)
    used = session(name, slots=2)
    used.prefill(1, reference.inputs[1], 0)  # full to the last position, with another sequence
    logits = used.prefill(1, reference.inputs[0, :9], 0, logits_of="all")
    steps = [
        decoded_logits(used, 1, reference.inputs[0, [position]], [position])
        for position in range(9, reference.inputs.shape[1])
    ]
    logits = np.concatenate([logits, *steps])
    assert np.abs(logits[reference.positions] - reference.logits[0]).max() < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_rows_neighbours_are_left_alone(session, reference, name):
    """Prefills and decodes of other slots, in between, do not touch a row; nor does a row that only idles."""
    reference = reference(name)
    ids, n = reference.inputs, 40
    crowded, logits = session(name, slots=4), []
    crowded.prefill(1, ids[0, :5], 0)
    for position in range(5, n):
        crowded.prefill(0, ids[1, :position], 0)
        crowded.prefill(2, ids[1, position:], 0)
        crowded.decode(3, ids[1, :1], np.array([0]))
        # Slots 0 and 2 idle along, with any token, at length 0.
        found = decoded_logits(crowded, 0, [7, ids[0, position], 7], [0, position, 0])
        logits.append(found[1])
    expected = alone(session(name), ids[0, :n])[5:]
    assert np.abs(np.array(logits) - expected).max() < min(TOLERANCE, sums_differ_by(expected, crowded.config.n_embd))


def test_one_row_that_idled_starts_afresh(session, reference):
    reference = reference("tiny-local-radius")
    idle = session("tiny-local-radius", slots=2)
    for position in range(100):
        idle.decode(0, np.array([int(reference.inputs[1, position]), 5]), np.array([position, 0]))
    logits = idle.prefill(1, reference.inputs[0], 0, logits_of="all")
    assert np.abs(logits[reference.positions] - reference.logits[0]).max() < TOLERANCE


@pytest.mark.parametrize("logits_of, kept", [(0, 0), (1, 1), (3, 3), ("all", 30)])
def test_prefill_keeps_the_last_logits(session, reference, logits_of, kept):
    reference = reference("vocab-padded")
    logits = session("vocab-padded").prefill(0, reference.inputs[0, :30], 0, logits_of=logits_of)
    assert logits.shape == (kept, 320) and logits.dtype == np.float32
    assert np.abs(logits - reference.logits[0, 30 - kept : 30]).max(initial=0) < TOLERANCE


def test_prefilled_logits_outlive_the_next_call(session, reference):
    ids = reference("vocab-padded").inputs
    one = session("vocab-padded")
    first = one.prefill(0, ids[0, :30], 0)
    before = first.copy()
    one.prefill(0, ids[1, :30], 0)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_numbers(session, reference, threads):
    reference = reference("vocab-padded")
    logits = alone(session("vocab-padded", threads=threads), reference.inputs[0])
    assert np.abs(logits - reference.logits[0]).max() < TOLERANCE


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy of an exported folder, to be damaged."""
    return shutil.copytree(exported(GOLDEN / "tiny-global"), tmp_path / "model")


def refused(folder, kind):
    with pytest.raises(kind) as error:
        Session(folder, device="cpu")
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_a_folder_without_the_graph_is_refused(damaged):
    (damaged / "decoder.onnx").unlink()
    assert "decoder.onnx" in refused(damaged, CheckpointError)


def test_a_folder_without_the_config_is_refused(damaged):
    (damaged / "config.json").unlink()
    assert "config.json" in refused(damaged, ConfigError)


@pytest.mark.parametrize("file", ["decoder.onnx", "model.onnx_data"])
def test_a_file_cut_short_is_refused(damaged, file):
    path = damaged / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(damaged, CheckpointError)


def test_a_folder_without_the_weights_is_refused(damaged):
    (damaged / "model.onnx_data").unlink()
    refused(damaged, CheckpointError)


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 2},
        {"hidden_size": 64},
        {"vocab_size": 300},
        {"num_layers": 3, "attention_types": [[["global"], 3]], "attention_layers": ["global"] * 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_contradicts_the_graph_is_refused(damaged, change):
    """The buffers are cut to the config: the graph must be known to agree before it reads and writes them."""
    params = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(params | change))
    with pytest.raises((CheckpointError, ConfigError)):
        Session(damaged, device="cpu")


@pytest.mark.parametrize(
    "change", [{"precisions": 5}, {"precisions": "int8"}, {"precisions": []}, {"precisions": ["fp8"]}, {"target": 5}]
)
def test_a_config_that_was_edited_wrongly_is_one_line(exported, tmp_path, change):
    folder = shutil.copytree(exported(GOLDEN / "tiny-global"), tmp_path / "onnx")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for use in (Session, describe):
        with pytest.raises(ConfigError, match=f"config.json: {next(iter(change))} must be"):
            use(folder)


def test_a_prompt_graph_of_another_model_is_refused(exported, tmp_path):
    neo_tf.export_onnx(GOLDEN / "tiny-global", tmp_path / "int8", "int8")
    neo_tf.export_onnx(GOLDEN / "vocab-padded", tmp_path / "other", "int8")
    (tmp_path / "int8" / "prefill.onnx").unlink()
    assert not Session(tmp_path / "int8").has_prompt_graph  # it can be left out
    shutil.copy(tmp_path / "other" / "decoder.onnx", tmp_path / "other" / "prefill.onnx")
    (tmp_path / "other" / "prefill.onnx").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"prefill\.onnx: cannot be loaded"):
        Session(tmp_path / "other")


def test_where_int8_sums_are_cut_off_prompts_go_through_the_decoder(tmp_path, monkeypatch):
    neo_tf.export_onnx(GOLDEN / "tiny-global", tmp_path / "onnx", "int8")
    ids = np.arange(40)
    with_graph = Session(tmp_path / "onnx")
    monkeypatch.setattr("neo_tf.runtime.device.machine.processors", lambda: [{"flags": "avx2 avx512bw"}])
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    without = Session(tmp_path / "onnx")
    assert not without.has_prompt_graph
    # Its last logits are those of all positions' last, but for the head's kernel: one row may be added up otherwise.
    every, last = without.prefill(0, ids, 0, logits_of="all")[-1], without.prefill(0, ids, 0)[0]
    assert np.abs(last - every).max() <= min(TOLERANCE, sums_differ_by(every, without.config.n_embd))
    (tmp_path / "onnx" / "prefill.onnx").unlink()
    np.testing.assert_array_equal(last, Session(tmp_path / "onnx").prefill(0, ids, 0)[0])
    for session, graphs in ((without, 1), (with_graph, 1 + with_graph.has_prompt_graph)):
        assert len(graphs_of_a_prefill(session, ids)) == graphs


def graphs_of_a_prefill(session, ids):
    """The ONNX Runtime sessions that a prompt goes through."""
    used, step = [], session._step
    session._step = lambda graph, *rest: (used.append(graph), step(graph, *rest))[1]
    session.prefill(0, ids, 0)
    return used


@pytest.mark.parametrize("slots", [0, -1, "a", True])
def test_slots_that_are_none_are_refused(exported, slots):
    with pytest.raises(RequestError, match="slots must be"):
        Session(exported(GOLDEN / "tiny-global"), slots=slots)

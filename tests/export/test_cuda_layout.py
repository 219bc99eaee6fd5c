"""The caches and the outputs of graphs for CUDA, in float32 on the CPU: exact, and equal to the CPU's own graphs."""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
from conftest import GOLDEN, TOLERANCE
from cuda_layout import export_cuda_layout
from numpy_reference import forward
from session_helpers import decoded_logits

import neo_tf
from neo_tf.cache_layout import cache_parts
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.onnx_folder import TOP_TOKENS, OnnxFolder
from neo_tf.runtime.device.session import Session

WINDOW = 8
# Of the published sizes' heads, and of heads that are padded (5 to 8); windows are far shorter than the context.
HEADS = {"64": (64, 1), "128": (128, 1), "padded": (5, 2)}
# Text of uneven lengths: below the window, at it, and far beyond it.
LENGTHS = (3, WINDOW, 30, 61)
STEPS = 3


@pytest.fixture(scope="module", params=HEADS)
def model(request, tmp_path_factory):
    """A model with random weights: (its Checkpoint, its folder for CUDA in fp32, its folder for the CPU)."""
    size, heads = HEADS[request.param]
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text()) | {
        "n_ctx": 64,
        "n_embd": size * heads,
        "n_head": heads,
        "n_layer": 4,
        "attention_types": [[["global", "local"], 2]],
        "local_attention_radius": WINDOW,
    }
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = random_checkpoint(folder / "config.json")
    neo_tf.export_onnx(checkpoint, folder / "cpu")
    return checkpoint, export_cuda_layout(checkpoint, folder / "cuda"), folder / "cpu"


def texts(config, count):
    return np.random.default_rng(1).integers(0, config.n_vocab, (count, config.n_ctx))


def continued(session, ids):
    """The logits of STEPS decode steps after prompts of LENGTHS, all rows together: [STEPS, rows, n_vocab]."""
    for slot, length in enumerate(LENGTHS):
        session.prefill(slot, ids[slot, :length], 0)
    past = np.array(LENGTHS)
    rows = np.arange(len(LENGTHS))
    return np.stack([decoded_logits(session, 0, ids[rows, past + step], past + step) for step in range(STEPS)])


def test_full_caches_give_the_logits_of_windowed_ones(model):
    checkpoint, cuda, cpu = model
    config = checkpoint.config
    full = Session(cuda, slots=len(LENGTHS), device="cpu")
    windowed = Session(cpu, slots=len(LENGTHS), device="cpu")
    assert not full.folder.windowed_caches and windowed.folder.windowed_caches
    assert {part.kind for part in cache_parts(config, full.folder.windowed_caches)} == {"full"}
    ids = texts(config, len(LENGTHS))
    found = continued(full, ids)
    np.testing.assert_allclose(found, continued(windowed, ids), atol=TOLERANCE)
    # Both are what float64 arithmetic gives.
    params = json.loads((cuda.parent / "config.json").read_text())
    expected = forward(params, lambda name: checkpoint.tensors[name].read(), ids)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[:, row], expected[row, length : length + STEPS], atol=TOLERANCE)


def test_a_padded_chunk_is_rolled_back(model):
    """A chunk of 5 tokens runs as one of 8, after a past: the padding counts as tokens, and is written over."""
    checkpoint, cuda, _ = model
    ids = texts(checkpoint.config, 1)[0]
    session = Session(cuda, slots=2, device="cpu")
    for past in (4, WINDOW, 40):
        session.prefill(0, ids[:past], 0)
        padded = np.concatenate([ids[past : past + 5], [0, 0, 0]])
        found = session.prefill(0, padded, past, logits_of="all")[:5]
        session.prefill(1, ids[: past + 5], 0)
        expected = Session(cuda, device="cpu").prefill(0, ids[: past + 5], 0, logits_of=5)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        steps = decoded_logits(session, 0, ids[[past + 5, past + 5]], [past + 5, past + 5])
        np.testing.assert_allclose(steps[0], steps[1], atol=TOLERANCE)


def test_rows_idle_at_their_own_length(model):
    """A prompt that is half done goes along in other rows' steps, each of which writes a wrong token after its end."""
    checkpoint, cuda, _ = model
    ids = texts(checkpoint.config, 2)
    session = Session(cuda, slots=2, device="cpu")
    for held in (3, WINDOW, 40):
        session.prefill(0, ids[0, :20], 0)
        session.prefill(1, ids[1, :held], 0)
        for step in range(4):
            decoded_logits(session, 0, [ids[0, 20 + step], 1], [20 + step, held])
        found = session.prefill(1, ids[1, held : held + 4], held)
        expected = Session(cuda, device="cpu").prefill(0, ids[1, : held + 4], 0)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


# ---- the most likely tokens


class Graph:
    """decoder.onnx of a folder, without neo-tf's session."""

    def __init__(self, folder):
        self.folder = OnnxFolder.read(folder)
        self.session = onnxruntime.InferenceSession(
            str(self.folder.path / "decoder.onnx"), providers=["CPUExecutionProvider"]
        )

    def run(self, ids, inverse_temperatures):
        """The outputs by name, of the tokens [batch, seq] at the beginning of texts."""
        batch, seq = ids.shape
        feed = {
            "input_ids": ids,
            "position_ids": np.tile(np.arange(seq), (batch, 1)),
            "seqlens_k": np.full(batch, seq - 1, np.int32),
            "total_sequence_length": np.array(seq, np.int32),
            "logits_start": np.zeros(1, np.int64),
            "inverse_temperature": np.asarray(inverse_temperatures, np.float32).reshape(batch, 1, 1),
        }
        for part in cache_parts(self.folder.config, self.folder.windowed_caches):
            feed[part.past] = np.zeros((batch, part.heads, part.rows, part.columns), np.float32)
        names = ["logits", "top_ids", "top_logprobs"]
        return dict(zip(names, self.session.run(names, feed), strict=True))


def expected_top(logits, inverse_temperatures, count):
    """The most likely ids and their log-probabilities in float64, and the log-probabilities of all."""
    scaled = logits.astype(np.float64) * np.reshape(inverse_temperatures, (-1, 1, 1))
    scaled -= scaled.max(-1, keepdims=True)
    logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return np.argsort(-logprobs, axis=-1, kind="stable")[..., :count], logprobs


@pytest.mark.parametrize("n_vocab", [40, TOP_TOKENS, 257])
def test_top_tokens_are_those_of_float64(n_vocab, tmp_path):
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text()) | {"n_vocab": n_vocab}
    (tmp_path / "config.json").write_text(json.dumps(config))
    graph = Graph(export_cuda_layout(random_checkpoint(tmp_path / "config.json"), tmp_path / "cuda"))
    ids = np.random.default_rng(2).integers(0, n_vocab, (4, 7))
    temperatures = [1.0, 0.1, 1.7, 100.0]
    inverse = 1 / np.array(temperatures, np.float32)
    found = graph.run(ids, inverse)
    count = min(TOP_TOKENS, n_vocab)
    assert found["top_ids"].shape == found["top_logprobs"].shape == (4, 7, count)
    assert found["top_ids"].dtype == np.int64 and found["logits"].shape == (4, 7, n_vocab)
    top, logprobs = expected_top(found["logits"], inverse, count)
    np.testing.assert_allclose(found["top_logprobs"], np.take_along_axis(logprobs, top, -1), atol=1e-5, rtol=1e-6)
    # Neighbours whose float32 log-probabilities are equal may stand in either order.
    different = found["top_ids"] != top
    gaps = np.take_along_axis(logprobs, found["top_ids"], -1) - np.take_along_axis(logprobs, top, -1)
    assert np.abs(gaps[different]).max(initial=0) < 1e-6
    assert (np.sort(found["top_ids"], -1)[..., 1:] != np.sort(found["top_ids"], -1)[..., :-1]).all()


def test_the_first_of_equal_tokens_comes_first(tmp_path):
    """As numpy's argmax has it: a greedy request gets the same token from the logits and from the top tokens."""
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = random_checkpoint(tmp_path / "config.json")
    tensors = dict(checkpoint.tensors)
    name = "gpt2/wte"
    wte = tensors[name].read()
    wte[100:] = wte[:157]  # each of these tokens has a twin
    tensors[name] = neo_tf.checkpoints.LazyTensor(wte.shape, wte.dtype, lambda: wte)
    twins = dataclasses.replace(checkpoint, tensors=tensors)
    graph = Graph(export_cuda_layout(twins, tmp_path / "cuda"))
    found = graph.run(np.arange(12).reshape(2, 6), [1.0, 2.0])
    np.testing.assert_array_equal(found["top_ids"][..., 0], found["logits"].argmax(-1))


def test_the_padded_head_adds_no_token(tmp_path):
    """Columns of zeros have logits of 0, which may be the largest: they must not be among the outputs."""
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for precision in ("fp32", "int8", "int4"):
        folder = export_cuda_layout(random_checkpoint(tmp_path / "config.json"), tmp_path / precision, precision)
        if precision == "fp32":
            found = Graph(folder).run(np.arange(6).reshape(1, 6), [1.0])
            assert found["top_ids"].max() < 257 and found["logits"].shape[-1] == 257
        logits = Session(folder, device="cpu").prefill(0, [1, 2, 3], 0, logits_of="all")
        assert logits.shape == (3, 257) and np.isfinite(logits).all()

"""--ops standard gives operators of the ONNX standard only; onnx.reference, which is independent, runs them."""

import json

import numpy as np
import onnx
import pytest
import torch
import transformers
from conftest import DECODABLE, GOLDEN, PADDING, TINY_PYTHON, TOLERANCE, Reference, run_cli
from onnx.reference import ReferenceEvaluator

import neo_tf
from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.evaluation.deviation import LIMITS
from neo_tf.export.precision import precision_for
from neo_tf.export.quantise import quantise
from neo_tf.model_cache import resolve_model

PRECISIONS = ("fp32", "int8", "int4")
# In int4 the embedding and the head have 8 bits, and the layers' matrices take the same way in int8 as in int4: a few
# models are enough for it.
EIGHT_BITS = ("tiny-global-local", "attn-mix", "moe", "no-weight-tie", "tiny-python")
CASES = [
    (name, precision)
    for name in (*DECODABLE, "moe", "tiny-python")
    for precision in PRECISIONS
    if precision != "int8" or name in EIGHT_BITS
]


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """A function from a checkpoint and a precision to the folder in standard operators."""
    done = {}

    def export(source, precision="fp32"):
        if (source, precision) not in done:
            done[source, precision] = tmp_path_factory.mktemp("standard") / source.name
            neo_tf.export_onnx(source, done[source, precision], precision, ops="standard")
        return done[source, precision]

    return export


class Evaluator:
    """model.onnx in onnx.reference, with growing caches."""

    def __init__(self, folder):
        self.config = neo_tf.GPTNeoConfig.from_file(folder / "config.json")
        self.evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
        self.parts = cache_parts(self.config, windowed=False, head_size=self.config.head_size)
        self.caches = None

    def run(self, ids, mask, positions):
        """Logits [rows, seq, n_vocab]; the first call begins the sequences."""
        if self.caches is None:
            self.caches = [np.zeros((len(ids), part.heads, 0, part.columns), np.float32) for part in self.parts]
        feed = {part.past: cache for part, cache in zip(self.parts, self.caches, strict=True)}
        feed |= {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed["num_logits_to_keep"] = np.zeros(1, np.int64)
        with np.errstate(all="ignore"):
            logits, *self.caches = self.evaluator.run(["logits", *(part.present for part in self.parts)], feed)
        return logits


def left_padded_runs(folder, rows, lengths, steps):
    """Logits of each row's first length + steps tokens: left-padded together, then token by token."""
    evaluator, width = Evaluator(folder), max(lengths)
    ids, mask = np.full((len(rows), width), 3), np.zeros((len(rows), width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :], mask[row, width - length :] = rows[row][:length], 1
    found = evaluator.run(ids, mask, np.maximum(mask.cumsum(1) - 1, 0))
    found = [[logits[width - length :]] for logits, length in zip(found, lengths, strict=True)]
    for step in range(steps):
        at = np.array(lengths) + step
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        tokens = np.array([[row[position]] for row, position in zip(rows, at, strict=True)])
        for row, logits in zip(found, evaluator.run(tokens, mask, at[:, None]), strict=True):
            row.append(logits)
    return [np.concatenate(row) for row in found]


def cosine(a, b):
    return ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()


@pytest.mark.parametrize(("name", "precision"), [case for case in CASES if case[0] not in ("moe", "tiny-python")])
def test_logits_are_the_originals_in_onnx_reference(standard, name, precision):
    reference = Reference.load(GOLDEN / name, PADDING)
    rows, n = reference.inputs, reference.inputs.shape[1]
    found = left_padded_runs(standard(GOLDEN / name, precision), rows, (n - 2, n - 11), steps=2)
    for logits, expected in zip(found, reference.logits, strict=True):
        known = reference.positions < len(logits)
        got, expected = logits[reference.positions[known]], expected[known]
        if precision == "fp32":
            assert np.abs(got - expected).max() < TOLERANCE
        else:
            assert cosine(got, expected) > LIMITS[precision].cosine
            assert np.abs(got - expected).max() > TOLERANCE  # the weights were rounded indeed


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_no_node_is_foreign_and_verify_passes(standard, name, precision):
    source = TINY_PYTHON if name == "tiny-python" else GOLDEN / name
    folder = standard(source, precision)
    assert {path.name for path in folder.glob("*.onnx*")} == {"model.onnx", "model.onnx_data"}
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert [entry.domain for entry in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    done = []
    found = neo_tf.verify(source, folder, tokens=40, progress=done.append)
    assert [(one.graph, one.mode) for one in found] == [("model.onnx", "prefill"), ("model.onnx", "step by step")]
    assert all(one.failure(precision) is None for one in found), found
    assert sum(done) == 3 * 40


def rounded(weight, bits):
    """The weight that the integers and scales of the fused operators stand for: float32 [outputs, inputs]."""
    packed, scales = quantise(weight.detach().numpy(), bits, precision_for("int8").block_size(weight.shape[1], bits))
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    values = (packed.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    return torch.nn.Parameter(torch.from_numpy(values.reshape(len(weight), -1)[:, : weight.shape[1]].copy()))


def round_model(model, precision):
    """Rounds the model's matrices like the exporter: the layers' to 8 or 4 bits, the embedding and head to 8."""
    for block in model.transformer.h:
        attention = block.attn.attention
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            linear.weight = rounded(linear.weight, int(precision[-1]))
        for linear in (block.mlp.c_fc, block.mlp.c_proj):
            linear.weight = rounded(linear.weight, int(precision[-1]))
    model.lm_head.weight = rounded(model.lm_head.weight, 8)
    if model.config.hidden_size % 32 == 0:  # whole blocks: the embedding is the head's tensor
        model.transformer.wte.weight = model.lm_head.weight


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("heads, head, inner", [(16, 4, None), (2, 64, 100), (2, 48, 77), (3, 7, 33)])
def test_sizes_that_fill_no_block_and_rounding_as_for_the_fused_operators(heads, head, inner, precision, tmp_path):
    torch.manual_seed(head)
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=97,
            hidden_size=heads * head,
            num_layers=2,
            num_heads=heads,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            window_size=8,
            intermediate_size=inner,
            initializer_range=0.1,
        )
    ).eval()
    model.save_pretrained(tmp_path / "model")
    neo_tf.export_onnx(tmp_path / "model", tmp_path / "onnx", precision, ops="standard")
    rows = torch.randint(0, 97, (2, 40))
    with torch.no_grad():
        exact = model(rows).logits.numpy()
        if precision != "fp32":
            round_model(model, precision)
        expected = model(rows).logits.numpy()
    for row, logits in enumerate(left_padded_runs(tmp_path / "onnx", rows.numpy(), (38, 20), steps=2)):
        assert np.abs(logits - expected[row, : len(logits)]).max() < TOLERANCE
    assert (np.abs(exact - expected).max() > 10 * TOLERANCE) == (precision != "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_weights_take_no_more_room_than_for_the_fused_operators(standard, precision, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "fused", precision)
    kept = {
        tensor.name: tuple(tensor.external_data[i].value for i in (1, 2))
        for tensor in onnx.load(tmp_path / "fused" / "model.onnx", load_external_data=False).graph.initializer
        if tensor.external_data
    }
    needed = sum(int(length) for _, length in set(kept.values()))
    data = standard(TINY_PYTHON, precision) / "model.onnx_data"
    # Each tensor begins on a new page; the embedding is stored once.
    assert data.stat().st_size < needed + 4096 * len(kept)


def test_several_precisions_lie_in_one_folder(tmp_path):
    neo_tf.export_onnx(GOLDEN / "rotary", tmp_path / "onnx", PRECISIONS, ops="standard")
    assert {path.name for path in (tmp_path / "onnx").glob("*.onnx")} == {
        *("model.onnx", "model_int8.onnx", "model_int4.onnx"),
    }
    for precision in PRECISIONS:
        found = neo_tf.verify(GOLDEN / "rotary", tmp_path / "onnx", precision=precision, tokens=20)
        assert len(found) == 2 and all(one.failure(precision) is None for one in found)


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "int8", "target": "cuda"}])
def test_what_is_made_for_cuda_is_refused(tmp_path, options):
    with pytest.raises(RequestError, match="standard"):
        neo_tf.export_onnx(GOLDEN / "rotary", tmp_path / "onnx", ops="standard", **options)
    with pytest.raises(RequestError, match=r"unknown ops 'all' \(known: fused, standard\)"):
        neo_tf.export_onnx(GOLDEN / "rotary", tmp_path / "onnx", ops="all")
    assert not (tmp_path / "onnx").exists()


def test_the_commands(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "onnx"
    code, _, err = run_cli(monkeypatch, capsys, "export", TINY_PYTHON, folder, "--ops", "standard")
    assert code == 0 and "standard operators" in err
    code, out, _ = run_cli(monkeypatch, capsys, "verify", TINY_PYTHON, folder, "--tokens", 20)
    assert code == 0 and "model " in out and "decoder" not in out
    code, out, _ = run_cli(monkeypatch, capsys, "info", folder)
    assert code == 0 and "other runtimes, in standard operators" in out
    code, out, err = run_cli(monkeypatch, capsys, "generate", folder, "def")
    assert code == 1 and not out
    assert err.count("\n") == 1 and "--ops standard" in err and "other runtimes" in err
    with pytest.raises(CheckpointError, match="other runtimes"):
        resolve_model(folder)
    # The graph's caches grow, so that a runtime must not append to them in place.
    assert json.loads((folder / "genai_config.json").read_text())["search"]["past_present_share_buffer"] is False

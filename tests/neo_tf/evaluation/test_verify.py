"""verify judges an export: right ones pass, sabotaged ones do not, other models are refused."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TINY_PYTHON, run_cli

import neo_tf
from neo_tf.errors import ConfigError, RequestError
from neo_tf.evaluation.deviation import TOLERANCE, Deviation
from neo_tf.evaluation.verify import Verification, default_tokens, verify
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.tokenizer import Tokenizer

RUNS = [(graph, mode) for graph in ("decoder.onnx", "model.onnx") for mode in ("prefill", "step by step")]
LOCAL = GOLDEN / "tiny-local-radius"  # radius 16 on every layer, n_ctx 256


@pytest.fixture
def sabotaged(exported, tmp_path):
    """A copy of an exported folder, to be damaged."""

    def copy(source):
        return shutil.copytree(exported(source), tmp_path / "sabotaged")

    return copy


def change_window(folder, graph, by=1):
    model = onnx.load(folder / graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i += by
    (folder / graph).write_bytes(model.SerializeToString())


def change_weight(folder, name, change):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = np.memmap(folder / "model.onnx_data", np.float32, "r+", int(place["offset"]), tuple(tensor.dims))
    change(data)
    data.flush()


@pytest.mark.parametrize("name", ["tiny-local-radius", "vocab-padded", "tiny-global", "act-relu"])
def test_a_right_export_passes(exported, name):
    source, done = GOLDEN / name, []
    found = verify(source, exported(source), progress=done.append)
    assert [(deviation.graph, deviation.mode) for deviation in found] == RUNS
    assert all(0 <= deviation.error < TOLERANCE for deviation in found)
    config = neo_tf.GPTNeoConfig.from_file(source / "config.json")
    tokens = default_tokens(config)
    assert {deviation.logits for deviation in found} == {tokens * config.n_vocab}
    assert sum(done) == Verification.plan(source, exported(source)).work


@pytest.mark.parametrize("graph", ["decoder.onnx", "model.onnx"])
@pytest.mark.parametrize("by", [1, -1])
def test_a_window_that_is_off_by_one_is_caught_past_it(sabotaged, graph, by):
    folder = sabotaged(LOCAL)
    change_window(folder, graph, by)
    for found in verify(LOCAL, folder):
        if found.graph == graph:
            assert found.error > TOLERANCE and found.position >= 15
        else:
            assert found.error < TOLERANCE


def test_a_changed_weight_is_caught_and_placed(sabotaged):
    folder = sabotaged(LOCAL)

    def change(wte):
        wte[77] *= 1.01

    change_weight(folder, "gpt2/wte", change)
    # Token 77 is not among the inputs, so that its logit alone changes.
    seed = next(seed for seed in range(99) if 77 not in np.random.default_rng(seed).integers(0, 257, 20))
    for found in verify(LOCAL, folder, tokens=20, seed=seed):
        assert found.error > TOLERANCE and found.token_id == 77


@pytest.mark.parametrize("name", ["gpt2/wpe", "gpt2/h3/mlp/conv1d_main/c_proj/bias", "gpt2/ln_f/b"])
def test_numbers_that_are_none_do_not_pass(sabotaged, name):
    folder = sabotaged(LOCAL)
    change_weight(folder, name, lambda weight: weight.fill(np.nan))
    assert all(found.error == np.inf for found in verify(LOCAL, folder, tokens=4))


@pytest.mark.parametrize(
    "source, onnx_source, name, theirs, ours",
    [
        ("tiny-local-radius", "tiny-global", "n_ctx", 256, 64),
        ("microbatch-fp32", "tiny-global", "n_layer", 2, 4),
        ("tiny-global", "vocab-padded", "attention_types", "global", "local"),
        ("tiny-global-local", "tiny-python", "n_embd", 32, 128),
    ],
)
def test_another_model_is_refused_with_both_values(exported, source, onnx_source, name, theirs, ours):
    other = GOLDEN / onnx_source
    folder = exported(other if other.exists() else GOLDEN.parent / onnx_source)
    with pytest.raises(ConfigError) as error:
        verify(GOLDEN / source, folder)
    message = str(error.value)
    assert name in message and str(theirs) in message and str(ours) in message


def test_another_model_of_the_same_shape_does_not_pass(exported):
    """gelu's weights and relu's: wherever it is noticed, it must be."""
    try:
        deviations = verify(GOLDEN / "microbatch-fp32", exported(GOLDEN / "act-relu"))
    except ConfigError as error:
        assert "gelu" in str(error) and "relu" in str(error)
    else:
        assert all(found.error > TOLERANCE for found in deviations)


def test_a_vocabulary_that_the_source_lacks_is_refused(exported, tmp_path):
    neo_tf.export_onnx(GOLDEN / "vocab-padded", tmp_path / "trimmed", n_vocab=300)
    checkpoint = neo_tf.open_checkpoint(GOLDEN / "vocab-padded").with_vocab(299)
    with pytest.raises(ConfigError, match=r"299.*300"):
        verify(checkpoint, tmp_path / "trimmed")


def test_a_trimmed_vocabulary_is_compared_as_far_as_it_goes(tmp_path):
    neo_tf.export_onnx(GOLDEN / "vocab-padded", tmp_path / "trimmed", n_vocab=257)
    for found in verify(GOLDEN / "vocab-padded", tmp_path / "trimmed", tokens=10):
        assert found.error < TOLERANCE and found.logits == 10 * 257


@pytest.mark.parametrize("tokens", [0, -1, 257])
def test_lengths_that_do_not_fit_are_refused(exported, tokens):
    with pytest.raises(RequestError, match=f"{tokens}.*256|{tokens}"):
        verify(LOCAL, exported(LOCAL), tokens=tokens)


def test_the_whole_context_fits(exported):
    assert all(found.error < TOLERANCE for found in verify(LOCAL, exported(LOCAL), tokens=256))


@pytest.mark.parametrize(
    "kinds, radius, n_ctx, tokens",
    [("gg", 256, 2048, 128), ("gl", 256, 2048, 320), ("gl", 256, 300, 300), ("gl", 256, 100, 100), ("ll", 8, 64, 64)],
)
def test_the_default_length_goes_past_the_window(kinds, radius, n_ctx, tokens):
    names = {"g": "global", "l": "local"}
    types = [names[kind] for kind in kinds]
    config = neo_tf.GPTNeoConfig(100, n_ctx, 16, 2, 2, types, local_attention_radius=radius)
    assert default_tokens(config) == tokens


def test_the_command_passes_a_right_export(monkeypatch, capsys, exported):
    code, out, _ = run_cli(monkeypatch, capsys, "verify", LOCAL, exported(LOCAL), "--tokens", 30)
    assert code == 0
    assert "decoder" in out and "steps" in out


def test_the_command_fails_a_wrong_export(monkeypatch, capsys, sabotaged):
    folder = sabotaged(LOCAL)
    change_window(folder, "decoder.onnx")
    code, _, err = run_cli(monkeypatch, capsys, "verify", LOCAL, folder)
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("error: ") and "differ" in err


def test_the_command_fails_what_is_not_a_number(monkeypatch, capsys, sabotaged):
    folder = sabotaged(LOCAL)
    change_weight(folder, "gpt2/ln_f/b", lambda weight: weight.fill(np.nan))
    code, _, err = run_cli(monkeypatch, capsys, "verify", LOCAL, folder, "--tokens", 3)
    assert code == 1 and "inf" in err


def test_the_command_refuses_another_model_in_one_line(monkeypatch, capsys, exported):
    code, _, err = run_cli(monkeypatch, capsys, "verify", LOCAL, exported(GOLDEN / "tiny-global"))
    assert code == 1
    assert err.count("error: ") == 1 and "256" in err and "64" in err


def test_config_that_lies_about_the_window_is_no_excuse(sabotaged):
    """The source decides what the window is, not the folder's own config."""
    folder = sabotaged(LOCAL)
    change_window(folder, "decoder.onnx", 4)
    change_window(folder, "model.onnx", 4)
    params = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(params | {"window_size": 20}))
    try:
        deviations = verify(LOCAL, folder)
    except ConfigError as error:
        assert "16" in str(error) and "20" in str(error)
    else:
        assert all(found.error > TOLERANCE for found in deviations)


def test_a_text_adds_perplexity_and_goes_on_past_the_context(demo_folder, monkeypatch, capsys, tmp_path):
    text = "def read(path):\n    return open(path).read()\n" * 50
    found = verify(TINY_PYTHON, demo_folder, text=text, tokens=600)
    assert {deviation.logits for deviation in found} == {600 * 2048}
    ids = np.asarray(Tokenizer(demo_folder).encode(text)[:600])
    losses = []
    for piece in (ids[:512], ids[512:]):
        logits = Session(demo_folder).prefill(0, piece, 0, logits_of="all")[:-1].astype(np.float64)
        losses += list(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(piece) - 1), piece[1:]])
    assert found[0].perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found[1].perplexity == pytest.approx(found[0].source_perplexity, rel=1e-5)

    (tmp_path / "text.py").write_text(text)
    options = ("--text", tmp_path / "text.py", "--tokens", 30)
    code, out, _ = run_cli(monkeypatch, capsys, "verify", TINY_PYTHON, demo_folder, *options)
    assert code == 0 and f"{verify(TINY_PYTHON, demo_folder, text=text, tokens=30)[0].perplexity:.2f} " in out
    (tmp_path / "text.py").write_bytes(b"\xff\x80")
    code, _, err = run_cli(monkeypatch, capsys, "verify", TINY_PYTHON, demo_folder, "--text", tmp_path / "text.py")
    assert code == 1 and err.count("error: ") == 1 and "UTF-8" in err
    with pytest.raises(RequestError, match="less than two tokens"):
        verify(TINY_PYTHON, demo_folder, text="")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cosine": 0.998}, "cosine 0.99800 is below 0.999"),
        ({"cosine": float("nan")}, "cosine nan"),
        ({"agreement": 0.8}, "top-1 agreement is 80.0%, below 88%"),
        ({"perplexity": 10.2}, r"perplexity is \+2.00% off, the limit for int8 is \+1.0%"),
        ({"perplexity": float("nan")}, "perplexity is"),
    ],
)
def test_each_limit_of_a_lower_precision_counts(change, why):
    good = Deviation("decoder.onnx", "prefill", 1.0, 0, 0, 100, 0.9995, 0.95, 10.05, 10.0)
    assert good.failure("int8") is None and good.failure("fp32") is not None
    assert re.search(why, replace(good, **change).failure("int8"))

"""encoder.onnx: hidden states are transformers' own, and give the logits that the original computed."""

import json
import shutil

import numpy as np
import onnx
import pytest
from conftest import DECODABLE, GOLDEN, TINY_PYTHON, TOLERANCE, Reference
from cuda_layout import export_cuda_layout

import neo_tf
from neo_tf.errors import CheckpointError, ConfigError, EngineError, RequestError
from neo_tf.evaluation.deviation import LIMITS
from neo_tf.runtime.device.encoder import Encoder
from neo_tf.runtime.device.session import Session

LOCAL = GOLDEN / "tiny-local-radius"  # windows of 16 positions


def logits_of(source, states):
    """The logits that the model's head makes of hidden states: [n, embd] -> [n, n_vocab]."""
    tensors = neo_tf.open_checkpoint(source).tensors

    def read(name):
        return tensors[f"gpt2/{name}"].read().astype(np.float64)

    if "gpt2/wte_final_linear/conv1d_main/linear_out/kernel" in tensors:
        linear = "wte_final_linear/conv1d_main/linear_out"
        return states @ read(f"{linear}/kernel") + read(f"{linear}/bias")
    return states @ read("wte").T


@pytest.fixture(scope="module")
def encoder(exported):
    """A function from a checkpoint to the encoder of what was exported from it."""
    return lambda source: Encoder(exported(source))


@pytest.mark.parametrize("source", [LOCAL, GOLDEN / "tiny-global-local", TINY_PYTHON], ids=lambda path: path.name)
def test_hidden_states_are_transformers(encoder, tmp_path, source):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    neo_tf.convert(source, tmp_path / "converted", "huggingface")
    model = transformers.AutoModel.from_pretrained(tmp_path / "converted").eval()
    encoder = encoder(source)
    for ids in Reference.load(source, 1).inputs[:2]:
        assert len(ids) >= 2 * encoder.config.window(1)
        with torch.no_grad():
            expected = model(torch.tensor(ids[None]), output_hidden_states=True).hidden_states[-1][0].numpy()
        got = encoder.hidden_states(ids)
        assert got.shape == (len(ids), encoder.config.n_embd) and got.dtype == np.float32
        assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", DECODABLE)
def test_the_head_makes_the_originals_logits_of_them(encoder, reference, name):
    encoder = encoder(GOLDEN / name)
    expected = reference(name)
    for row, ids in enumerate(expected.inputs[:2]):
        logits = logits_of(GOLDEN / name, encoder.hidden_states(ids))
        assert np.abs(logits[expected.positions] - expected.logits[row]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["rotary", "attn-mix", "no-weight-tie"])
def test_hidden_states_are_the_keras_models(encoder, reference, monkeypatch, name):
    from neo_tf import layers, model

    def final(h, scope, config):
        return h if config.no_weight_tie else layers.layer_norm(h, scope["ln_f"], config)

    monkeypatch.setattr(model, "unembed", final)
    ids = reference(name).inputs[0]
    keras_model = neo_tf.GPTNeo.from_checkpoint(GOLDEN / name)
    expected = np.asarray(keras_model.call(ids[None]))[0]
    assert np.abs(encoder(GOLDEN / name).hidden_states(ids) - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", ["tiny-local-radius", "rotary", "mem-kv", "attn-mix", "no-weight-tie"])
def test_the_graph_that_is_made_for_cuda_computes_the_same(encoder, reference, tmp_path, name):
    export_cuda_layout(GOLDEN / name, tmp_path / "cuda")
    ids = reference(name).inputs[0]
    got = Encoder(tmp_path / "cuda", device="cpu").hidden_states(ids)
    assert np.abs(got - encoder(GOLDEN / name).hidden_states(ids)).max() < TOLERANCE


@pytest.mark.parametrize("name", ["moe", "rotary", "attn-mix"])
def test_a_text_of_one_token_and_experts_are_as_in_decoding(exported, encoder, reference, name):
    encoder = encoder(GOLDEN / name)
    session = Session(exported(GOLDEN / name))
    for ids in (reference(name).inputs[0], reference(name).inputs[0][:1]):
        logits = logits_of(GOLDEN / name, encoder.hidden_states(ids))
        assert np.abs(logits - session.prefill(0, ids, 0, logits_of="all")).max() < TOLERANCE


@pytest.mark.parametrize("name", ["tiny-local-radius", "mem-kv", "attn-mix", "moe", "rotary"])
def test_rows_that_are_padded_at_their_end_equal_each_alone(encoder, reference, name):
    encoder = encoder(GOLDEN / name)
    ids = reference(name).inputs[0][:60]
    lengths = (60, 3, 41)
    batch = np.zeros((3, 60), np.int64)
    for row, length in enumerate(lengths):
        batch[row, :length] = ids[-length:]
    (together,) = encoder._graph.run(None, {"input_ids": batch})
    for row, length in enumerate(lengths):
        assert np.abs(together[row, :length] - encoder.hidden_states(ids[-length:])).max() < TOLERANCE


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_weights_are_within_the_limits_of_the_precision(encoder, reference, tmp_path, precision):
    source = TINY_PYTHON
    neo_tf.export_onnx(source, tmp_path / "onnx", ["fp32", precision])
    ids = Reference.load(source, 1).inputs[0]
    exact = encoder(source).hidden_states(ids)
    rounded = Encoder(tmp_path / "onnx", precision=precision).hidden_states(ids)
    cosines = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rounded, axis=-1)
    assert cosines.mean() > LIMITS[precision].cosine
    assert np.abs(exact - rounded).max() > TOLERANCE  # they were rounded indeed


@pytest.mark.parametrize("precision", ["fp32", "int8", ["fp32", "int4"]])
def test_it_adds_a_graph_and_no_weights(tmp_path, precision):
    neo_tf.export_onnx(GOLDEN / "rotary", tmp_path / "onnx", precision)
    places = {}
    for path in (tmp_path / "onnx").glob("*.onnx"):
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        places[path.stem] = {
            (one.external_data[1].value, one.external_data[2].value) for one in tensors if one.external_data
        }
    for name, found in places.items():
        if name.startswith("encoder"):
            assert found and found <= places[name.replace("encoder", "decoder")]
            assert (tmp_path / "onnx" / f"{name}.onnx").stat().st_size < 50_000


def test_bad_tokens_are_told_in_one_line(encoder):
    encoder = encoder(LOCAL)
    assert encoder.hidden_states(np.zeros(256, np.int64)).shape == (256, 32)
    for ids, said in (([], "not of 0"), ([0] * 257, "1 to 256 tokens, not of 257"), ([1, 257], "257"), ([-1], "257")):
        with pytest.raises(RequestError, match=said) as error:
            encoder.hidden_states(ids)
        assert "\n" not in str(error.value)


def test_a_folder_without_it_is_to_be_exported_again_and_still_decodes(exported, tmp_path):
    folder = shutil.copytree(exported(LOCAL), tmp_path / "older")
    (folder / "encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=rf"{folder}: has no encoder.onnx, .*: export it again") as error:
        Encoder(folder)
    assert "\n" not in str(error.value)
    assert Session(folder).prefill(0, [1, 2], 0).shape == (1, 257)


def test_a_damaged_one_and_one_of_another_model_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported(LOCAL), tmp_path / "folder")
    shutil.copy(folder / "decoder.onnx", folder / "encoder.onnx")
    with pytest.raises(ConfigError, match=r"encoder.onnx: does not turn input_ids into last_hidden_state of 32"):
        Encoder(folder)
    (folder / "encoder.onnx").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"encoder.onnx: cannot be loaded"):
        Encoder(folder)
    Session(folder)  # decoding does not even look at it


def test_weights_that_are_not_numbers_are_an_error(exported, tmp_path):
    folder = shutil.copytree(exported(LOCAL), tmp_path / "folder")
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False).graph
    (gain,) = (one for one in graph.initializer if one.name == "gpt2/ln_f/g")
    offset = int({entry.key: entry.value for entry in gain.external_data}["offset"])
    with open(folder / "model.onnx_data", "r+b") as data:
        data.seek(offset)
        data.write(np.float32(np.nan).tobytes())
    with pytest.raises(EngineError, match="NaN or infinite"):
        Encoder(folder).hidden_states([1, 2])


def test_graphs_for_other_runtimes_have_none(tmp_path):
    neo_tf.export_onnx(LOCAL, tmp_path / "onnx", ops="standard")
    assert {path.name for path in (tmp_path / "onnx").glob("*.onnx")} == {"model.onnx"}
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["ops"] == "standard"

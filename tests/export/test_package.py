"""The ONNX folder has the right files, other programs can read it, and it appears whole or not at all."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from conftest import DECODABLE, GOLDEN, TINY_PYTHON, TOLERANCE

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.config_values import ACTIVATIONS
from neo_tf.errors import CheckpointError, ConfigError, OutputError, RequestError
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.runtime.device.session import Session

FILES = {
    *("model.onnx", "decoder.onnx", "encoder.onnx", "model.onnx_data", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "genai_config.json"),
}


def test_the_folder_is_complete(demo_folder):
    assert {path.name for path in demo_folder.iterdir()} == FILES


def test_without_a_tokenizer_its_files_are_left_out(exported):
    found = {path.name for path in exported(GOLDEN / "tiny-global").iterdir()}
    assert found == FILES - {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("name", DECODABLE)
def test_the_config_says_what_the_original_said(exported, name):
    found = neo_tf.GPTNeoConfig.from_file(exported(GOLDEN / name) / "config.json")
    source = neo_tf.GPTNeoConfig.from_file(GOLDEN / name / "config.json")
    # tiny-global's variables are bfloat16, but its graph is float32.
    assert found == source.replace(precision="float32")


def test_transformers_reads_config_and_tokenizer(demo_folder):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(demo_folder)
    assert (config.model_type, config.vocab_size, config.max_position_embeddings) == ("gpt_neo", 2048, 512)
    assert config.attention_layers == ["global", "local"] * 3
    assert transformers.GenerationConfig.from_pretrained(demo_folder).eos_token_id == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_folder)
    text = "def naïve(self):\n    return {'🎉': 1}\n"
    own = json.loads((TINY_PYTHON / "byte-level-bpe.tokenizer.json").read_text())["model"]["vocab"]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.eos_token_id == 0
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids] == [next(t for t in own if own[t] == i) for i in ids]


def test_genai_config_fits_the_graph(demo_folder):
    model = json.loads((demo_folder / "genai_config.json").read_text())["model"]
    decoder = model["decoder"]
    session = onnxruntime.InferenceSession(str(demo_folder / decoder["filename"]), providers=["CPUExecutionProvider"])
    layers = range(decoder["num_hidden_layers"])
    for found, named in ((session.get_inputs(), decoder["inputs"]), (session.get_outputs(), decoder["outputs"])):
        patterns = named.values()
        assert {item.name for item in found} == {
            name for pattern in patterns for name in ({pattern % i for i in layers} if "%d" in pattern else {pattern})
        }
    cache = next(item for item in session.get_inputs() if item.name == "past_key_values.0.key")
    assert cache.shape[1::2] == [decoder["num_key_value_heads"], decoder["head_size"]]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"]) == (2048, 512, 0)
    assert decoder["hidden_size"] == decoder["num_attention_heads"] * decoder["head_size"] == 128


@pytest.mark.parametrize("name", DECODABLE)
def test_genai_config_is_left_out_where_genai_cannot_run_the_caches(exported, name):
    """genai fails on sums and on layers without a cache, and crashes on learned keys."""
    assert (exported(GOLDEN / name) / "genai_config.json").exists() == (name not in ("attn-mix", "mem-kv"))


@pytest.mark.parametrize(
    ("eos", "pad", "expected"),
    [(None, None, (319, 319)), (7, None, (7, 7)), (7, 9, (7, 9)), (7, 320, (7, 7)), (0, 0, (0, 0))],
)
def test_genai_gets_ids_of_the_vocabulary(tmp_path, eos, pad, expected):
    """genai refuses ids outside the vocabulary; without an end-of-text id it uses the padding id, or 0."""
    checkpoint = neo_tf.open_checkpoint(GOLDEN / "vocab-padded")
    config = checkpoint.config.replace(eos_token_id=eos, pad_token_id=pad)
    neo_tf.export_onnx(replace(checkpoint, config=config), tmp_path / "onnx")
    model = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]
    assert (model["eos_token_id"], model["pad_token_id"]) == expected


@pytest.mark.parametrize("to", ["huggingface", "keras", "mesh-tf"])
@pytest.mark.parametrize("name", ["tiny-global-local", "tiny-global"])  # float32 and bfloat16
def test_every_format_gives_the_same_folder(exported, tmp_path, name, to):
    neo_tf.convert(GOLDEN / name, tmp_path / to, to=to)
    neo_tf.export_onnx(tmp_path / to, tmp_path / "onnx")
    for file in ("model.onnx", "decoder.onnx", "encoder.onnx", "model.onnx_data"):
        assert (tmp_path / "onnx" / file).read_bytes() == (exported(GOLDEN / name) / file).read_bytes(), file


def test_a_trimmed_vocabulary_gives_the_first_logits(tmp_path, reference):
    reference = reference("vocab-padded")
    neo_tf.export_onnx(GOLDEN / "vocab-padded", tmp_path / "onnx", n_vocab=257)
    for runner in (Session(tmp_path / "onnx"), PortableSession(tmp_path / "onnx")):
        logits = runner.prefill(0, reference.inputs[0], 0, logits_of="all")
        assert logits.shape == (64, 257)
        assert np.abs(logits - reference.logits[0, :, :257]).max() < TOLERANCE


@pytest.mark.parametrize("n_vocab", [321, 100_000])
def test_a_vocabulary_cannot_grow(tmp_path, n_vocab):
    with pytest.raises(ConfigError, match=f"320.*{n_vocab}"):
        neo_tf.export_onnx(GOLDEN / "vocab-padded", tmp_path / "onnx", n_vocab=n_vocab)
    assert not (tmp_path / "onnx").exists()


def test_the_vocabulary_is_not_cut_below_the_tokenizers(tmp_path):
    with pytest.raises(ConfigError, match=r"2000.*2048"):
        neo_tf.export_onnx(TINY_PYTHON, tmp_path / "onnx", n_vocab=2000)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_config_exports_and_runs(tmp_path, name):
    params = json.loads((GOLDEN / "act-relu" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(params | {"activation_fn": name}))
    neo_tf.export_onnx(random_checkpoint(tmp_path / "config.json"), tmp_path / "onnx")
    assert Session(tmp_path / "onnx").config.activation_fn == name


def test_progress_adds_up_to_the_source(tmp_path):
    seen = []
    checkpoint = neo_tf.export_onnx(
        GOLDEN / "tiny-global", tmp_path / "onnx", progress=lambda size, name: seen.append((name, size))
    )
    assert len({name for name, _ in seen}) == len(seen)
    assert sum(size for _, size in seen) == pytest.approx(checkpoint.nbytes)


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"'fp64'.*fp32"):
        neo_tf.export_onnx(GOLDEN / "tiny-global", tmp_path / "onnx", precision="fp64")


def test_an_onnx_folder_is_no_source(tmp_path, demo_folder):
    with pytest.raises(CheckpointError, match="ONNX folder"):
        neo_tf.export_onnx(demo_folder, tmp_path / "onnx")


def test_a_full_folder_is_replaced_with_force_alone(tmp_path):
    target = tmp_path / "onnx"
    neo_tf.export_onnx(GOLDEN / "tiny-global", target)
    with pytest.raises(OutputError, match="not empty"):
        neo_tf.export_onnx(GOLDEN / "vocab-padded", target)
    assert Session(target).config.n_vocab == 257
    neo_tf.export_onnx(GOLDEN / "vocab-padded", target, force=True)
    assert Session(target).config.n_vocab == 320
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "forced"])
def test_an_export_that_fails_leaves_what_was_there(tmp_path, old, error):
    target = tmp_path / "onnx"
    if old:
        neo_tf.export_onnx(GOLDEN / "tiny-global", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()} if old else None
    calls = iter(range(5))

    def stop_soon(size, name):
        if next(calls) == 3:
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        neo_tf.export_onnx(GOLDEN / "vocab-padded", target, force=old, progress=stop_soon)
    assert [path.name for path in tmp_path.iterdir()] == (["onnx"] if old else [])
    if old:
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_damaged_source_is_noticed_though_the_tensors_are_whole(tmp_path):
    """The damage is a flipped byte in an optimizer slot, which the export itself never reads."""
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "tiny-global", source)
    shard = source / "model.ckpt-300.data-00001-of-00002"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        neo_tf.export_onnx(source, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

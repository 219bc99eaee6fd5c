import json
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import FORMATS, assert_same_bits, read_all, worst
from conftest import GOLDEN, GOLDEN_NAMES, TINY_PYTHON, TOLERANCE, Reference

import neo_tf
from neo_tf.checkpoints.checkpoint import LazyTensor
from neo_tf.errors import CheckpointError, ConfigError, RequestError

PADDED = GOLDEN / "vocab-padded"


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("source", [TINY_PYTHON, GOLDEN / "tiny-global", PADDED], ids=lambda path: path.name)
def test_every_format_to_every_format_bit_for_bit(tmp_path, source, first, second):
    neo_tf.convert(source, tmp_path / "first", first)
    neo_tf.convert(tmp_path / "first", tmp_path / "second", second)
    original, converted = neo_tf.open_checkpoint(source), neo_tf.open_checkpoint(tmp_path / "second")
    assert converted.format == second
    reader = tf.train.load_checkpoint(str(source))
    assert_same_bits(read_all(converted), {name: reader.get_tensor(name) for name in converted.tensors})
    assert converted.config == original.config
    assert converted.config.training["global_step"] == reader.get_tensor("global_step")
    assert converted.config.training["lr_decay"] == "cosine"
    tokenizer = source / "byte-level-bpe.tokenizer.json"
    assert converted.files.get("tokenizer.json") == (tokenizer.read_bytes() if tokenizer.exists() else None)


@pytest.mark.parametrize("to", FORMATS)
def test_progress_tells_of_every_tensor_once(tmp_path, to):
    seen = []
    checkpoint = neo_tf.convert(PADDED, tmp_path / "dst", to, progress=lambda size, name: seen.append((name, size)))
    assert sorted(seen) == sorted((name, tensor.nbytes) for name, tensor in checkpoint.tensors.items())


@pytest.mark.parametrize("to", ["keras", "huggingface"])
def test_weights_are_never_in_memory_all_at_once(tmp_path, to):
    params = {"n_vocab": 2000, "n_ctx": 64, "n_embd": 256, "n_head": 4, "n_layer": 8}
    (tmp_path / "config.json").write_text(json.dumps(params | {"attention_types": [[["global"], 8]]}))
    checkpoint = neo_tf.init_checkpoint(tmp_path / "config.json", tmp_path / "src", "huggingface")
    largest = max(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert checkpoint.nbytes > 10 * largest
    neo_tf.convert(tmp_path / "src", tmp_path / "warm", to)  # imports are not what is measured
    tracemalloc.start()
    neo_tf.convert(tmp_path / "src", tmp_path / "dst", to)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * largest


def test_unknown_format_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(RequestError, match=r"'onnx'.*keras, huggingface, mesh-tf"):
        neo_tf.convert(tmp_path / "nothing", tmp_path / "dst", "onnx")


# ---- padded vocabulary


def test_padded_vocabulary_is_kept_unless_asked(tmp_path):
    neo_tf.convert(PADDED, tmp_path / "kept", "huggingface")
    assert neo_tf.open_checkpoint(tmp_path / "kept").config.n_vocab == 320


@pytest.mark.parametrize("to", FORMATS)
def test_trimmed_vocabulary_gives_the_first_columns_of_the_originals_logits(tmp_path, to):
    neo_tf.convert(PADDED, tmp_path / "trimmed", to, n_vocab=257)
    checkpoint, expected = neo_tf.open_checkpoint(tmp_path / "trimmed"), Reference.load(PADDED)
    whole = tf.train.load_checkpoint(str(PADDED)).get_tensor("gpt2/wte")
    assert checkpoint.config.n_vocab == 257
    assert checkpoint.read("gpt2/wte").tobytes() == whole[:257].tobytes()
    got = np.asarray(neo_tf.GPTNeo.from_checkpoint(checkpoint)(expected.inputs))[:, expected.positions]
    assert got.shape[-1] == 257
    assert worst(got, expected.logits[..., :257]) <= TOLERANCE


@pytest.mark.parametrize(
    ("source", "n_vocab", "message"),
    [
        (PADDED, 321, "320 to 321"),
        (PADDED, 0, "320 to 0"),
        (TINY_PYTHON, 2047, "to 2047: the tokenizer uses 2048 ids"),
    ],
)
def test_vocabulary_that_cannot_be_trimmed_so_is_refused(tmp_path, source, n_vocab, message):
    with pytest.raises(ConfigError, match=message):
        neo_tf.convert(source, tmp_path / "dst", n_vocab=n_vocab)
    assert list(tmp_path.iterdir()) == []


def test_end_of_text_is_not_cut_off(tmp_path):
    neo_tf.convert(PADDED, tmp_path / "with-ids", "huggingface")
    config = json.loads((tmp_path / "with-ids" / "config.json").read_text())
    (tmp_path / "with-ids" / "config.json").write_text(json.dumps(config | {"eos_token_id": 256}))
    checkpoint = neo_tf.open_checkpoint(tmp_path / "with-ids")
    assert checkpoint.with_vocab(257).config.eos_token_id == 256
    with pytest.raises(ConfigError, match="256"):
        checkpoint.with_vocab(256)


# ---- a Checkpoint checks itself


def test_checkpoint_made_by_hand_is_checked():
    source = neo_tf.open_checkpoint(PADDED)
    with pytest.raises(CheckpointError, match="missing 1"):
        neo_tf.Checkpoint(
            source.path,
            "keras",
            source.config,
            {name: tensor for name, tensor in source.tensors.items() if name != "gpt2/wpe"},
        )
    double = LazyTensor((320, 32), np.dtype(np.float64), lambda: np.zeros((320, 32)))
    with pytest.raises(CheckpointError, match="float64"):
        neo_tf.Checkpoint(source.path, "keras", source.config, source.tensors | {"gpt2/wte": double})


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_option_survives_keras_and_the_originals_format(name, tmp_path):
    source = neo_tf.open_checkpoint(GOLDEN / name)
    expected = read_all(source)
    neo_tf.convert(GOLDEN / name, tmp_path / "keras", "keras")
    neo_tf.convert(tmp_path / "keras", tmp_path / "original", "mesh-tf")
    for folder in ("keras", "original"):
        found = neo_tf.open_checkpoint(tmp_path / folder)
        assert found.config == source.config
        assert_same_bits(read_all(found), expected)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_saved_model_loads_with_every_option(name, tmp_path):
    import keras

    model = neo_tf.GPTNeo.from_checkpoint(GOLDEN / name)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for path, weight in model.canonical_weights.items():
        assert np.array_equal(weight, loaded.canonical_weights[path]), path

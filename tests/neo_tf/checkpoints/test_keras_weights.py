import json

import h5py
import numpy as np
import pytest
from checkpoint_helpers import assert_same_bits, flip_byte, read_all
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from neo_tf.errors import CheckpointError, NeoTFError

ACT_RELU = GOLDEN / "act-relu"


@pytest.fixture
def folder(tmp_path):
    neo_tf.convert(ACT_RELU, tmp_path / "keras", "keras")
    return tmp_path / "keras"


def keras_values(model):
    return {name: np.asarray(weight.value) for name, weight in model.canonical_weights.items()}


def other_weights(config, dtype=None):
    """A model of the same shape with other weights: what loading must overwrite."""
    model = neo_tf.GPTNeo(config, dtype=dtype)
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 7, np.float32))
    return model


def test_load_weights_of_keras_reads_the_file_as_it_is(folder):
    expected = read_all(neo_tf.open_checkpoint(ACT_RELU))
    model = other_weights(neo_tf.open_checkpoint(ACT_RELU).config)
    model.load_weights(folder / "model.weights.h5")
    assert_same_bits(keras_values(model), expected)


def test_folder_has_the_config_the_weights_and_the_tokenizer(tmp_path, folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.weights.h5"}
    neo_tf.convert(TINY_PYTHON, tmp_path / "tiny", "keras")
    assert (tmp_path / "tiny" / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_keras_saved_are_read(tmp_path, dtype):
    source = neo_tf.open_checkpoint(GOLDEN / "tiny-global")  # bfloat16: both precisions hold its values
    model = neo_tf.GPTNeo.from_checkpoint(source, dtype=dtype)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_original()))
    model.save_weights(tmp_path / "model.weights.h5")
    checkpoint = neo_tf.open_checkpoint(tmp_path)
    assert checkpoint.dtype == dtype
    assert_same_bits(read_all(checkpoint), {name: t.astype(dtype) for name, t in read_all(source).items()})


def test_weights_saved_with_an_optimizer_are_read(tmp_path):
    model = neo_tf.GPTNeo.from_checkpoint(ACT_RELU)
    model.compile("adam", loss=model.loss_fn)
    model.optimizer.build(model.trainable_variables)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_original()))
    model.save_weights(tmp_path / "model.weights.h5")
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path)), read_all(neo_tf.open_checkpoint(ACT_RELU)))


def test_bfloat16_is_marked_as_keras_marks_it(tmp_path):
    neo_tf.convert(GOLDEN / "tiny-global", tmp_path / "keras", "keras")
    with h5py.File(tmp_path / "keras" / "model.weights.h5") as store:
        assert store["vars/gpt2/h3/attn/q"].attrs["dtype"] == "bfloat16"
    source = neo_tf.open_checkpoint(GOLDEN / "tiny-global")
    model = other_weights(source.config, dtype="bfloat16")
    model.load_weights(tmp_path / "keras" / "model.weights.h5")
    assert_same_bits(keras_values(model), read_all(source))


def test_missing_and_unknown_variables_are_listed(folder):
    with h5py.File(folder / "model.weights.h5", "a") as store:
        store.move("vars/gpt2/h1/attn/q", "vars/gpt2/h1/attn/query")
    with pytest.raises(CheckpointError) as refused:
        neo_tf.open_checkpoint(folder)
    assert "missing 1 (gpt2/h1/attn/q)" in str(refused.value)
    assert "unknown to the model 1 (gpt2/h1/attn/query)" in str(refused.value)


def test_weights_of_another_keras_model_are_refused(folder):
    with h5py.File(folder / "model.weights.h5", "w") as store:
        store["layers/dense/vars/0"] = np.zeros((3, 4))
    with pytest.raises(CheckpointError, match=r"missing 30 \(gpt2/wte"):
        neo_tf.open_checkpoint(folder)


def test_damage_is_refused_or_unnoticed_but_never_another_error(folder):
    # HDF5 has no checksums: a flipped bit of a weight cannot be seen, damage to the structure must be refused.
    file = folder / "model.weights.h5"
    whole, refusals = file.read_bytes(), 0
    for offset in range(0, 16_000, 61):
        flip_byte(file, offset)
        try:
            read_all(neo_tf.open_checkpoint(folder))
        except NeoTFError as refused:
            refusals += 1
            assert "\n" not in str(refused)
        file.write_bytes(whole)
    assert refusals > 5

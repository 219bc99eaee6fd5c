import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import worst
from conftest import DECODABLE, GOLDEN, TINY_PYTHON, TOLERANCE, Reference

import neo_tf
from neo_tf import GPTNeo, GPTNeoConfig
from neo_tf.errors import ConfigError
from neo_tf.training.loss import CrossEntropyWithZLoss

ACT_RELU = GOLDEN / "act-relu"
IDS = np.random.default_rng(0).integers(0, 257, (2, 24))
# The original's own float32 logits of tiny-python lie up to 1.7e-4 off a float64 computation of the same model.
LOSS = CrossEntropyWithZLoss()
ORIGINALS = {name: (GOLDEN / name, TOLERANCE) for name in DECODABLE} | {"tiny-python": (TINY_PYTHON, 2.5e-4)}


@functools.cache
def golden(name):
    """A golden checkpoint's model, its reference, and the model's logits for the reference's inputs."""
    folder = ORIGINALS[name][0]
    model, expected = GPTNeo.from_checkpoint(folder), Reference.load(folder)
    return model, expected, np.asarray(model(expected.inputs))


# ---- what the original computed


@pytest.mark.parametrize("name", ORIGINALS)
def test_logits_of_every_stored_position_are_the_originals(name):
    _, expected, logits = golden(name)
    assert logits.dtype == np.float32 and logits.shape[:2] == expected.inputs.shape
    assert worst(logits[:, expected.positions], expected.logits) <= ORIGINALS[name][1]


@pytest.mark.parametrize("name", ORIGINALS)
def test_loss_is_the_originals(name):
    _, expected, logits = golden(name)
    loss = float(LOSS(expected.labels, logits))
    assert loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["act-relu", "tiny-global"])
def test_loss_of_every_token_is_the_originals(name):
    _, expected, logits = golden(name)
    data = np.load(GOLDEN / name / "reference.npz")
    key = "loss_batch_fp32_compute" if "loss_batch_fp32_compute" in data.files else "loss_batch"
    assert worst(LOSS.call(expected.labels, logits), data[key]) <= 1e-4


@pytest.mark.parametrize("name", ORIGINALS)
def test_variable_paths_are_the_originals_names(name):
    model = golden(name)[0]
    reader = tf.train.load_checkpoint(str(ORIGINALS[name][0]))
    shapes = reader.get_variable_to_shape_map()
    names = {n for n in shapes if n != "global_step" and not n.endswith(("/adam_m", "/adam_v"))}
    assert {weight.path for weight in model.trainable_weights} == names
    assert len(model.weights) == len(names)
    for weight in model.weights:
        assert np.asarray(weight).tobytes() == reader.get_tensor(weight.path).astype(np.float32).tobytes(), weight.path


# ---- what a causal model must do


def test_a_token_changes_nothing_before_it_and_nothing_beyond_all_windows():
    model, expected, logits = golden("tiny-local-radius")
    changed = expected.inputs.copy()
    changed[:, 100] = (changed[:, 100] + 1) % 257
    difference = np.abs(np.asarray(model(changed)) - logits).max(axis=(0, 2))
    assert np.all(difference[:100] == 0) and difference[100] > 0
    reach = 4 * (16 - 1)  # four local layers of radius 16, in each of which a token sees itself and the 15 before it
    assert difference[100 + 1 : 100 + reach + 1].max() > 0 and np.all(difference[100 + reach + 1 :] == 0)


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of one token, which is right here
def test_any_length_up_to_n_ctx_gives_the_same_prefix():
    model, expected, logits = golden("tiny-global-local")
    for length in (1, 2, 33, 300):
        assert worst(model(expected.inputs[:, :length]), logits[:, :length]) <= TOLERANCE


def test_rows_do_not_touch_each_other():
    model, expected, logits = golden("act-relu")
    assert worst(model(expected.inputs[1:]), logits[1:]) <= 1e-5


# ---- Keras


def test_fit_lowers_the_loss():
    model = GPTNeo.from_checkpoint(ACT_RELU)
    expected = Reference.load(ACT_RELU)
    model.compile(keras.optimizers.Adam(1e-3), loss=model.loss_fn)
    before = model.evaluate(expected.inputs, expected.labels, verbose=0)
    assert before == pytest.approx(expected.loss, rel=1e-4)
    model.fit(expected.inputs, expected.labels, epochs=8, batch_size=2, verbose=0)
    assert model.evaluate(expected.inputs, expected.labels, verbose=0) < 0.8 * before


def test_every_variable_learns():
    model = GPTNeo.from_checkpoint(GOLDEN / "tiny-global")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(LOSS(IDS[:, 1:], model(IDS[:, :-1], training=True)))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0, weight.path


def save_and_load(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_saved_model_loads_with_config_and_weights(tmp_path, dtype):
    model = GPTNeo.from_checkpoint(GOLDEN / "tiny-local-radius", dtype=dtype)
    loaded = save_and_load(model, tmp_path)
    assert loaded.config == model.config and loaded.config.training == model.config.training
    assert loaded.dtype_policy.name == dtype
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]
    assert np.array_equal(loaded(IDS), model(IDS))


def test_compiled_model_loads_and_goes_on_training(tmp_path):
    model = GPTNeo.from_checkpoint(ACT_RELU)
    model.compile(keras.optimizers.Adam(1e-3), loss=model.loss_fn)
    model.fit(IDS[:, :-1], IDS[:, 1:], verbose=0)
    loaded = save_and_load(model, tmp_path)
    assert np.array_equal(loaded(IDS), model(IDS))
    again, other = (each.evaluate(IDS[:, :-1], IDS[:, 1:], verbose=0) for each in (model, loaded))
    assert other == pytest.approx(again, rel=1e-6)
    assert loaded.optimizer.iterations == 1


def test_model_of_another_name_loses_no_weights(tmp_path):
    model = GPTNeo(GPTNeoConfig(257, 32, 16, 2, 1, ("global",)), name="student")
    assert np.array_equal(save_and_load(model, tmp_path)(IDS), model(IDS))


def test_two_models_live_side_by_side():
    config = GPTNeoConfig(257, 32, 16, 2, 1, ("global",))
    one, other = GPTNeo(config), GPTNeo(config)
    assert [weight.path for weight in one.weights] == [weight.path for weight in other.weights]
    assert worst(one(IDS), other(IDS)) > 0


def test_converted_weights_load_into_the_model(tmp_path):
    neo_tf.convert(ACT_RELU, tmp_path / "keras", "keras")
    source = GPTNeo.from_checkpoint(ACT_RELU)
    model = GPTNeo(source.config)
    assert worst(model(IDS), source(IDS)) > 0.1
    model.load_weights(tmp_path / "keras" / "model.weights.h5")
    assert np.array_equal(model(IDS), source(IDS))
    model.save_weights(tmp_path / "again.weights.h5")
    again = GPTNeo(source.config)
    again.load_weights(tmp_path / "again.weights.h5")
    assert np.array_equal(again(IDS), source(IDS))


@pytest.mark.parametrize("name", ["tiny-global-local", "tiny-global"])
def test_mixed_bfloat16_stays_near_float32(name):
    _, expected, logits = golden(name)
    model = GPTNeo.from_checkpoint(GOLDEN / name, dtype="mixed_bfloat16")
    mixed = model(expected.inputs)
    assert mixed.dtype == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    # bfloat16 has 8 bits, so that logits differ by a few hundredths; a smaller difference would mean float32.
    assert 1e-3 < worst(mixed, logits) < 0.3
    loss = float(LOSS(expected.labels, mixed))
    assert loss == pytest.approx(expected.loss, abs=0.02)


def test_progress_of_loading_tells_of_every_variable():
    seen = []
    checkpoint = neo_tf.open_checkpoint(ACT_RELU)
    GPTNeo.from_checkpoint(checkpoint, progress=lambda size, name: seen.append((name, size)))
    assert sorted(seen) == sorted((name, tensor.nbytes) for name, tensor in checkpoint.tensors.items())


# ---- dropout


def with_dropout(kind="global", **rates):
    """A model with these dropout rates, and with weights that are large enough for dropout to show."""
    model = GPTNeo(GPTNeoConfig(257, 32, 16, 2, 2, (kind,) * 2, **rates))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.normal(0, 0.3, weight.shape))
    return model


@pytest.mark.parametrize("rate", ["embed_dropout", "attn_dropout", "res_dropout"])
def test_dropout_acts_in_training_alone(rate):
    model, without = with_dropout(**{rate: 0.5}), with_dropout()
    assert np.array_equal(model(IDS), without(IDS))
    assert np.array_equal(model(IDS, training=False), without(IDS))
    first, second = np.asarray(model(IDS, training=True)), np.asarray(model(IDS, training=True))
    assert worst(first, without(IDS)) > 1e-3 and worst(first, second) > 1e-3


def test_local_layers_drop_no_attention_weights():
    model = with_dropout("local", attn_dropout=0.9)
    assert np.array_equal(model(IDS, training=True), model(IDS))


def test_without_rates_training_changes_nothing():
    model = golden("act-relu")[0]
    assert np.array_equal(model(IDS, training=True), model(IDS))


def test_loss_has_the_configs_z_loss():
    expected = Reference.load(ACT_RELU)
    model = GPTNeo.from_checkpoint(ACT_RELU)
    logits = model(expected.inputs)
    plain = GPTNeo(model.config.replace(training=model.config.training | {"z_loss": 0.0}))
    log_z = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))
    difference = float(model.loss_fn(expected.labels, logits)) - float(plain.loss_fn(expected.labels, logits))
    assert difference == pytest.approx(1e-4 * np.square(log_z).mean(), rel=1e-3)
    with pytest.raises(ConfigError, match="entmax_loss"):
        _ = GPTNeo(model.config.replace(training={"entmax_loss": True})).loss_fn

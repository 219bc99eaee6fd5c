import dataclasses
import json

import pytest
from conftest import FIXTURES, GOLDEN, GOLDEN_NAMES, TINY_PYTHON

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.training.hyperparameters import Hyperparameters
from neo_tf.training.presets import preset, preset_names
from neo_tf.variables import count_parameters

ADAM = json.loads((FIXTURES / "training" / "microbatch-shared" / "config.json").read_text())
ADAFACTOR = json.loads((FIXTURES / "training" / "adafactor" / "config.json").read_text())


def changed(params, **changes):
    """The config with changed keys; those that are None are taken out."""
    return {key: value for key, value in (params | changes).items() if value is not None}


def test_an_originals_config_is_read_as_it_is():
    assert Hyperparameters.from_original(ADAM) == Hyperparameters(
        optimizer="adam",
        lr=0.005,
        train_batch_size=4,
        train_steps=20,
        warmup_steps=5,
        gradient_clipping=1.0,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,
        lr_decay="cosine",
        lr_decay_end=20,
        tokens_per_mb_per_replica=128,
    )
    read = Hyperparameters.from_original(ADAFACTOR)
    assert (read.optimizer, read.weight_decay, read.ada_epsilon1, read.ada_epsilon2) == ("adafactor", 0.1, 1e-30, 1e-3)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_config_that_the_original_trained_with_is_read(name):
    Hyperparameters.from_file(GOLDEN / name / "config.json")
    Hyperparameters.from_file(TINY_PYTHON / "config.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weight_decay": None}, {"weight_decay": 0.0}),
        ({"lr_decay": None}, {"lr_decay": None}),
        ({"lr_decay": "exponential"}, {"lr_decay": None}),
        ({"lr_decay_end": 16}, {"lr_decay_end": 16}),
        ({"opt_name": "Adam"}, {"optimizer": "adam"}),
        ({"precision": "float16"}, {"bfloat16": False}),
        ({"precision": "bfloat16"}, {"bfloat16": True}),
        ({"z_loss": 0.0}, {"z_loss": 0.0}),
        ({"gradient_clipping": 0}, {"gradient_clipping": 0}),
        ({"recompute_grad": True}, {"recompute_grad": True}),
    ],
)
def test_keys_mean_what_they_mean_to_the_original(changes, expected):
    read = dataclasses.asdict(Hyperparameters.from_original(changed(ADAM, **changes)))
    assert {key: read[key] for key in expected} == expected


def test_any_other_optimizer_is_adafactor():
    assert Hyperparameters.from_original(ADAFACTOR | {"opt_name": "sgd"}).optimizer == "adafactor"


@pytest.mark.parametrize(
    ("params", "key"),
    [
        *((ADAM, key) for key in ("gradient_clipping", "warmup_steps", "opt_name", "beta1", "beta2", "epsilon")),
        *((ADAM, key) for key in ("embed_dropout", "attn_dropout", "res_dropout", "lr", "train_steps")),
        *((ADAM, key) for key in ("train_batch_size", "iterations", "eval_steps", "predict_steps")),
        *((ADAFACTOR, key) for key in ("ada_epsilon1", "ada_epsilon2", "beta1", "weight_decay")),
    ],
)
def test_a_key_that_the_original_needs_is_named_where_it_is_missing(params, key, tmp_path):
    for without in (changed(params, **{key: None}), params | {key: None}):
        (tmp_path / "config.json").write_text(json.dumps(without))
        with pytest.raises(ConfigError, match=rf"config\.json: missing {key}: the original's training needs it"):
            Hyperparameters.from_file(tmp_path / "config.json")


def test_keys_that_the_optimizer_or_the_layers_do_not_read_may_be_missing():
    Hyperparameters.from_original(changed(ADAFACTOR, beta2=None, epsilon=None))
    local = changed(ADAM, attn_dropout=None, attention_types=[[["local"], 3]])
    Hyperparameters.from_original(local)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_name": 3}, "opt_name must be a name"),
        ({"lr": "fast"}, "lr must be a number that is not negative, not 'fast'"),
        ({"beta1": 1}, r"beta1 must be a number in \[0, 1\), not 1"),
        ({"warmup_steps": 1.5}, "warmup_steps must be an integer from 0 on, not 1.5"),
        ({"train_steps": 0}, "train_steps must be an integer from 1 on, not 0"),
        ({"lr_decay_end": 0}, "lr_decay_end"),
        ({"tokens_per_mb_per_replica": 0}, "tokens_per_mb_per_replica"),
        ({"entmax_loss": True}, "entmax_loss"),
        ({"mlm_training": True}, "mlm_training"),
        ({"n_embd": None}, "missing n_embd"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        Hyperparameters.from_original(changed(ADAM, **changes))


def test_z_loss_cannot_be_null():
    with pytest.raises(ConfigError, match="z_loss must be a number, not null"):
        Hyperparameters.from_original(ADAM | {"z_loss": None})


@pytest.mark.parametrize(("tokens", "expected"), [(64, 4), (100, 4), (128, 2), (192, 2), (256, 1), (9999, 1), (1, 4)])
def test_the_number_of_microbatches_is_the_originals(tokens, expected):
    read = Hyperparameters.from_original(ADAM | {"tokens_per_mb_per_replica": tokens})
    assert read.microbatches(n_ctx=64) == expected


def test_microbatches_are_counted_in_a_replicas_part_of_the_batch():
    read = Hyperparameters.from_original(ADAM | {"tokens_per_mb_per_replica": 64})
    assert read.microbatches(64, replicas=2) == 2
    with pytest.raises(ConfigError, match="train_batch_size 4 is not divisible by 3 replicas"):
        read.microbatches(64, replicas=3)
    assert Hyperparameters.from_original(changed(ADAM, tokens_per_mb_per_replica=None)).microbatches(64) == 1


# ---- presets


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_config_that_the_original_trains_with(name):
    params = preset(name)
    assert Hyperparameters.from_original(params).optimizer == "adam"
    assert GPTNeoConfig.from_original(params).n_ctx == (1024 if name == "gpt2_small" else 2048)


@pytest.mark.parametrize(
    ("size", "millions"),
    [("125M", 125), ("350M", 357), ("760M", 760), ("1.3B", 1316), ("2.7B", 2651), ("6.7B", 6658), ("13B", 12853)],
)
def test_a_preset_has_the_size_that_it_is_named_after(size, millions):
    assert count_parameters(GPTNeoConfig.from_original(preset(size))) / 1e6 == pytest.approx(millions, abs=2)


def test_an_unknown_preset_is_refused():
    with pytest.raises(RequestError, match="5B: no preset"):
        preset("5B")

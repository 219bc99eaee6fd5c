"""Mixture of experts: Keras computes it like the original, and the graphs like a decoder must.

In the original all positions of a batch compete for an expert's capacity, second choices after all first ones: a
token's logits depend on the rest of the batch and on later tokens. Keras does the same, so that training and evaluation
agree with the original. The graphs give every position both its experts, so that a sequence's logits depend neither on
its batch nor on the chunks of its prefill. This is the original with enough capacity for all positions.
"""

import json

import numpy as np
import pytest
from conftest import GOLDEN, TOLERANCE
from numpy_reference import forward

import neo_tf
from neo_tf.errors import ConfigError
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.runtime.device.session import Session

MOE = GOLDEN / "moe"


def params_with(**changes):
    params = json.loads((MOE / "config.json").read_text())
    return params | {"moe_params": params["moe_params"] | changes}


def test_keras_shares_the_room_as_the_original_does(reference):
    expected = reference("moe")
    model = neo_tf.GPTNeo.from_checkpoint(MOE)
    logits = model(expected.inputs)
    assert np.abs(np.asarray(logits)[:, expected.positions] - expected.logits).max() < TOLERANCE
    # The original adds the balancing loss in evaluation too.
    loss = np.mean(model.loss_fn(expected.labels, logits)) + sum(float(extra) for extra in model.losses)
    assert loss == pytest.approx(expected.loss, abs=1e-5)
    model.compile("adam", loss=model.loss_fn)
    assert model.evaluate(expected.inputs, expected.labels, verbose=0) == pytest.approx(expected.loss, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"moe_second_policy_eval": "none"}, {"moe_second_policy_eval": "threshold"}])
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("group", [1024, 50, 32])
def test_keras_shares_any_room_by_any_policy(changes, factor, group, reference, tmp_path):
    ids = reference("moe").inputs[:, :45]
    params = params_with(moe_capacity_factor_eval=factor, moe_group_size=group, **changes)
    (tmp_path / "config.json").write_text(json.dumps(params))
    checkpoint = neo_tf.open_checkpoint(MOE, config=tmp_path / "config.json")
    expected = forward(params, checkpoint.read, ids)
    assert np.abs(np.asarray(neo_tf.GPTNeo.from_checkpoint(checkpoint)(ids)) - expected).max() < TOLERANCE


@pytest.mark.parametrize("policy", ["all", "none", "threshold"])
def test_graphs_give_every_position_its_experts(policy, reference, tmp_path):
    ids = reference("moe").inputs
    neo_tf.export_onnx(MOE, tmp_path / "onnx", moe_policy=policy)
    params = params_with(moe_capacity_factor_eval=4.0, moe_second_policy_eval=policy)
    expected = forward(params, neo_tf.open_checkpoint(MOE).read, ids)
    session, portable = Session(tmp_path / "onnx"), PortableSession(tmp_path / "onnx")
    for row in range(2):
        for runner in (session, portable):
            assert np.abs(runner.prefill(0, ids[row], 0, logits_of="all") - expected[row]).max() < TOLERANCE
            for position in range(ids.shape[1]):
                logits = runner.prefill(0, ids[row, position : position + 1], position)
                assert np.abs(logits[0] - expected[row, position]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_the_activation_is_the_key_beside_moe_params(name, reference, tmp_path):
    ids = reference("moe").inputs
    (tmp_path / "config.json").write_text(json.dumps(params_with() | {"moe_activation": name}))
    checkpoint = neo_tf.open_checkpoint(MOE, config=tmp_path / "config.json")
    assert checkpoint.config.to_original()["moe_activation"] == name
    logits = np.asarray(neo_tf.GPTNeo.from_checkpoint(checkpoint)(ids))
    assert np.abs(logits - neo_tf.GPTNeo.from_checkpoint(MOE)(ids)).max() > 0.01
    neo_tf.export_onnx(checkpoint, tmp_path / "onnx")
    assert max(found.error for found in neo_tf.verify(checkpoint, tmp_path / "onnx")) < TOLERANCE


def test_an_expert_has_room_for_one_at_least():
    model = neo_tf.GPTNeo.from_checkpoint(MOE)
    roomy = model.config.replace(moe_params=model.config.moe_params | {"moe_capacity_factor_eval": 4.0})
    other = neo_tf.GPTNeo(roomy)
    for name, weight in other.canonical_weights.items():
        weight.assign(model.canonical_weights[name])
    one_token = np.array([[5]])  # int(1 * 2.0 / 4) would be a capacity of 0
    assert np.abs(model(one_token) - other(one_token)).max() == 0


def test_the_random_default_is_refused_and_replaced_on_request(tmp_path):
    params = json.loads((MOE / "config.json").read_text())
    del params["moe_params"]["moe_second_policy_eval"]
    (tmp_path / "config.json").write_text(json.dumps(params))
    with pytest.raises(ConfigError, match=r"moe_second_policy_eval is 'random'.*--moe-policy"):
        neo_tf.open_checkpoint(MOE, config=tmp_path / "config.json")
    checkpoint = neo_tf.open_checkpoint(MOE, config=tmp_path / "config.json", moe_policy="all")
    assert checkpoint.config == neo_tf.open_checkpoint(MOE).config
    with pytest.raises(ConfigError, match="'some' is not one of"):
        neo_tf.open_checkpoint(MOE, config=tmp_path / "config.json", moe_policy="some")


def test_verify_compares_what_decoding_means(tmp_path):
    neo_tf.export_onnx(MOE, tmp_path / "onnx")
    assert max(found.error for found in neo_tf.verify(MOE, tmp_path / "onnx")) < TOLERANCE


def test_training_uses_its_own_policies_and_room(reference):
    expected = reference("moe")
    model = neo_tf.GPTNeo.from_checkpoint(MOE)
    model.compile("adam", loss=model.loss_fn)
    history = model.fit(expected.inputs, expected.labels, epochs=3, batch_size=1, verbose=0).history["loss"]
    assert history[-1] < history[0]
    tight = model.config.replace(moe_params=model.config.moe_params | {"moe_capacity_factor_train": 0.1})
    other = neo_tf.GPTNeo(tight)
    for name, weight in other.canonical_weights.items():
        weight.assign(model.canonical_weights[name])
    assert np.abs(model(expected.inputs) - other(expected.inputs)).max() == 0
    assert np.abs(model(expected.inputs, training=True) - other(expected.inputs, training=True)).max() > 0.1

"""Random combinations of the original's options: Keras and both graphs against float64 numpy."""

import json
import random
import zlib

import numpy as np
import pytest
from conftest import TOLERANCE
from numpy_reference import ACTIVATIONS, forward
from session_helpers import decoded_logits

import neo_tf
from neo_tf.checkpoints import Checkpoint, LazyTensor
from neo_tf.config import GPTNeoConfig
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.runtime.device.session import Session
from neo_tf.variables import model_variables

FLAGS = ("no_weight_tie", "rezero", "scalenorm", "macaron", "share_parameters", "mlp_glu")


def random_params(seed):
    """An original config with random options; each option is on in a third of the configs."""
    draw = random.Random(seed)
    heads, head = draw.choice([(4, 8), (2, 4), (1, 48), (3, 6), (2, 16)])
    layers = draw.choice([2, 3, 4])
    kinds = [draw.choice(["global", "local", "linear", "none", "global", "local"]) for _ in range(layers)]
    params = {"n_vocab": 61, "n_ctx": draw.choice([24, 40]), "n_embd": heads * head, "n_head": heads}
    params |= {"n_layer": layers, "attention_types": [[kinds, 1]]}
    params |= {"local_attention_radius": draw.choice([1, 5, 16, 100]), "activation_fn": draw.choice([*ACTIVATIONS])}
    params |= {flag: True for flag in FLAGS if draw.random() < 1 / 3}
    if draw.random() < 1 / 3:
        params["rotary_emb"] = draw.choice([True, False])  # false switches it on too
    if draw.random() < 1 / 3:
        params["axial_pos_emb"] = draw.choice([[4, 16], [3, 5], [8, 3]])
    if draw.random() < 1 / 3:
        params["num_mem_kv"] = draw.choice([1, 3])
    if draw.random() < 1 / 4:
        policy = draw.choice(["all", "none", "threshold"])
        params["moe_layers"] = sorted(draw.sample(range(layers), 2))
        params["moe_params"] = {"moe_num_experts": 4, "moe_hidden_size": 20, "moe_second_policy_eval": policy}
        params["moe_params"]["moe_capacity_factor_eval"] = 4.0  # enough capacity for all; test_moe.py has less
    return params


def random_checkpoint(params, seed, folder):
    config = GPTNeoConfig.from_original(params)

    def tensor(name, variable):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        value = generator.standard_normal(variable.shape) * (0.15 if variable.stddev else 0.1) + variable.mean
        return LazyTensor(variable.shape, np.dtype(np.float32), lambda: value.astype(np.float32))

    tensors = {name: tensor(name, variable) for name, variable in model_variables(config).items()}
    return Checkpoint(folder, "random", config, tensors)


@pytest.mark.parametrize("seed", range(24))
def test_options_compose_as_in_the_original(seed, tmp_path):
    params = random_params(seed)
    checkpoint = random_checkpoint(params, seed, tmp_path)
    ids = np.random.default_rng(seed).integers(0, params["n_vocab"], (2, params["n_ctx"]))
    expected = forward(params, checkpoint.read, ids)
    # The rounding error of float32 grows with the largest logit, and some of the random models have large ones.
    tolerance = max(TOLERANCE, 1e-5 * np.abs(expected).max())
    what = json.dumps(params)

    keras = np.asarray(neo_tf.GPTNeo.from_checkpoint(checkpoint)(ids))
    assert np.abs(keras - expected).max() < tolerance, what

    neo_tf.export_onnx(checkpoint, tmp_path / "onnx")
    session, portable = Session(tmp_path / "onnx", slots=2), PortableSession(tmp_path / "onnx")
    half = params["n_ctx"] // 2
    for row in range(2):
        whole = session.prefill(row, ids[row], 0, logits_of="all")
        assert np.abs(whole - expected[row]).max() < tolerance, what
        assert np.abs(portable.prefill(0, ids[row], 0, logits_of="all") - expected[row]).max() < tolerance, what
        # A chunk, then the rest token by token, in slots that held another sequence before.
        session.prefill(row, ids[row, :half], 0)
        portable.prefill(0, ids[row, :half], 0)
        for position in range(half, params["n_ctx"]):
            logits = portable.prefill(0, ids[row, position : position + 1], position)
            assert np.abs(logits[0] - expected[row, position]).max() < tolerance, what
    for position in range(half, params["n_ctx"]):
        logits = decoded_logits(session, 0, ids[:, position], [position, position])
        assert np.abs(logits - expected[:, position]).max() < tolerance, what

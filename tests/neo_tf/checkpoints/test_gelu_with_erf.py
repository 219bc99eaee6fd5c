"""A GPT-Neo with transformers' plain gelu, which is not the original's tanh form."""

import numpy as np
import pytest
import torch
import transformers

import neo_tf
from neo_tf.errors import ConfigError
from neo_tf.runtime.device.session import Session

PROMPT = np.arange(20) * 3 % 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=32,
        window_size=8,
        initializer_range=0.3,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=0,
    )
    where = tmp_path_factory.mktemp("gelu") / "huggingface"
    transformers.GPTNeoForCausalLM(config).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def expected(folder):
    model = transformers.GPTNeoForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.from_numpy(PROMPT)[None]).logits[0].numpy()


@pytest.mark.parametrize("ops", ["fused", "standard"])
def test_the_logits_are_transformers(folder, expected, tmp_path, ops):
    neo_tf.export_onnx(folder, tmp_path / "onnx", ops=ops)
    deviations = neo_tf.verify(folder, tmp_path / "onnx")
    assert all(deviation.failure("fp32") is None for deviation in deviations)
    model = neo_tf.GPTNeo.from_checkpoint(folder)
    assert np.abs(np.asarray(model(PROMPT[None]))[0] - expected).max() < 1e-4
    if ops == "fused":
        session = Session(tmp_path / "onnx", slots=1)
        assert session.config.activation_fn == "gelu_erf"


def test_the_original_cannot_hold_it_and_keras_can(folder, tmp_path):
    with pytest.raises(ConfigError, match="no activation_fn gelu_erf"):
        neo_tf.convert(folder, tmp_path / "original", to="mesh-tf")
    assert not (tmp_path / "original").exists()
    neo_tf.convert(folder, tmp_path / "keras", to="keras")
    neo_tf.convert(tmp_path / "keras", tmp_path / "again", to="huggingface")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "again").activation_function == "gelu"

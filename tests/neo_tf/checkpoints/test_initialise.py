import json
import math

import numpy as np
import pytest
import torch
from checkpoint_helpers import FORMATS, assert_same_bits, read_all
from conftest import TINY_PYTHON
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import neo_tf
from neo_tf.checkpoints import PRESETS
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.errors import ConfigError, RequestError
from neo_tf.variables import count_parameters

# Of the released models' own config.json: layers, heads, hidden size.
RELEASED = {"125M": (12, 12, 768), "350M": (24, 16, 1024), "1.3B": (24, 16, 2048), "2.7B": (32, 20, 2560)}
PARAMS = {"n_vocab": 700, "n_ctx": 80, "n_embd": 96, "n_head": 4, "n_layer": 4, "attention_types": [[["local"], 4]]}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PARAMS))
    return tmp_path / "config.json"


@pytest.mark.parametrize("size", RELEASED)
def test_preset_has_the_released_models_shape(size):
    layers, heads, hidden = RELEASED[size]
    config = PRESETS[size]
    assert (config.n_layer, config.n_head, config.n_embd) == (layers, heads, hidden)
    assert (config.n_vocab, config.n_ctx, config.eos_token_id) == (50257, 2048, 50256)
    assert config.attention_types == ("global", "local") * (layers // 2) and config.local_attention_radius == 256
    with torch.device("meta"):
        model = GPTNeoForCausalLM(GPTNeoConfig(**config.to_huggingface()))
    assert count_parameters(config) == model.num_parameters()


def test_every_preset_is_there():
    assert set(PRESETS) == set(RELEASED)


def test_same_seed_same_weights_and_another_seed_others(config):
    first, again, other = (read_all(random_checkpoint(config, seed=seed)) for seed in (1, 1, 2))
    assert_same_bits(first, again)
    drawn = [name for name, value in first.items() if value.ndim == 2]
    assert drawn and all(np.abs(first[name] - other[name]).max() > 0 for name in drawn)
    # No two variables share their random numbers.
    assert np.abs(first["gpt2/h0/attn/q"] - first["gpt2/h1/attn/q"]).max() > 0


def test_weights_are_distributed_as_the_original_draws_them(config):
    tensors = read_all(random_checkpoint(config))
    embd, head, layers = 96, 24, 4
    expected = {  # gpt-neo's models/gpt2/gpt2.py and models/layers.py; mesh_tensorflow's attention_params_simple
        "gpt2/wte": 0.02,
        "gpt2/wpe": 0.01,
        "gpt2/h2/attn/q": (embd * head) ** -0.5,
        "gpt2/h2/attn/k": embd**-0.5,
        "gpt2/h2/attn/v": embd**-0.5,
        "gpt2/h2/attn/o": embd**-0.5,
        "gpt2/h2/mlp/conv1d_main/c_fc/kernel": 0.02,
        "gpt2/h2/mlp/conv1d_main/c_proj/kernel": 0.02 / math.sqrt(layers),  # scale_by_depth
    }
    for name, stddev in expected.items():
        assert tensors[name].std() == pytest.approx(stddev, rel=0.05), name
        assert abs(tensors[name].mean()) < 5 * stddev / math.sqrt(tensors[name].size), name
    for name, value in tensors.items():
        if value.ndim == 1:
            assert np.all(value == (1 if name.endswith("/g") else 0)), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_holds_the_same_weights(tmp_path, config, to, precision):
    config.write_text(json.dumps(PARAMS | {"precision": precision}))
    neo_tf.init_checkpoint(config, tmp_path / "dst", to, seed=3)
    checkpoint = neo_tf.open_checkpoint(tmp_path / "dst")
    assert checkpoint.dtype == checkpoint.config.precision == precision
    assert_same_bits(read_all(checkpoint), read_all(random_checkpoint(config, seed=3)))


def test_config_may_be_of_either_format_and_brings_its_dataset_config(tmp_path, config):
    original = random_checkpoint(config).config
    (tmp_path / "hf.json").write_text(json.dumps(original.to_huggingface()))
    assert random_checkpoint(tmp_path / "hf.json").config == original
    checkpoint = random_checkpoint(TINY_PYTHON / "config.json")
    assert (checkpoint.config.eos_token_id, checkpoint.config.pad_token_id) == (0, 1)
    assert checkpoint.files["tokenizer.json"] == (TINY_PYTHON / "byte-level-bpe.tokenizer.json").read_bytes()


def test_what_cannot_be_initialised_is_refused(tmp_path, config):
    with pytest.raises(RequestError, match=r"126M.*125M, 350M, 1\.3B, 2\.7B"):
        random_checkpoint("126M")
    with pytest.raises(RequestError, match="-1"):
        random_checkpoint(config, seed=-1)
    config.write_text(json.dumps(PARAMS | {"n_head": 5}))
    with pytest.raises(ConfigError, match="n_embd 96 is not divisible by n_head 5"):
        random_checkpoint(config)

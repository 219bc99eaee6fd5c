"""LoRA adapters. tests/fixtures/lora holds adapters that PEFT wrote, with the logits that it computed with them."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoint_helpers import check_error_line, command, edit_json, worst
from conftest import FIXTURES
from safetensors.numpy import load_file, save_file
from transformers import GPTNeoForCausalLM

import neo_tf
from neo_tf.checkpoints.adapter import is_adapter
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.model_cache import resolve_model

LORA = FIXTURES / "lora"
BASE = LORA / "base"
ADAPTERS = ("plain", "patterns", "token-embedding", "head", "whole-modules", "more-tokens", "more-tokens-trained")
UNTIED = ("token-embedding", "head", "whole-modules", "more-tokens-trained")
TOKENS = np.arange(16)[None] * 7 % 32


@pytest.fixture
def adapter(tmp_path):
    """A copy of an adapter that names its base by path."""
    shutil.copytree(LORA / "plain", tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(BASE))
    return tmp_path / "adapter"


def logits(folder):
    with torch.no_grad():
        return GPTNeoForCausalLM.from_pretrained(folder).eval()(torch.from_numpy(TOKENS)).logits.numpy()[0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_model_computes_what_peft_computed(tmp_path, name):
    checkpoint = neo_tf.convert(BASE, tmp_path / "merged", "huggingface", adapter=LORA / name)
    expected = np.load(LORA / name / "logits.npy")
    assert worst(logits(tmp_path / "merged"), expected) < 1e-5
    assert worst(logits(BASE), expected[:, :32]) > 0.01
    assert checkpoint.config.untied_lm_head == (name in UNTIED)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapters_folder_stands_for_its_base_with_it(adapter, caplog, file):
    expected = neo_tf.open_checkpoint(BASE, adapter=LORA / "plain").read("gpt2/h1/attn/q")
    if file.endswith("bin"):
        stored = load_file(adapter / "adapter_model.safetensors")
        torch.save({name: torch.from_numpy(value) for name, value in stored.items()}, adapter / file)
        (adapter / "adapter_model.safetensors").unlink()
    caplog.clear()
    got = neo_tf.open_checkpoint(adapter)
    assert np.array_equal(got.read("gpt2/h1/attn/q"), expected)
    assert f"{adapter}: a LoRA adapter, merged into {BASE}" in caplog.text


def test_an_adapter_beside_a_whole_model_is_merged_into_it_as_transformers_does(adapter):
    shutil.copytree(BASE, adapter, dirs_exist_ok=True)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    expected = neo_tf.open_checkpoint(BASE, adapter=LORA / "plain").read("gpt2/h1/attn/q")
    assert np.array_equal(neo_tf.open_checkpoint(adapter).read("gpt2/h1/attn/q"), expected)


@pytest.mark.parametrize("name", ["convert", "export"])
def test_the_commands_merge(tmp_path, adapter, name):
    assert command(name, BASE, tmp_path / "given", "--adapter", adapter) == 0
    assert command(name, adapter, tmp_path / "named") == 0
    assert command(name, BASE, tmp_path / "base") == 0
    weights = [next((tmp_path / folder).glob("model.[wo]*[5a]")).read_bytes() for folder in ("given", "named", "base")]
    assert weights[0] == weights[1] != weights[2]


def test_the_cache_tells_adapters_apart(tmp_path, adapter, monkeypatch):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    plain = resolve_model(BASE)
    merged = resolve_model(BASE, adapter=adapter)
    assert plain != merged and resolve_model(BASE, adapter=adapter) == merged
    named = resolve_model(adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in stored.items()}, adapter / "adapter_model.safetensors")
    assert resolve_model(adapter) != named
    with pytest.raises(RequestError, match="an ONNX folder, which no adapter can be merged into"):
        resolve_model(plain, adapter=adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3, of which only LORA can be merged"),
        ({"use_dora": True}, "a LoRA adapter with use_dora: not implemented"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changes the base"),
        ({"r": 8}, "q_proj has rank 4, but adapter_config.json says 8"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_by_what_it_is(adapter, changes, message):
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        neo_tf.open_checkpoint(adapter)


def test_an_adapter_of_another_model_is_refused(adapter):
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: np.concatenate([value, value], axis=1) if "lora_A" in name else value for name, value in stored.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"by \[8, 16\], but its weight in .* is \[8, 8\]: it is an adapter of"):
        neo_tf.open_checkpoint(adapter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.transformer.h.0.attn.attention.q_proj.lora_magnitude_vector", "is not a part of a LoRA"),
        ("base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight", "c_fc has lora_A alone"),
    ],
)
def test_a_tensor_that_is_not_understood_is_refused(adapter, name, message):
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file(stored | {name: np.zeros((4, 8), np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        neo_tf.open_checkpoint(adapter)


@pytest.mark.parametrize("base", ["EleutherAI/gpt-neo-125M", "/nowhere/base", None])
def test_a_base_that_is_not_there_is_named(adapter, base, capfd):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    assert command("generate", adapter, "hi") == 1
    check_error_line(capfd.readouterr().err, adapter, base or "does not name its base", "--adapter")


def test_what_is_no_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert not is_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="not an adapter: no adapter_config"):
        neo_tf.open_checkpoint(BASE, adapter=tmp_path)


def test_lora_matrices_in_a_whole_model_are_not_left_out(tmp_path):
    shutil.copytree(BASE, tmp_path / "model")
    stored = load_file(BASE / "model.safetensors")
    name = "transformer.h.0.attn.attention.q_proj"
    stored[f"{name}.base_layer.weight"] = stored.pop(f"{name}.weight")
    stored[f"{name}.lora_A.default.weight"] = np.zeros((4, 8), np.float32)
    save_file({f"base_model.model.{key}": value for key, value in stored.items()}, tmp_path / "model/model.safetensors")
    with pytest.raises(CheckpointError, match="holds LoRA matrices that are not merged"):
        neo_tf.open_checkpoint(tmp_path / "model")

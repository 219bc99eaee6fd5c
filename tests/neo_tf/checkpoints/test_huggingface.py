import json

import numpy as np
import pytest
import tokenizers
import torch
from checkpoint_helpers import FORMATS, assert_same_bits, read_all, worst
from conftest import GLOBAL_LOCAL, GOLDEN, TINY_PYTHON, TOLERANCE, Reference
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, GPTNeoConfig, GPTNeoForCausalLM

import neo_tf
from neo_tf.checkpoints import huggingface
from neo_tf.errors import CheckpointError, ConfigError

# The original computed tiny-python's logits in float32, and they lie up to 1.7e-4 off a float64 computation of the
# same model: nobody who adds in another order can be asked for 1e-4.
ORIGINALS = {name: (GOLDEN / name, TOLERANCE) for name in GLOBAL_LOCAL} | {"tiny-python": (TINY_PYTHON, 2.5e-4)}
SHARDED = {"max_shard_size": "20KB"}


def transformers_loads(folder, dtype=torch.float32):
    """The model of a folder, with no weight missing, left over or of another shape."""
    model, report = GPTNeoForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def small_model(dtype=torch.float32, **changes):
    """A model that transformers makes, every parameter random, so that two that are swapped show."""
    options = {
        **{"vocab_size": 96, "max_position_embeddings": 32, "hidden_size": 24, "num_layers": 3, "num_heads": 3},
        **{"attention_types": [[["global", "local"], 1], [["local"], 1]], "window_size": 5},
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
    }
    generator = torch.Generator().manual_seed(0)
    model = GPTNeoForCausalLM(GPTNeoConfig(**options | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def state_of(model):
    """{transformers' name: array} of the parameters; bfloat16 as its bits."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return {name: (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy() for name, t in state.items()}


# ---- transformers judges what we write


@pytest.mark.parametrize("name", ORIGINALS)
def test_transformers_gives_the_originals_logits(tmp_path, name):
    source, tolerance = ORIGINALS[name]
    expected = Reference.load(source)
    neo_tf.convert(source, tmp_path / "converted", "huggingface")
    got = logits(transformers_loads(tmp_path / "converted"), expected.inputs)[:, expected.positions]
    assert worst(got, expected.logits) <= tolerance


def test_transformers_config_says_what_the_original_said(tmp_path):
    neo_tf.convert(GOLDEN / "tiny-local-radius", tmp_path / "converted", "huggingface")
    config = AutoConfig.from_pretrained(tmp_path / "converted")
    assert (config.model_type, config.architectures) == ("gpt_neo", ["GPTNeoForCausalLM"])
    assert (config.hidden_size, config.num_heads, config.num_layers, config.vocab_size) == (32, 4, 4, 257)
    assert (config.max_position_embeddings, config.window_size) == (256, 16)
    assert (config.attention_layers, config.activation_function) == (["local"] * 4, "gelu_new")
    assert (config.dtype, config.layer_norm_epsilon) == (torch.float32, 1e-5)


def test_bfloat16_checkpoint_becomes_a_bfloat16_folder(tmp_path):
    neo_tf.convert(GOLDEN / "tiny-global", tmp_path / "converted", "huggingface")
    model = transformers_loads(tmp_path / "converted", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_our_shards_load_in_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 20_000)
    source, tolerance = ORIGINALS["tiny-local-radius"]
    folder = tmp_path / "converted"
    neo_tf.convert(source, folder, "huggingface")
    shards, checkpoint = sorted(folder.glob("*.safetensors")), neo_tf.open_checkpoint(source)
    assert len(shards) > 2 and not (folder / "model.safetensors").exists()
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == checkpoint.nbytes
    held = {name: shard.name for shard in shards for name in load_file(shard)}
    assert index["weight_map"] == held
    largest = max(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= max(20_000, largest) for shard in shards)
    expected = Reference.load(source)
    got = logits(transformers_loads(folder), expected.inputs)[:, expected.positions]
    assert worst(got, expected.logits) <= tolerance
    assert_same_bits(read_all(neo_tf.open_checkpoint(folder)), read_all(checkpoint))


def test_transformers_reads_the_tokenizer_and_what_ends_a_text(tmp_path):
    neo_tf.convert(TINY_PYTHON, tmp_path / "converted", "huggingface")
    ours = AutoTokenizer.from_pretrained(tmp_path / "converted")
    originals = tokenizers.Tokenizer.from_file(str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    text = 'def f(x):\n    return "ünï" .join( x )<|endoftext|>\t# 日本'
    assert ours(text)["input_ids"] == originals.encode(text).ids
    assert ours.decode(ours(text)["input_ids"]) == text
    assert (ours.eos_token_id, ours.model_max_length) == (0, 512)
    generation = GenerationConfig.from_pretrained(tmp_path / "converted")
    assert (generation.eos_token_id, generation.pad_token_id) == (0, 1)


# ---- we read what transformers writes

SAVED = {
    "single": (torch.float32, {}),
    "sharded": (torch.float32, SHARDED),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16 sharded": (torch.bfloat16, SHARDED),
}


@pytest.mark.parametrize("through", FORMATS)
@pytest.mark.parametrize("saved", SAVED)
def test_saved_folder_converts_to_every_format_and_back(tmp_path, saved, through):
    dtype, options = SAVED[saved]
    model = small_model(dtype)
    model.save_pretrained(tmp_path / "saved", **options)
    assert ("sharded" in saved) == (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1)
    neo_tf.convert(tmp_path / "saved", tmp_path / "through", through)
    neo_tf.convert(tmp_path / "through", tmp_path / "back", "huggingface")
    back = transformers_loads(tmp_path / "back", dtype="auto")
    assert back.dtype == dtype
    assert_same_bits(state_of(back), state_of(model))
    first = neo_tf.open_checkpoint(tmp_path / "saved").config
    assert neo_tf.open_checkpoint(tmp_path / "through").config == first
    assert neo_tf.open_checkpoint(tmp_path / "back").config == first


@pytest.mark.parametrize("pad_token_id", [None, 95])
def test_token_ids_survive_every_format(tmp_path, pad_token_id):
    small_model(pad_token_id=pad_token_id, eos_token_id=7, bos_token_id=7).save_pretrained(tmp_path / "saved")
    source = tmp_path / "saved"
    for step, to in enumerate(("keras", "mesh-tf", "huggingface")):
        neo_tf.convert(source, tmp_path / str(step), to)
        source = tmp_path / str(step)
    config = neo_tf.open_checkpoint(source).config
    assert (config.eos_token_id, config.pad_token_id) == (7, pad_token_id)


def test_float16_folder_survives_the_formats_that_have_float16(tmp_path):
    model = small_model(torch.float16)
    model.save_pretrained(tmp_path / "saved")
    neo_tf.convert(tmp_path / "saved", tmp_path / "keras", "keras")
    neo_tf.convert(tmp_path / "keras", tmp_path / "back", "huggingface")
    assert_same_bits(state_of(transformers_loads(tmp_path / "back", dtype="auto")), state_of(model))


@pytest.mark.parametrize(
    "changes", [{}, {"intermediate_size": 40, "layer_norm_epsilon": 1e-2}], ids=["usual", "unusual"]
)
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_keras_gives_transformers_logits(tmp_path, activation, changes):
    model = small_model(activation_function=activation, **changes)
    model.save_pretrained(tmp_path / "saved")
    ids = np.random.default_rng(0).integers(0, 96, (2, 32))
    got = neo_tf.GPTNeo.from_checkpoint(tmp_path / "saved")(ids)
    assert worst(got, logits(model, ids)) <= TOLERANCE


def rewrite(folder, change):
    """Saves the folder's tensors again after change(tensors)."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def saved(tmp_path):
    small_model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_weights_of_the_bare_model_are_read(tmp_path, saved):
    small_model().transformer.save_pretrained(tmp_path / "bare")
    assert "wte.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path / "bare")), read_all(neo_tf.open_checkpoint(saved)))


def test_attention_buffers_of_old_versions_are_ignored(saved):
    expected = read_all(neo_tf.open_checkpoint(saved))

    def add_buffers(tensors):
        for layer in range(3):
            scope = f"transformer.h.{layer}.attn.attention"
            tensors[f"{scope}.bias"] = torch.tril(torch.ones(1, 1, 32, 32, dtype=torch.bool))
            tensors[f"{scope}.masked_bias"] = torch.tensor(-1e9)

    rewrite(saved, add_buffers)
    assert_same_bits(read_all(neo_tf.open_checkpoint(saved)), expected)


def test_output_embedding_that_equals_the_input_is_tied_and_another_is_the_models_own(saved):
    expected = read_all(neo_tf.open_checkpoint(saved))
    rewrite(saved, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    assert_same_bits(read_all(neo_tf.open_checkpoint(saved)), expected)

    def change_one(tensors):
        tensors["lm_head.weight"][95, 23] += 1e-3

    rewrite(saved, change_one)
    found = read_all(neo_tf.open_checkpoint(saved))
    assert found.pop("gpt2/lm_head")[95, 23] == expected["gpt2/wte"][95, 23] + np.float32(1e-3)
    assert_same_bits(found, expected)


def test_missing_and_unknown_tensors_are_listed(saved):
    def rename(tensors):
        tensors["transformer.h.1.attn.rotary.inv_freq"] = tensors.pop("transformer.h.1.mlp.c_fc.bias")

    rewrite(saved, rename)
    with pytest.raises(CheckpointError) as refused:
        neo_tf.open_checkpoint(saved)
    for name in ("gpt2/h1/mlp/conv1d_main/c_fc/bias", "transformer.h.1.attn.rotary.inv_freq"):
        assert name in str(refused.value)


def test_type_that_is_not_a_float_is_refused(saved):
    rewrite(saved, lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(24, dtype=torch.int64)}))
    with pytest.raises(CheckpointError, match="gpt2/ln_f/b is of type"):
        neo_tf.open_checkpoint(saved)


def test_shape_that_contradicts_the_config_is_refused_with_both(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"vocab_size": 97}))
    with pytest.raises(ConfigError, match=r"gpt2/wte has shape \[96, 24\].*\[97, 24\].*n_vocab 97"):
        neo_tf.open_checkpoint(saved)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', "{"])
def test_malformed_index_is_refused(saved, index):
    (saved / "model.safetensors.index.json").write_text(index)
    neo_tf.open_checkpoint(saved)  # a whole file needs no index
    (saved / "model.safetensors").unlink()
    with pytest.raises((CheckpointError, ConfigError), match=r"model\.safetensors\.index\.json"):
        neo_tf.open_checkpoint(saved)


def test_names_are_each_others_inverse():
    checkpoint = neo_tf.open_checkpoint(GOLDEN / "tiny-global-local")
    theirs = [huggingface.to_huggingface_name(name) for name in checkpoint.tensors]
    assert len({name for name, _ in theirs}) == len(checkpoint.tensors)
    ours = [huggingface.from_huggingface_name(name) for name, _ in theirs]
    assert ours == [(name, transposed) for name, (_, transposed) in zip(checkpoint.tensors, theirs, strict=True)]
    assert huggingface.from_huggingface_name("transformer.h.0.attn.c_attn.weight")[0].startswith("transformer.")

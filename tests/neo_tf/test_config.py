import itertools
import json

import numpy as np
import pytest
import torch
from conftest import DECODABLE, GLOBAL_LOCAL, GOLDEN, TINY_PYTHON
from transformers import AutoConfig
from transformers.activations import ACT2FN

from neo_tf.activations import activation
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import UNSUPPORTED, collapse_attention_types, expand_attention_types
from neo_tf.errors import ConfigError

# No field has its default, so that none can be lost on the way without a difference.
FULL = GPTNeoConfig(
    n_vocab=100,
    n_ctx=32,
    n_embd=24,
    n_head=3,
    n_layer=3,
    attention_types=("local", "global", "global"),
    local_attention_radius=7,
    activation_fn="relu",
    n_inner=50,
    layer_norm_epsilon=1e-3,
    precision="bfloat16",
    embed_dropout=0.1,
    attn_dropout=0.2,
    res_dropout=0.3,
    eos_token_id=5,
    pad_token_id=6,
    training={"lr": 0.015, "datasets": ["synth64"]},
)
ORIGINAL = json.loads((GOLDEN / "vocab-padded" / "config.json").read_text())
HUGGINGFACE = FULL.to_huggingface()
SWITCHED_ON = {
    "rotary_emb": True,
    "axial_pos_emb": [4, 16],
    "no_weight_tie": True,
    "rezero": True,
    "scalenorm": True,
    "macaron": True,
    "share_parameters": True,
    "num_mem_kv": 4,
    "mlp_glu": True,
    "moe_layers": [1],
}
MOE = {"moe_params": {"moe_second_policy_eval": "all"}}


def raw_config(name):
    folder = TINY_PYTHON if name == "tiny-python" else GOLDEN / name
    return json.loads((folder / "config.json").read_text())


# ---- the original's JSON


@pytest.mark.parametrize("name", [*DECODABLE, "tiny-python"])
def test_original_config_is_read_and_written_back_whole(name):
    raw = raw_config(name)
    config = GPTNeoConfig.from_original(raw)
    for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"):
        assert getattr(config, key) == raw[key]
    assert config.local_attention_radius == raw.get("local_attention_radius", 256)
    assert config.precision == raw.get("precision", "float32")
    assert config.n_inner == 4 * raw["n_embd"]
    written = json.loads(json.dumps(config.to_original()))
    assert {key: written.get(key) for key in raw} == raw
    again = GPTNeoConfig.from_original(written)
    assert again == config and again.training == config.training


def test_activation_function_is_ignored_and_activation_fn_is_read():
    assert GPTNeoConfig.from_original(ORIGINAL | {"activation_function": "relu"}).activation_fn == "gelu"
    both = ORIGINAL | {"activation_function": "gelu", "activation_fn": "relu"}
    assert GPTNeoConfig.from_original(both).activation_fn == "relu"


def test_what_has_no_layer_is_refused_by_name():
    for key in UNSUPPORTED:
        with pytest.raises(ConfigError, match=f"{key} = true"):
            GPTNeoConfig.from_original(ORIGINAL | {key: True})


@pytest.mark.parametrize(("key", "value"), SWITCHED_ON.items())
def test_option_is_read_and_written_back(key, value):
    config = GPTNeoConfig.from_original(ORIGINAL | {key: value} | MOE)
    assert config != GPTNeoConfig.from_original(ORIGINAL | MOE)
    assert config.to_original()[key] == value
    assert GPTNeoConfig.from_original(json.loads(json.dumps(config.to_original()))) == config
    assert GPTNeoConfig.from_huggingface(json.loads(json.dumps(config.to_onnx()))) == config
    with pytest.raises(ConfigError, match=key):
        config.to_huggingface()


@pytest.mark.parametrize("key", SWITCHED_ON)
@pytest.mark.parametrize("off", [None, False, 0, []])
def test_option_that_is_switched_off_is_accepted(key, off):
    if key == "rotary_emb" and off is not None:
        # The original asks whether the key is there, not what it says.
        assert GPTNeoConfig.from_original(ORIGINAL | {key: off}).rotary_emb
    else:
        assert GPTNeoConfig.from_original(ORIGINAL | {key: off}) == GPTNeoConfig.from_original(ORIGINAL)


@pytest.mark.parametrize("key", ["no_weight_tie", "rezero", "scalenorm", "macaron", "share_parameters", "mlp_glu"])
def test_flag_that_is_not_true_is_off_as_in_the_original(key):
    assert GPTNeoConfig.from_original(ORIGINAL | {key: "yes"}) == GPTNeoConfig.from_original(ORIGINAL)
    assert getattr(GPTNeoConfig.from_original(ORIGINAL | {key: 1}), key) is True


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"axial_pos_emb": [4]}, ("axial_pos_emb", "[4]")),
        ({"num_mem_kv": -1}, ("num_mem_kv", "-1")),
        ({"rotary_emb": True, "n_embd": 12, "n_head": 4}, ("rotary_emb", "3")),
        ({"moe_layers": [9]}, ("moe_layers", "9", "n_layer is 4")),
        ({"moe_layers": [0]}, ("moe_second_policy_eval", "random")),
        ({"moe_layers": [0], **MOE, "res_dropout": 0.1}, ("res_dropout 0.1", "moe_layers")),
        ({"moe_layers": [0], "moe_params": {"moe_num_experts": 0}}, ("moe_num_experts", "0")),
        ({"activation_fn": "rrelu"}, ("rrelu", "random")),
        ({"activation_fn": "snake"}, ("snake", "crashes")),
    ],
)
def test_option_that_cannot_be_used_is_refused(changes, names):
    with pytest.raises(ConfigError) as refused:
        GPTNeoConfig.from_original(ORIGINAL | changes)
    for name in names:
        assert name in str(refused.value)


def test_model_that_is_not_causal_is_refused():
    with pytest.raises(ConfigError, match="causal"):
        GPTNeoConfig.from_original(ORIGINAL | {"causal": False})


# ---- Hugging Face's config.json


def test_both_formats_carry_every_field():
    for written, read in (
        (FULL.to_original(), GPTNeoConfig.from_original),
        (FULL.to_huggingface(), GPTNeoConfig.from_huggingface),
    ):
        for config in (read(json.loads(json.dumps(written))), GPTNeoConfig.from_dict(written)):
            assert config == FULL
            assert config.training == FULL.training


@pytest.mark.parametrize("name", [*GLOBAL_LOCAL, "tiny-python"])
def test_original_config_survives_huggingface(name):
    config = GPTNeoConfig.from_original(raw_config(name))
    again = GPTNeoConfig.from_huggingface(json.loads(json.dumps(config.to_huggingface())))
    assert again == config and again.training == config.training


def test_released_huggingface_config_is_read():
    # The keys of EleutherAI/gpt-neo-125M's config.json that bear on the model, and one that does not.
    config = GPTNeoConfig.from_huggingface(
        {
            "activation_function": "gelu_new",
            "attention_dropout": 0,
            "attention_layers": ["global", "local"] * 6,
            "attention_types": [[["global", "local"], 6]],
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "hidden_size": 768,
            "initializer_range": 0.02,
            "intermediate_size": None,
            "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neo",
            "num_heads": 12,
            "num_layers": 12,
            "vocab_size": 50257,
            "window_size": 256,
        }
    )
    assert config == GPTNeoConfig(
        *(50257, 2048, 768, 12, 12),
        ("global", "local") * 6,
        local_attention_radius=256,
        n_inner=3072,
        eos_token_id=50256,
    )
    assert config.huggingface_keys == {"initializer_range": 0.02}
    assert config.to_huggingface()["initializer_range"] == 0.02


def test_padding_outside_the_embedding_is_kept_from_transformers():
    assert "pad_token_id" not in FULL.replace(pad_token_id=100).to_huggingface()
    assert FULL.replace(pad_token_id=99).to_huggingface()["pad_token_id"] == 99
    found = [FULL.replace(pad_token_id=token).pad_token_id_in_vocab for token in (0, 99, 100, None)]
    assert found == [0, 99, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not supported"),
        ({"activation_function": "gelu_10", "activation_fn": None}, "activation_function 'gelu_10' is not supported"),
        ({"attention_types": None, "attention_layers": None}, "neither attention_types nor attention_layers"),
    ],
)
def test_huggingface_config_that_cannot_be_used_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GPTNeoConfig.from_huggingface(HUGGINGFACE | changes)


@pytest.mark.parametrize("activation", ["softplus", "elu"])
def test_activation_that_transformers_cannot_express_is_refused(activation):
    with pytest.raises(ConfigError, match=activation):
        FULL.replace(activation_fn=activation).to_huggingface()


# ---- attention types


@pytest.mark.parametrize(
    ("shorthand", "kinds"),
    [
        ([[["global"], 4]], "gggg"),
        ([[["global", "local"], 3]], "glglgl"),
        ([[["global", "global", "local"], 1]], "ggl"),
        ([[["local", "global"], 1], [["local"], 2]], "lgll"),
    ],
)
def test_attention_types_expand(shorthand, kinds):
    assert expand_attention_types(shorthand) == tuple({"g": "global", "l": "local"}[kind] for kind in kinds)


def test_attention_types_collapse_to_the_shortest_and_expand_again():
    assert collapse_attention_types(("global",) * 4) == [[["global"], 4]]
    assert collapse_attention_types(("global", "local") * 6) == [[["global", "local"], 6]]
    for length in range(1, 7):
        for kinds in itertools.product(("global", "local"), repeat=length):
            assert expand_attention_types(collapse_attention_types(kinds)) == kinds


def test_window_is_the_radius_only_in_local_layers_and_never_past_the_context():
    assert [FULL.window(layer) for layer in range(3)] == [7, 32, 32]
    assert FULL.replace(local_attention_radius=256).window(0) == 32


# ---- contradictions: both values are named


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"n_head": 5}, ("n_embd 32", "n_head 5")),
        ({"n_layer": 6}, ("4 layers", "n_layer is 6")),
        ({"attention_types": [[["global", "locale"], 2]]}, ("'locale'", "layer 1", "global, local")),
        ({"attention_types": [[["conv"], 4]]}, ("'conv'", "layer 0")),
        ({"activation_fn": "swish"}, ("'swish'", "gelu, relu")),
        ({"precision": "float64"}, ("'float64'", "bfloat16")),
        ({"eos_token_id": 320}, ("320", "vocabulary of 320")),
        ({"res_dropout": 1.0}, ("res_dropout", "1.0")),
    ],
)
def test_contradiction_names_both_values(changes, names):
    with pytest.raises(ConfigError) as refused:
        GPTNeoConfig.from_original(ORIGINAL | changes)
    assert all(name in str(refused.value) for name in names), refused.value


def test_missing_keys_are_listed():
    params = {key: value for key, value in ORIGINAL.items() if key not in ("n_ctx", "n_head")}
    with pytest.raises(ConfigError, match="missing n_ctx, n_head"):
        GPTNeoConfig.from_original(params)


def test_changed_copy_is_checked_too():
    with pytest.raises(ConfigError, match="n_embd 24 is not divisible by n_head 5"):
        FULL.replace(n_head=5)


# ---- malformed values: a ConfigError that names the key, whatever JSON holds

SIZES = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "local_attention_radius")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in SIZES for value in (0, -1, 2.0, "4", True, [4])),
        *(("attention_types", value) for value in (5, "global", ["global"], [["global", 4]], [[["global"], "4"]])),
        ("attention_types", [[["global", ["local"]], 2]]),
        ("activation_fn", ["gelu"]),
        ("precision", 32),
        ("embed_dropout", "0.1"),
        ("layer_norm_epsilon", float("nan")),  # json reads and writes NaN
        *(("eos_token_id", value) for value in ("<|endoftext|>", -1, 0.5)),
        *(("pad_token_id", value) for value in ("<|padding|>", 0.5)),
    ],
)
def test_malformed_value_of_an_original_config_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key.replace("attention_types", "attention.type")):
        GPTNeoConfig.from_original(ORIGINAL | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "<|endoftext|>"),
        ("eos_token_id", []),
        ("pad_token_id", "<|padding|>"),
        ("activation_function", ["gelu_new"]),
        ("attention_layers", 5),
        ("attention_types", [["global", 3]]),
        ("neo_tf", "training"),
    ],
)
def test_malformed_value_of_a_huggingface_config_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        GPTNeoConfig.from_huggingface(HUGGINGFACE | {key: value})


def test_several_end_of_text_ids_of_huggingface_mean_the_first():
    assert GPTNeoConfig.from_huggingface(HUGGINGFACE | {"eos_token_id": [3, 4]}).eos_token_id == 3


TAKEN = {
    "no end of text": ({}, ("eos_token_id", "bos_token_id")),
    "nothing but the kind": ({}, tuple(key for key in HUGGINGFACE if key != "model_type")),
    "other names": ({"num_hidden_layers": 3, "num_attention_heads": 4}, ("num_layers", "num_heads")),
    "other names have precedence": ({"num_hidden_layers": 3, "num_layers": 7}, ()),
    "layers alone": ({"attention_layers": ["local", "global", "local"]}, ("attention_types",)),
    "padding -1": ({"pad_token_id": -1}, ()),
    "float64": ({"torch_dtype": "float64"}, ("dtype",)),
    "null": ({"intermediate_size": None, "eos_token_id": None, "pad_token_id": None}, ()),
}


@pytest.mark.parametrize("case", TAKEN)
def test_config_that_transformers_takes_means_the_same(tmp_path, case):
    changes, missing = TAKEN[case]
    params = {key: value for key, value in (HUGGINGFACE | changes).items() if key not in missing}
    (tmp_path / "config.json").write_text(json.dumps(params))
    ours, theirs = GPTNeoConfig.from_file(tmp_path / "config.json"), AutoConfig.from_pretrained(tmp_path)
    assert (ours.n_vocab, ours.n_ctx, ours.n_embd) == (
        *(theirs.vocab_size, theirs.max_position_embeddings, theirs.hidden_size),
    )
    assert (ours.n_layer, ours.n_head, list(ours.attention_types)) == (
        *(theirs.num_layers, theirs.num_heads, theirs.attention_layers),
    )
    assert ours.n_inner == theirs.intermediate_size or theirs.intermediate_size is None
    assert ours.local_attention_radius == theirs.window_size
    end = theirs.eos_token_id
    assert ours.eos_token_id == (end if end is not None and end < theirs.vocab_size else None)
    assert ours.pad_token_id == (None if theirs.pad_token_id == -1 else theirs.pad_token_id)


def test_attention_layers_decide_where_attention_types_contradict_them(tmp_path, caplog):
    """So it is in transformers, which sets the key after what attention_types gives."""
    params = HUGGINGFACE | {"attention_layers": ["global", "local", "local"]}
    found = GPTNeoConfig.from_huggingface(params)
    (tmp_path / "config.json").write_text(json.dumps(params))
    assert list(found.attention_types) == AutoConfig.from_pretrained(tmp_path).attention_layers
    assert "attention_layers" in caplog.text


def test_gelu_with_erf_goes_through_each_form():
    config = GPTNeoConfig.from_huggingface(HUGGINGFACE | {"activation_function": "gelu"})
    assert config.to_huggingface()["activation_function"] == "gelu"
    assert GPTNeoConfig.from_original(config.to_original()) == config  # Keras's folder has it in this form


ACTIVATIONS = (
    *(
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_fast",
        "gelu_accurate",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "mish",
        "leaky_relu",
        "linear",
    ),
    *("relu", "sigmoid", "tanh", "silu", "swish"),
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_huggingface_is_transformers(name):
    x = np.linspace(-6, 6, 201, dtype=np.float32)
    config = GPTNeoConfig.from_huggingface(HUGGINGFACE | {"activation_function": name})
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    assert np.abs(np.asarray(activation(x, config.activation_fn)) - expected).max() < 2e-6
    again = GPTNeoConfig.from_huggingface(config.to_huggingface())
    assert again.activation_fn == config.activation_fn


# ---- files


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FULL.to_huggingface()).replace(",", ",\r\n"), encoding="utf-8-sig")
    assert GPTNeoConfig.from_file(tmp_path / "config.json") == FULL


def test_file_holds_either_form(tmp_path):
    for params in (FULL.to_original(), FULL.to_huggingface()):
        (tmp_path / "config.json").write_text(json.dumps(params))
        assert GPTNeoConfig.from_file(tmp_path / "config.json") == FULL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[1, 2]", "JSON object"),
        (b"{}", "missing n_vocab"),
    ],
)
def test_file_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        GPTNeoConfig.from_file(path)
    assert str(path) in str(refused.value)

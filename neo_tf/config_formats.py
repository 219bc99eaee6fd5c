"""A config's forms as JSON: the original's, Hugging Face's config.json, and that of an ONNX folder.

The readers return the fields of a GPTNeoConfig, which checks them; the writers take its fields.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neo_tf.config_fields import ConfigFields
from neo_tf.config_values import (
    FLAGS,
    GPT2_VOCAB_SIZE,
    ORIGINAL_ONLY_KEYS,
    UNSUPPORTED,
    collapse_attention_types,
    expand_attention_types,
)
from neo_tf.errors import ConfigError
from neo_tf.notes import note

# ---- the original's JSON

_ORIGINAL_SIZES = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
# Keys that have a default. The original tests some of them with `is not None`: null means the default.
_ORIGINAL_OPTIONAL = (
    "local_attention_radius",
    "activation_fn",
    "n_inner",
    "layer_norm_epsilon",
    "precision",
    "embed_dropout",
    "attn_dropout",
    "res_dropout",
    "eos_token_id",
    "pad_token_id",
    "untied_lm_head",
)
# For these keys false, 0 and [] mean the default too.
_ORIGINAL_OFF_WHEN_EMPTY = ("num_mem_kv", "axial_pos_emb", "moe_layers", "moe_params")
_ORIGINAL_KEYS = frozenset(
    (
        *_ORIGINAL_SIZES,
        *_ORIGINAL_OPTIONAL,
        *_ORIGINAL_OFF_WHEN_EMPTY,
        *FLAGS,
        "rotary_emb",
        "attention_types",
        "moe_activation",
    )
)


def read_original(params: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a config of EleutherAI/gpt-neo, such as its configs/*.json hold.

    Returns:
        The fields of a GPTNeoConfig, by name.

    Raises:
        ConfigError: A key is missing or malformed, or it changes the mathematics in a way that is not supported.
    """
    _require_keys(params, (*_ORIGINAL_SIZES, "attention_types"))
    for key in UNSUPPORTED:
        if params.get(key):
            raise ConfigError(f"{key} = {json.dumps(params[key])} is not supported yet")
    if params.get("causal") is False:
        raise ConfigError("causal = false is not supported: decoding needs a causal model")
    fields = {key: params[key] for key in _ORIGINAL_SIZES}
    fields |= {key: params[key] for key in _ORIGINAL_OPTIONAL if params.get(key) is not None}
    fields |= {key: params[key] for key in _ORIGINAL_OFF_WHEN_EMPTY if params.get(key)}
    moe_params = fields.get("moe_params", {})
    if "moe_layers" in fields and isinstance(moe_params, dict):
        # The original reads this key beside moe_params, not inside.
        fields["moe_params"] = moe_params | {"moe_activation": params.get("moe_activation") or "relu"}
    for flag in FLAGS:
        fields[flag] = params.get(flag) == True  # noqa: E712  (as the original compares: 1 is on, "yes" is off)
    fields["rotary_emb"] = params.get("rotary_emb") is not None  # in the original even false switches it on
    fields["attention_types"] = expand_attention_types(params["attention_types"])
    fields["training"] = {key: value for key, value in params.items() if key not in _ORIGINAL_KEYS}
    return fields


def write_original(config: ConfigFields) -> dict[str, Any]:
    """The config as a dict that read_original and the original code read."""
    params: dict[str, Any] = {
        "n_vocab": config.n_vocab,
        "n_ctx": config.n_ctx,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "attention_types": collapse_attention_types(config.attention_types),
        "local_attention_radius": config.local_attention_radius,
        "activation_fn": config.activation_fn,
        "precision": config.precision,
        "embed_dropout": config.embed_dropout,
        "attn_dropout": config.attn_dropout,
        "res_dropout": config.res_dropout,
    }
    # Keys that the original does not have are written only where they say something.
    if config.n_inner != 4 * config.n_embd:
        params["n_inner"] = config.n_inner
    if config.layer_norm_epsilon != 1e-5:
        params["layer_norm_epsilon"] = config.layer_norm_epsilon
    for flag in FLAGS:
        if getattr(config, flag):
            params[flag] = True
    if config.rotary_emb:
        params["rotary_emb"] = True
    if config.axial_pos_emb:
        params["axial_pos_emb"] = list(config.axial_pos_emb)
    if config.num_mem_kv:
        params["num_mem_kv"] = config.num_mem_kv
    if config.untied_lm_head:
        params["untied_lm_head"] = True
    if config.moe_layers:
        params["moe_layers"] = list(config.moe_layers)
        params["moe_params"] = {key: value for key, value in config.moe_params.items() if key != "moe_activation"}
        params["moe_activation"] = config.moe_params["moe_activation"]
    for key in ("eos_token_id", "pad_token_id"):
        if getattr(config, key) is not None:
            params[key] = getattr(config, key)
    return params | {key: value for key, value in config.training.items() if key not in params}


# ---- Hugging Face's config.json

# The sizes, and transformers' defaults, which it gives to a config that leaves them out.
_HUGGINGFACE_SIZES = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_heads": 16,
    "num_layers": 24,
}
_HUGGINGFACE_EOS = 50256  # transformers' default
# Other names that transformers takes for two keys; they have precedence there.
_HUGGINGFACE_SYNONYMS = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
# Hugging Face's key -> the field. Where a key is missing or null, the field has its default.
_FROM_HUGGINGFACE = {
    "vocab_size": "n_vocab",
    "max_position_embeddings": "n_ctx",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
    "window_size": "local_attention_radius",
    "intermediate_size": "n_inner",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "embed_dropout": "embed_dropout",
    "attention_dropout": "attn_dropout",
    "resid_dropout": "res_dropout",
    "pad_token_id": "pad_token_id",
}
# Keys that are read in another way, or that follow from the others and are written anew.
_OTHER_HUGGINGFACE_KEYS = (
    "attention_types",
    "attention_layers",
    "attention_kinds",
    "activation_function",
    "activation_fn",
    "eos_token_id",
    "bos_token_id",
    "dtype",
    "torch_dtype",
    "model_type",
    "architectures",
    "transformers_version",
    "tie_word_embeddings",
    "use_cache",
    "neo_tf",
    # Keys that an ONNX folder adds; neo_tf/onnx_folder.py reads them.
    "precisions",
    "target",
    "ops",
    *_HUGGINGFACE_SYNONYMS,
)
# The key of ConfigFields.training that holds Hugging Face's other keys. They go back where they came from.
HUGGINGFACE_KEYS = "huggingface"
# Among them: the ids that config.json leaves out. A config of transformers has defaults for them, but no token ends a
# text, where no generation_config.json names one.
IDS_LEFT_OUT = "ids_left_out"
_IDS = ("eos_token_id", "bos_token_id")
# What transformers takes for an end-of-text id that config.json does not name.
_DEFAULT_EOS = GPT2_VOCAB_SIZE - 1
_HUGGINGFACE_KEYS = frozenset((*_FROM_HUGGINGFACE, *_OTHER_HUGGINGFACE_KEYS, *ORIGINAL_ONLY_KEYS))
# Hugging Face's name of an activation -> the original's. "gelu_new" is the tanh form; their plain "gelu" uses erf, and
# the original does not have it.
_ACTIVATION_FROM_HUGGINGFACE = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_accurate": "gelu",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "leaky_relu": "lrelu001",
    "linear": "id",
}
_ACTIVATION_TO_HUGGINGFACE = {
    "gelu": "gelu_new",
    "gelu_erf": "gelu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "silu": "silu",
    "mish": "mish",
    "lrelu001": "leaky_relu",
    "id": "linear",
}


def read_huggingface_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the config.json of a transformers GPTNeoForCausalLM, or of an ONNX folder.

    Returns:
        The fields of a GPTNeoConfig, by name.

    Raises:
        ConfigError: A key is missing or malformed, or the config is that of another kind of model.
    """
    if params.get("model_type", "gpt_neo") != "gpt_neo":
        raise ConfigError(f"model_type is {params['model_type']!r}, not 'gpt_neo'")
    left_out = [key for key in _IDS if key not in params] if "model_type" in params else []
    params = _with_defaults(params)
    _require_keys(params, tuple(_HUGGINGFACE_SIZES))
    fields = {field: params[key] for key, field in _FROM_HUGGINGFACE.items() if params.get(key) is not None}
    fields |= {key: params[key] for key in ORIGINAL_ONLY_KEYS if key in params}
    padding = fields.get("pad_token_id")
    if isinstance(padding, int) and padding < 0:
        del fields["pad_token_id"]  # -1 is how some say that there is none
    fields["attention_types"] = _read_attention_types(params)
    fields["activation_fn"] = _read_activation(params)
    fields["precision"] = _read_precision(params)
    fields["eos_token_id"] = _read_eos_token_id(params)
    fields["untied_lm_head"] = params.get("tie_word_embeddings") is False
    fields["training"] = _read_training(params, left_out)
    return fields


def _with_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """The config under transformers' own names, with its defaults for the keys that are left out.

    A config without model_type is not known to be transformers' own, and must have all sizes.
    """
    named = dict(params)
    for synonym, key in _HUGGINGFACE_SYNONYMS.items():
        if params.get(synonym) is not None:
            named[key] = params[synonym]
    if "model_type" not in params:
        return named
    if "attention_types" not in params and params.get("attention_layers") is None:
        named["attention_types"] = [[["global", "local"], 12]]
    return _HUGGINGFACE_SIZES | {"eos_token_id": _HUGGINGFACE_EOS} | named


def _read_attention_types(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The attention types from `attention_layers`, or else from `attention_types`.

    Where both are there and differ, attention_layers decides, as in transformers.
    """
    layers = None
    if params.get("attention_layers") is not None:
        layers = _require_list(params, "attention_layers")
    if params.get("attention_types") is None:
        if layers is None:
            raise ConfigError("neither attention_types nor attention_layers is given")
        return tuple(layers)
    attention_types = expand_attention_types(params["attention_types"])
    if layers is not None and layers != list(attention_types):
        note(
            f"config.json: attention_layers {params['attention_layers']} decides, as in transformers,"
            f" where attention_types {params['attention_types']} says something else"
        )
        return tuple(layers)
    return attention_types


def _read_activation(params: Mapping[str, Any]) -> Any:
    """The original's name of the activation. An ONNX folder writes it as it is where Hugging Face has no name."""
    if params.get("activation_fn"):
        return params["activation_fn"]
    theirs = params.get("activation_function") or "gelu_new"
    if str(theirs) not in _ACTIVATION_FROM_HUGGINGFACE:
        known = ", ".join(_ACTIVATION_FROM_HUGGINGFACE)
        raise ConfigError(f"activation_function {theirs!r} is not supported (known: {known})")
    return _ACTIVATION_FROM_HUGGINGFACE[theirs]


def _read_precision(params: Mapping[str, Any]) -> str:
    """The stated type of the weights, as transformers writes it. The weights themselves have the last word."""
    stated = params.get("dtype") or params.get("torch_dtype") or "float32"
    name = str(stated).removeprefix("torch.")
    return "float32" if name in ("auto", "float64") else name


def _read_eos_token_id(params: Mapping[str, Any]) -> Any:
    """The end-of-text id; of several, the first."""
    eos = params.get("eos_token_id", _DEFAULT_EOS)
    if isinstance(eos, list) and eos:
        eos = eos[0]
    vocab = params["vocab_size"]
    if isinstance(eos, int) and isinstance(vocab, int) and not 0 <= eos < vocab:
        return None  # transformers' default 50256 in a smaller vocabulary: no token ends a text
    return eos


def _read_training(params: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """The original's other keys, which travel under `neo_tf`, and Hugging Face's other keys under `huggingface`."""
    carried = params.get("neo_tf") or {}
    if not isinstance(carried, dict):
        raise ConfigError(f"neo_tf must hold the original's other keys, not {carried!r}")
    others = {key: value for key, value in params.items() if key not in _HUGGINGFACE_KEYS}
    if params.get("use_cache") is False:
        others["use_cache"] = False
    # Of the end-of-text ids the config itself keeps one, and writes it as the beginning-of-text id, too.
    eos = _read_eos_token_id(params)
    if params.get("eos_token_id", eos) != eos:
        others["eos_token_id"] = params["eos_token_id"]
    elif eos is None and params["vocab_size"] >= GPT2_VOCAB_SIZE:
        others["eos_token_id"] = None  # written down, so that no other format takes GPT-2's id
    if params.get("bos_token_id", _DEFAULT_EOS) != eos:
        others["bos_token_id"] = params.get("bos_token_id", _DEFAULT_EOS)
    if left_out:
        others[IDS_LEFT_OUT] = [*left_out]
    return carried | ({HUGGINGFACE_KEYS: others} if others else {})


def write_huggingface_config(config: ConfigFields) -> dict[str, Any]:
    """The config as a dict that transformers' GPTNeoConfig reads.

    The source's training keys travel under the key `neo_tf`, which transformers keeps and ignores.

    Raises:
        ConfigError: The model uses an option that transformers has no key for. The message names the option.
    """
    extra = [f"{key} = {json.dumps(value)}" for key, value in _beyond_huggingface(config).items()]
    if extra:
        raise ConfigError(f"Hugging Face's GPT-Neo cannot express {', '.join(extra)}")
    return _huggingface_keys(config)


def write_onnx_config(config: ConfigFields) -> dict[str, Any]:
    """The config of an ONNX folder: Hugging Face's keys, and the original's options that the model uses."""
    return _huggingface_keys(config) | _beyond_huggingface(config)


def _beyond_huggingface(config: ConfigFields) -> dict[str, Any]:
    """The options that Hugging Face's GPT-Neo has no key or no value for."""
    beyond = {key: getattr(config, key) for key in ORIGINAL_ONLY_KEYS if getattr(config, key)}
    if config.activation_fn not in _ACTIVATION_TO_HUGGINGFACE:
        beyond["activation_fn"] = config.activation_fn
    kinds = sorted(set(config.attention_types) - {"global", "local"})
    if kinds:
        beyond["attention_kinds"] = kinds
    return beyond


def _huggingface_keys(config: ConfigFields) -> dict[str, Any]:
    params: dict[str, Any] = {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": config.n_vocab,
        "max_position_embeddings": config.n_ctx,
        "hidden_size": config.n_embd,
        "num_heads": config.n_head,
        "num_layers": config.n_layer,
        "attention_types": collapse_attention_types(config.attention_types),
        "attention_layers": list(config.attention_types),
        "window_size": config.local_attention_radius,
        "intermediate_size": config.n_inner,
        "activation_function": _ACTIVATION_TO_HUGGINGFACE.get(config.activation_fn, config.activation_fn),
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "embed_dropout": config.embed_dropout,
        "attention_dropout": config.attn_dropout,
        "resid_dropout": config.res_dropout,
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        "dtype": config.precision,
        "torch_dtype": config.precision,
        "tie_word_embeddings": not config.untied_lm_head,
        "use_cache": True,
    }
    # transformers builds nn.Embedding(padding_idx) from it: an id outside the embedding would crash there.
    if config.pad_token_id_in_vocab is not None:
        params["pad_token_id"] = config.pad_token_id_in_vocab
    others = dict(config.huggingface_keys)
    ids = others.get("eos_token_id")
    if ids is not None and (ids[:1] if isinstance(ids, list) else [None]) != [config.eos_token_id]:
        del others["eos_token_id"]  # the ids were changed since
    for key in others.pop(IDS_LEFT_OUT, ()):
        if (others.get(key) or params[key]) in (_DEFAULT_EOS, None):  # unless one was given since
            others.pop(key, None)
            del params[key]
    carried = {key: value for key, value in config.training.items() if key != HUGGINGFACE_KEYS}
    if carried:
        params["neo_tf"] = carried
    return params | {key: value for key, value in others.items() if key not in params or key in _REPLACED_KEYS}


# Keys of which the source's own value is written in place of the one that follows from the config.
_REPLACED_KEYS = ("eos_token_id", "bos_token_id", "use_cache")


def _require_keys(params: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if params.get(key) is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")


def _require_list(params: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(params[key], list | tuple):
        raise ConfigError(f"{key} must be a list, not {params[key]!r}")
    return list(params[key])

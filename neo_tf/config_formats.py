"""Reading and writing GPTNeoConfig's two forms: the original's JSON, and Hugging Face's config.json."""

import json

from neo_tf.config_values import FLAGS, OPTIONS, UNSUPPORTED, collapse_attention_types, expand_attention_types
from neo_tf.errors import ConfigError

# Hugging Face's name of an activation -> the original's. "gelu_new" is the tanh form; HF's plain "gelu" is erf.
_ACTIVATION_FROM_HF = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu"} | {
    name: name for name in ("relu", "sigmoid", "tanh", "silu")
}
_ACTIVATION_FROM_HF["swish"] = "silu"
_ACTIVATION_TO_HF = {"gelu": "gelu_new", "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu"}


def read_original(params):
    """GPTNeoConfig's fields from a config of EleutherAI/gpt-neo, a dict as its configs/*.json hold.

    Raises:
        ConfigError: a key is missing, malformed, or changes the mathematics in a way that is not supported.
    """
    _require_keys(params, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "attention_types"))
    for key in UNSUPPORTED:
        if params.get(key):
            raise ConfigError(f"{key} = {json.dumps(params[key])} is not supported yet")
    if params.get("causal") is False:
        raise ConfigError("causal = false is not supported: decoding needs a causal model")
    # The original tests `is not None`; an empty dict or 0 means the same as absent.
    optional = {
        "local_attention_radius": 256,
        "activation_fn": "gelu",
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "precision": "float32",
        "embed_dropout": 0.0,
        "attn_dropout": 0.0,
        "res_dropout": 0.0,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    optional |= {
        "untied_lm_head": False,
        "num_mem_kv": 0,
        "axial_pos_emb": None,
        "moe_layers": (),
        "moe_params": {},
    }
    values = {key: params[key] if params.get(key) is not None else default for key, default in optional.items()}
    for key in ("num_mem_kv", "axial_pos_emb", "moe_layers", "moe_params"):
        values[key] = values[key] or optional[key]  # false, 0 and [] mean the same as absent
    if values["moe_layers"] and isinstance(values["moe_params"], dict):
        # The original reads this key beside moe_params, not inside.
        values["moe_params"] = values["moe_params"] | {"moe_activation": params.get("moe_activation") or "relu"}
    values |= {flag: params.get(flag) == True for flag in FLAGS}  # noqa: E712  (1 is on, "yes" is off)
    values["rotary_emb"] = params.get("rotary_emb") is not None  # even false switches it on there
    sizes = {key: params[key] for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")}
    read = {*sizes, *values, "attention_types", "moe_activation"}
    return {
        **sizes,
        **values,
        "attention_types": expand_attention_types(params["attention_types"]),
        "training": {key: value for key, value in params.items() if key not in read},
    }


def write_original(config):
    """The config as a dict that read_original, and the original code, read."""
    params = {"n_vocab": config.n_vocab, "n_ctx": config.n_ctx, "n_embd": config.n_embd, "n_head": config.n_head}
    params |= {"n_layer": config.n_layer, "attention_types": collapse_attention_types(config.attention_types)}
    params |= {"local_attention_radius": config.local_attention_radius, "activation_fn": config.activation_fn}
    params |= {"precision": config.precision, "embed_dropout": config.embed_dropout}
    params |= {"attn_dropout": config.attn_dropout, "res_dropout": config.res_dropout}
    # Keys that the original does not have are written only where they say something.
    if config.n_inner != 4 * config.n_embd:
        params["n_inner"] = config.n_inner
    if config.layer_norm_epsilon != 1e-5:
        params["layer_norm_epsilon"] = config.layer_norm_epsilon
    params |= {flag: True for flag in FLAGS if getattr(config, flag)}
    if config.rotary_emb:
        params["rotary_emb"] = True
    if config.axial_pos_emb:
        params["axial_pos_emb"] = list(config.axial_pos_emb)
    if config.num_mem_kv:
        params["num_mem_kv"] = config.num_mem_kv
    if config.untied_lm_head:
        params["untied_lm_head"] = True
    if config.moe_layers:
        inside = {key: value for key, value in config.moe_params.items() if key != "moe_activation"}
        params |= {"moe_layers": list(config.moe_layers), "moe_params": inside}
        params["moe_activation"] = config.moe_params["moe_activation"]
    for key in ("eos_token_id", "pad_token_id"):
        if getattr(config, key) is not None:
            params[key] = getattr(config, key)
    return params | {key: value for key, value in config.training.items() if key not in params}


def read_huggingface_config(params):
    """GPTNeoConfig's fields from the config.json of a transformers GPTNeoForCausalLM, as a dict.

    Raises:
        ConfigError: a key is missing or malformed, or the config is of another model.
    """
    if params.get("model_type", "gpt_neo") != "gpt_neo":
        raise ConfigError(f"model_type is {params['model_type']!r}, not 'gpt_neo'")
    _require_keys(params, ("vocab_size", "max_position_embeddings", "hidden_size", "num_heads", "num_layers"))
    if params.get("attention_types") is not None:
        attention_types = expand_attention_types(params["attention_types"])
    elif params.get("attention_layers") is not None:
        attention_types = _require_list(params, "attention_layers")
    else:
        raise ConfigError("neither attention_types nor attention_layers is given")
    if params.get("attention_layers") is not None and _require_list(params, "attention_layers") != list(
        attention_types
    ):
        raise ConfigError(
            f"attention_layers {params['attention_layers']} contradicts attention_types {params['attention_types']}"
        )
    activation = params.get("activation_function") or "gelu_new"
    if "activation_fn" not in params and str(activation) not in _ACTIVATION_FROM_HF:
        known = ", ".join(_ACTIVATION_FROM_HF)
        raise ConfigError(f"activation_function {activation!r} is not supported (known: {known})")
    eos = params.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    vocab = params["vocab_size"]
    if isinstance(eos, int) and isinstance(vocab, int) and not 0 <= eos < vocab:
        eos = None  # transformers' default 50256 in a smaller vocabulary: no token ends a text
    read = {
        *("vocab_size", "max_position_embeddings", "hidden_size", "num_heads", "num_layers", "window_size"),
        *("attention_types", "attention_layers", "intermediate_size", "layer_norm_epsilon", "activation_function"),
        *("embed_dropout", "attention_dropout", "resid_dropout", "eos_token_id", "bos_token_id", "pad_token_id"),
        *("dtype", "torch_dtype", "model_type", "architectures", "transformers_version", "use_cache", "neo_tf"),
        *("tie_word_embeddings", "activation_fn", "attention_kinds", *OPTIONS),
    }
    others = {key: value for key, value in params.items() if key not in read}
    carried = params.get("neo_tf") or {}
    if not isinstance(carried, dict):
        raise ConfigError(f"neo_tf must hold the original's other keys, not {carried!r}")
    return dict(
        n_vocab=params["vocab_size"],
        n_ctx=params["max_position_embeddings"],
        n_embd=params["hidden_size"],
        n_head=params["num_heads"],
        n_layer=params["num_layers"],
        attention_types=attention_types,
        local_attention_radius=_given(params, "window_size", 256),
        activation_fn=params.get("activation_fn") or _ACTIVATION_FROM_HF[activation],
        **{key: params[key] for key in OPTIONS if key in params},
        n_inner=params.get("intermediate_size"),
        layer_norm_epsilon=_given(params, "layer_norm_epsilon", 1e-5),
        precision=_precision(params.get("dtype") or params.get("torch_dtype")),
        embed_dropout=_given(params, "embed_dropout", 0.0),
        attn_dropout=_given(params, "attention_dropout", 0.0),
        res_dropout=_given(params, "resid_dropout", 0.0),
        eos_token_id=eos,
        untied_lm_head=params.get("tie_word_embeddings") is False,
        pad_token_id=params.get("pad_token_id"),
        training=carried | others,
    )


def write_huggingface_config(config):
    """The config as a dict that transformers' GPTNeoConfig reads.

    The source's training keys travel under the key `neo_tf`, which transformers carries and ignores.

    Raises:
        ConfigError: an option that transformers has no key for; it is named.
    """
    extra = [f"{key} = {json.dumps(value)}" for key, value in _beyond_huggingface(config).items()]
    if extra:
        raise ConfigError(f"Hugging Face's GPT-Neo cannot express {', '.join(extra)}")
    return _huggingface_keys(config)


def write_onnx_config(config):
    """The config of an ONNX folder: Hugging Face's keys, and the original's options where they are used."""
    return _huggingface_keys(config) | _beyond_huggingface(config)


def _beyond_huggingface(config):
    """What Hugging Face's GPT-Neo has no key or no value for."""
    beyond = {key: getattr(config, key) for key in OPTIONS if getattr(config, key)}
    if config.activation_fn not in _ACTIVATION_TO_HF:
        beyond["activation_fn"] = config.activation_fn
    kinds = sorted(set(config.attention_types) - {"global", "local"})
    return beyond | ({"attention_kinds": kinds} if kinds else {})


def _huggingface_keys(config):
    params = {
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
        "activation_function": _ACTIVATION_TO_HF.get(config.activation_fn, config.activation_fn),
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
    if config.pad_token_id is not None and config.pad_token_id < config.n_vocab:
        params["pad_token_id"] = config.pad_token_id
    if config.training:
        params["neo_tf"] = config.training
    return params


def _given(params, key, default):
    """A key's value; null means the default."""
    return default if params.get(key) is None else params[key]


def _precision(stated):
    """A precision as transformers writes it; the weights themselves have the last word."""
    name = str(stated or "float32").removeprefix("torch.")
    return "float32" if name == "auto" else name


def _require_keys(params, keys):
    missing = [key for key in keys if params.get(key) is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")


def _require_list(params, key):
    if not isinstance(params[key], list | tuple):
        raise ConfigError(f"{key} must be a list, not {params[key]!r}")
    return list(params[key])

"""GPTNeoConfig: everything the forward pass reads, from the original's JSON or Hugging Face's config.json."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from neo_tf.errors import ConfigError

ATTENTION_TYPES = ("global", "local", "linear", "none")
PRECISIONS = ("float32", "bfloat16", "float16")
GPT2_VOCAB_SIZE = 50257  # ids of GPT-2's tokenizer; the last one is end-of-text

# The activations of the original's models/activations.py that it can run.
ACTIVATIONS = (
    *("gelu", "relu", "sigmoid", "tanh", "selu", "elu", "abs", "sin", "cos", "sign", "silu", "softplus", "lrelu001"),
    *("lrelu020", "id", "triangle_relax", "square_relax", "softsign", "softmax", "logsoftmax", "bipolarsigmoid"),
    *("elish", "maxsig", "cosid", "minsin", "maxtanh", "mish", "tanhexp", "lisht", "softplusmone"),
)
_CRASHES = "the original itself crashes on it"
UNUSABLE_ACTIVATIONS = {
    "rrelu": "the original draws a new random slope whenever it builds the graph",
    "psoftplus": "the original gives its variables random names, so no checkpoint of it can be restored",
    **dict.fromkeys(("spike", "spike2", "tanhshrink", "arcsinh", "aria", "prelu", "parcsinh"), _CRASHES),
    **dict.fromkeys(("proottanh", "seagull", "snake", "roottanh"), _CRASHES),
}

# Keys of the original that change the mathematics and have no layer here yet. Refused when they are switched on.
_UNSUPPORTED = ("mlm_training",)
# The original compares these with True: any other value leaves them off.
_FLAGS = ("no_weight_tie", "rezero", "scalenorm", "macaron", "share_parameters", "mlp_glu")
# Options that Hugging Face's GPT-Neo has no key for.
_OPTIONS = (*_FLAGS, "rotary_emb", "axial_pos_emb", "num_mem_kv", "moe_layers", "moe_params")
# mesh_tensorflow's set_default_moe_hparams, as far as a forward pass reads it.
MOE_DEFAULTS = {
    "moe_gating": "top_2",
    "moe_num_experts": 16,
    "moe_hidden_size": 4096,
    "moe_group_size": 1024,
    "moe_loss_coef": 1e-2,
    "moe_capacity_factor_train": 1.25,
    "moe_capacity_factor_eval": 2.0,
    "moe_use_second_place_loss": 0,
    "moe_second_policy_train": "random",
    "moe_second_policy_eval": "random",
    "moe_second_threshold_train": 0.2,
    "moe_second_threshold_eval": 0.2,
    "moe_activation": "relu",
}
_MOE_POLICIES = ("all", "none", "threshold", "random")

# Hugging Face's name of an activation -> the original's. "gelu_new" is the tanh form; HF's plain "gelu" is erf.
_ACTIVATION_FROM_HF = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu"} | {
    name: name for name in ("relu", "sigmoid", "tanh", "silu")
}
_ACTIVATION_FROM_HF["swish"] = "silu"
_ACTIVATION_TO_HF = {"gelu": "gelu_new", "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu"}


@dataclass(frozen=True)
class GPTNeoConfig:
    """A GPT-Neo model's shape and options, under the original's names.

    Args:
        n_vocab: rows of the token embedding; may be padded past the tokenizer's size.
        n_ctx: positions, the longest sequence in tokens.
        n_embd: hidden size.
        n_head: attention heads; divides n_embd.
        n_layer: blocks.
        attention_types: one of ATTENTION_TYPES for each layer.
        local_attention_radius: keys that a local layer's query sees, itself included.
        activation_fn: one of ACTIVATIONS. The original reads this key and ignores `activation_function`.
        n_inner: hidden size of the mlp; 4 * n_embd unless given (Hugging Face's `intermediate_size`).
        layer_norm_epsilon: added to the variance; the original's constant is 1e-5.
        precision: of the stored variables, one of PRECISIONS.
        rotary_emb: rotates queries and keys by their position, in place of a position embedding.
        axial_pos_emb: (rows, columns) of the two tables whose sums are the position embedding; None has one table.
        no_weight_tie: a linear layer with a bias, without ln_f before it, makes the logits; otherwise wte does.
        untied_lm_head: an output embedding of its own, after ln_f (Hugging Face's lm_head where it is not wte).
        rezero: scalar gains on the sublayers' outputs, in place of norms in front of them.
        scalenorm: norms with one scalar gain and no bias inside the blocks.
        macaron: a second mlp before the attention; both mlps count half.
        share_parameters: all layers have the same variables.
        num_mem_kv: learned keys and values that every query of a global layer sees.
        mlp_glu: the mlp's first layer is twice as wide, its second half a gate.
        moe_layers: layers whose mlp is a mixture of experts.
        moe_params: the mixture's parameters, under mesh_tensorflow's names; MOE_DEFAULTS where they are left out.
        embed_dropout, attn_dropout, res_dropout: rates in [0, 1), used in training alone.
        eos_token_id, pad_token_id: of the tokenizer; not read by the forward pass. pad_token_id may lie outside
            the embedding, as the original's does.
        training: the source's other keys, carried along so that writing the config back loses nothing.

    Raises:
        ConfigError: a value that is missing, malformed, or contradicts another; both are named.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int
    attention_types: tuple = ()
    local_attention_radius: int = 256
    activation_fn: str = "gelu"
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    precision: str = "float32"
    rotary_emb: bool = False
    axial_pos_emb: tuple | None = None
    no_weight_tie: bool = False
    untied_lm_head: bool = False
    rezero: bool = False
    scalenorm: bool = False
    macaron: bool = False
    share_parameters: bool = False
    num_mem_kv: int = 0
    mlp_glu: bool = False
    moe_layers: tuple = ()
    moe_params: dict = field(default_factory=dict)
    embed_dropout: float = 0.0
    attn_dropout: float = 0.0
    res_dropout: float = 0.0
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    training: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "local_attention_radius"):
            self._require_positive_int(name)
        if self.n_inner is None:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        self._require_positive_int("n_inner")
        object.__setattr__(self, "attention_types", tuple(self.attention_types))
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if len(self.attention_types) != self.n_layer:
            raise ConfigError(
                f"attention_types describes {len(self.attention_types)} layers, but n_layer is {self.n_layer}"
            )
        for layer, kind in enumerate(self.attention_types):
            if not isinstance(kind, str) or kind not in ATTENTION_TYPES:
                known = ", ".join(ATTENTION_TYPES)
                raise ConfigError(f"attention type {kind!r} of layer {layer} is not supported (known: {known})")
        if not isinstance(self.activation_fn, str):
            raise ConfigError(f"activation_fn must be a name, not {self.activation_fn!r}")
        if self.activation_fn in UNUSABLE_ACTIVATIONS:
            raise ConfigError(f"activation_fn {self.activation_fn!r}: {UNUSABLE_ACTIVATIONS[self.activation_fn]}")
        if self.activation_fn not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation_fn {self.activation_fn!r} is not supported (known: {known})")
        self._check_options()
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if not _is_number(self.layer_norm_epsilon) or not 0 < self.layer_norm_epsilon < 1:
            raise ConfigError(f"layer_norm_epsilon must be a small positive number, not {self.layer_norm_epsilon!r}")
        for name in ("embed_dropout", "attn_dropout", "res_dropout"):
            rate = getattr(self, name)
            if not _is_number(rate) or not 0 <= rate < 1:
                raise ConfigError(f"{name} must be a rate in [0, 1), not {rate!r}")
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name} must be a token id, not {value!r}")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.n_vocab:
            raise ConfigError(f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.n_vocab}")

    def _require_positive_int(self, name):
        value = getattr(self, name)
        if not _is_positive_int(value):
            raise ConfigError(f"{name} must be a positive integer, not {value!r}")

    def _check_options(self):
        if self.untied_lm_head and self.no_weight_tie:
            raise ConfigError("untied_lm_head and no_weight_tie are both on: a model has one head")
        if self.rotary_emb:
            object.__setattr__(self, "axial_pos_emb", None)  # the original looks for rotary_emb first
            if self.head_size % 2:
                raise ConfigError(f"rotary_emb halves the heads, but their size is {self.head_size}")
        if self.axial_pos_emb is not None:
            sizes = self.axial_pos_emb
            if not isinstance(sizes, list | tuple) or len(sizes) != 2 or not all(_is_positive_int(n) for n in sizes):
                raise ConfigError(f"axial_pos_emb must be two positive integers, not {json.dumps(sizes)}")
            object.__setattr__(self, "axial_pos_emb", tuple(sizes))
        if isinstance(self.num_mem_kv, bool) or not isinstance(self.num_mem_kv, int) or self.num_mem_kv < 0:
            raise ConfigError(f"num_mem_kv must be a whole number, not {self.num_mem_kv!r}")

        self._check_moe()

    def _check_moe(self):
        object.__setattr__(self, "moe_layers", tuple(self.moe_layers))
        if not self.moe_layers:
            object.__setattr__(self, "moe_params", {})
            return
        for layer in self.moe_layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < self.n_layer:
                raise ConfigError(f"moe_layers names layer {layer!r}, but n_layer is {self.n_layer}")
        params = MOE_DEFAULTS | self.moe_params
        object.__setattr__(self, "moe_params", params)
        for name in ("moe_num_experts", "moe_hidden_size", "moe_group_size"):
            if not _is_positive_int(params[name]):
                raise ConfigError(f"{name} must be a positive integer, not {params[name]!r}")
        for name, known in (("moe_gating", ("top_2",)), ("moe_activation", ("relu",))):
            if params[name] not in known:
                raise ConfigError(f"{name} {params[name]!r} is not supported (known: {', '.join(known)})")
        for name in ("moe_second_policy_train", "moe_second_policy_eval"):
            if params[name] not in _MOE_POLICIES:
                raise ConfigError(f"{name} {params[name]!r} is not one of {', '.join(_MOE_POLICIES)}")
        if params["moe_second_policy_eval"] == "random":
            raise ConfigError(
                "moe_second_policy_eval is 'random' (the default): the original draws experts at random in inference;"
                " choose 'all', 'none' or 'threshold' (--moe-policy)"
            )
        if self.res_dropout:
            raise ConfigError(
                f"res_dropout {self.res_dropout} with moe_layers: the original drops in inference too; set it to 0"
            )

    @property
    def head_size(self):
        """Features of one attention head."""
        return self.n_embd // self.n_head

    def window(self, layer):
        """Keys that a query of `layer` sees, itself included: the radius of a local layer, n_ctx of a global one."""
        if self.attention_types[layer] == "local":
            return min(self.local_attention_radius, self.n_ctx)
        return self.n_ctx

    def replace(self, **changes):
        """A copy with some fields changed, checked like any other."""
        return dataclasses.replace(self, **changes)

    # ---- the original's JSON

    @classmethod
    def from_original(cls, params):
        """Reads a config of EleutherAI/gpt-neo: a dict as its configs/*.json hold.

        Raises:
            ConfigError: a key is missing, malformed, or changes the mathematics in a way that is not supported.
        """
        _require_keys(params, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "attention_types"))
        for key in _UNSUPPORTED:
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
        values |= {flag: params.get(flag) == True for flag in _FLAGS}  # noqa: E712  (1 is on, "yes" is off)
        values["rotary_emb"] = params.get("rotary_emb") is not None  # even false switches it on there
        sizes = {key: params[key] for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")}
        read = {*sizes, *values, "attention_types"}
        return cls(
            **sizes,
            **values,
            attention_types=expand_attention_types(params["attention_types"]),
            training={key: value for key, value in params.items() if key not in read},
        )

    def to_original(self):
        """The config as a dict that from_original, and the original code, read."""
        params = {"n_vocab": self.n_vocab, "n_ctx": self.n_ctx, "n_embd": self.n_embd, "n_head": self.n_head}
        params |= {"n_layer": self.n_layer, "attention_types": collapse_attention_types(self.attention_types)}
        params |= {"local_attention_radius": self.local_attention_radius, "activation_fn": self.activation_fn}
        params |= {"precision": self.precision, "embed_dropout": self.embed_dropout}
        params |= {"attn_dropout": self.attn_dropout, "res_dropout": self.res_dropout}
        # Keys that the original does not have are written only where they say something.
        if self.n_inner != 4 * self.n_embd:
            params["n_inner"] = self.n_inner
        if self.layer_norm_epsilon != 1e-5:
            params["layer_norm_epsilon"] = self.layer_norm_epsilon
        params |= {flag: True for flag in _FLAGS if getattr(self, flag)}
        if self.rotary_emb:
            params["rotary_emb"] = True
        if self.axial_pos_emb:
            params["axial_pos_emb"] = list(self.axial_pos_emb)
        if self.num_mem_kv:
            params["num_mem_kv"] = self.num_mem_kv
        if self.untied_lm_head:
            params["untied_lm_head"] = True
        if self.moe_layers:
            params |= {"moe_layers": list(self.moe_layers), "moe_params": self.moe_params}
        for key in ("eos_token_id", "pad_token_id"):
            if getattr(self, key) is not None:
                params[key] = getattr(self, key)
        return params | {key: value for key, value in self.training.items() if key not in params}

    # ---- Hugging Face's config.json

    @classmethod
    def from_huggingface(cls, params):
        """Reads the config.json of a transformers GPTNeoForCausalLM, as a dict.

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
        activation = params.get("activation_function", "gelu_new")
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
            *("tie_word_embeddings", "activation_fn", "attention_kinds", *_OPTIONS),
        }
        others = {key: value for key, value in params.items() if key not in read}
        carried = params.get("neo_tf") or {}
        if not isinstance(carried, dict):
            raise ConfigError(f"neo_tf must hold the original's other keys, not {carried!r}")
        return cls(
            n_vocab=params["vocab_size"],
            n_ctx=params["max_position_embeddings"],
            n_embd=params["hidden_size"],
            n_head=params["num_heads"],
            n_layer=params["num_layers"],
            attention_types=attention_types,
            local_attention_radius=params.get("window_size", 256),
            activation_fn=params.get("activation_fn") or _ACTIVATION_FROM_HF[activation],
            **{key: params[key] for key in _OPTIONS if key in params},
            n_inner=params.get("intermediate_size"),
            layer_norm_epsilon=params.get("layer_norm_epsilon", 1e-5),
            precision=params.get("dtype") or params.get("torch_dtype") or "float32",
            embed_dropout=params.get("embed_dropout", 0.0),
            attn_dropout=params.get("attention_dropout", 0.0),
            res_dropout=params.get("resid_dropout", 0.0),
            eos_token_id=eos,
            untied_lm_head=params.get("tie_word_embeddings") is False,
            pad_token_id=params.get("pad_token_id"),
            training=carried | others,
        )

    def to_huggingface(self):
        """The config as a dict that transformers' GPTNeoConfig reads.

        The source's training keys travel under the key `neo_tf`, which transformers carries and ignores.

        Raises:
            ConfigError: an option that transformers has no key for; it is named.
        """
        extra = [f"{key} = {json.dumps(value)}" for key, value in self._beyond_huggingface().items()]
        if extra:
            raise ConfigError(f"Hugging Face's GPT-Neo cannot express {', '.join(extra)}")
        return self._huggingface_keys()

    def to_onnx(self):
        """The config of an ONNX folder: Hugging Face's keys, and the original's options where they are used."""
        return self._huggingface_keys() | self._beyond_huggingface()

    def _beyond_huggingface(self):
        """What Hugging Face's GPT-Neo has no key or no value for."""
        beyond = {key: getattr(self, key) for key in _OPTIONS if getattr(self, key)}
        if self.activation_fn not in _ACTIVATION_TO_HF:
            beyond["activation_fn"] = self.activation_fn
        kinds = sorted(set(self.attention_types) - {"global", "local"})
        return beyond | ({"attention_kinds": kinds} if kinds else {})

    def _huggingface_keys(self):
        params = {
            "architectures": ["GPTNeoForCausalLM"],
            "model_type": "gpt_neo",
            "vocab_size": self.n_vocab,
            "max_position_embeddings": self.n_ctx,
            "hidden_size": self.n_embd,
            "num_heads": self.n_head,
            "num_layers": self.n_layer,
            "attention_types": collapse_attention_types(self.attention_types),
            "attention_layers": list(self.attention_types),
            "window_size": self.local_attention_radius,
            "intermediate_size": self.n_inner,
            "activation_function": _ACTIVATION_TO_HF.get(self.activation_fn, self.activation_fn),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "embed_dropout": self.embed_dropout,
            "attention_dropout": self.attn_dropout,
            "resid_dropout": self.res_dropout,
            "bos_token_id": self.eos_token_id,
            "eos_token_id": self.eos_token_id,
            "dtype": self.precision,
            "torch_dtype": self.precision,
            "tie_word_embeddings": not self.untied_lm_head,
            "use_cache": True,
        }
        # transformers builds nn.Embedding(padding_idx) from it: an id outside the embedding would crash there.
        if self.pad_token_id is not None and self.pad_token_id < self.n_vocab:
            params["pad_token_id"] = self.pad_token_id
        if self.training:
            params["neo_tf"] = self.training
        return params

    # ---- files

    @classmethod
    def from_dict(cls, params):
        """Reads either form of a config, told apart by its keys."""
        if not isinstance(params, dict):
            raise ConfigError("a config must be a JSON object")
        if "model_type" in params or "hidden_size" in params:
            return cls.from_huggingface(params)
        return cls.from_original(params)

    @classmethod
    def from_file(cls, path, moe_policy=None):
        """Reads a JSON file that holds either form of a config.

        Args:
            path: the file.
            moe_policy: replaces moe_second_policy_eval where the model has a mixture of experts.

        Raises:
            ConfigError: the file is missing, is no JSON, or holds a config that cannot be used; names the file.
        """
        params = read_json(path)
        if moe_policy and isinstance(params, dict) and params.get("moe_layers"):
            params["moe_params"] = (params.get("moe_params") or {}) | {"moe_second_policy_eval": moe_policy}
        try:
            return cls.from_dict(params)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def read_json(path):
    """The JSON file's content. Raises ConfigError, naming the file, where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None


def expand_attention_types(attention_types):
    """[[["global", "local"], 2]] -> ("global", "local", "global", "local"): both formats' shorthand."""
    try:
        expanded = []
        for kinds, repeats in attention_types:
            if isinstance(kinds, str) or isinstance(repeats, bool) or not isinstance(repeats, int):
                raise TypeError
            expanded += list(kinds) * repeats
        return tuple(expanded)
    except (TypeError, ValueError):
        raise ConfigError(
            f'attention_types must look like [[["global", "local"], 12]], not {json.dumps(attention_types)}'
        ) from None


def collapse_attention_types(kinds):
    """The shortest shorthand for a sequence of kinds: the inverse of expand_attention_types."""
    kinds = list(kinds)
    for period in range(1, len(kinds) + 1):
        if len(kinds) % period == 0 and kinds == kinds[:period] * (len(kinds) // period):
            return [[kinds[:period], len(kinds) // period]]
    return []


def _require_keys(params, keys):
    missing = [key for key in keys if params.get(key) is None]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")


def _require_list(params, key):
    if not isinstance(params[key], list | tuple):
        raise ConfigError(f"{key} must be a list, not {params[key]!r}")
    return list(params[key])


def _is_positive_int(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)

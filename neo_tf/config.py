"""GPTNeoConfig: everything the forward pass reads, from the original's JSON or Hugging Face's config.json."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from neo_tf.config_formats import (
    read_huggingface_config,
    read_original,
    write_huggingface_config,
    write_onnx_config,
    write_original,
)
from neo_tf.config_values import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    MOE_ACTIVATIONS,
    MOE_DEFAULTS,
    MOE_POLICIES,
    PRECISIONS,
    UNUSABLE_ACTIVATIONS,
)
from neo_tf.errors import ConfigError

_MODES = ("train", "eval")


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
        if self.pad_token_id is not None and self.pad_token_id < 0:
            raise ConfigError(f"pad_token_id must not be negative, not {self.pad_token_id}")
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
        if not isinstance(self.moe_layers or (), list | tuple):
            raise ConfigError(f"moe_layers must be a list of layers, not {self.moe_layers!r}")
        if not isinstance(self.moe_params or {}, dict):
            raise ConfigError(f"moe_params must be an object, not {self.moe_params!r}")
        object.__setattr__(self, "moe_layers", tuple(self.moe_layers or ()))
        if not self.moe_layers:
            object.__setattr__(self, "moe_params", {})
            return
        for layer in self.moe_layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < self.n_layer:
                raise ConfigError(f"moe_layers names layer {layer!r}, but n_layer is {self.n_layer}")
        params = MOE_DEFAULTS | (self.moe_params or {})
        object.__setattr__(self, "moe_params", params)
        for name in ("moe_num_experts", "moe_hidden_size", "moe_group_size"):
            if not _is_positive_int(params[name]):
                raise ConfigError(f"{name} must be a positive integer, not {params[name]!r}")
        numbers = ("moe_loss_coef", "moe_min_expert_capacity")
        numbers += tuple(f"moe_{name}_{mode}" for name in ("capacity_factor", "second_threshold") for mode in _MODES)
        for name in numbers:
            if not _is_number(params[name]) or params[name] < 0:
                raise ConfigError(f"{name} must be a number from 0 on, not {params[name]!r}")
        for name, known in (("moe_gating", ("top_2",)), ("moe_activation", MOE_ACTIVATIONS)):
            if params[name] not in known:
                raise ConfigError(f"{name} {params[name]!r} is not supported (known: {', '.join(known)})")
        if self.precision == "bfloat16":
            raise ConfigError("moe_layers with precision bfloat16: the original itself crashes on it")
        for name in ("moe_second_policy_train", "moe_second_policy_eval"):
            if params[name] not in MOE_POLICIES:
                raise ConfigError(f"{name} {params[name]!r} is not one of {', '.join(MOE_POLICIES)}")
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

    # ---- its two forms

    @classmethod
    def from_original(cls, params):
        """Reads a config of EleutherAI/gpt-neo, as a dict. Raises ConfigError as read_original does."""
        return cls(**read_original(params))

    def to_original(self):
        """The config as a dict that from_original, and the original code, read."""
        return write_original(self)

    @classmethod
    def from_huggingface(cls, params):
        """Reads a transformers config.json, as a dict. Raises ConfigError as read_huggingface_config does."""
        return cls(**read_huggingface_config(params))

    def to_huggingface(self):
        """The config as a dict that transformers reads. Raises ConfigError for an option that it has no key for."""
        return write_huggingface_config(self)

    def to_onnx(self):
        """The config of an ONNX folder: Hugging Face's keys, and the original's options where they are used."""
        return write_onnx_config(self)

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


def _is_positive_int(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
